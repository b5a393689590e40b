"""Ren 2017, Recurrent Soft Attention Model for Common Object Recognition: Figures 3 and 4.

Both figures are curves; one number is told, the accuracy 64.95 % of the whole model with 4 glimpses.
Expected times are those of shorter runs on a copy of CIFAR-10, with trainer.precision=bf16.
"""

from __future__ import annotations

from attn_cli.papers.cells import MINUTE, Cell, Published, Table, Train

ARXIV = "arXiv 1705.01921"
BEST = (Published(ARXIV, 35.05, "accuracy 64.95 %"),)


def _arm(name: str, title: str, published: tuple[Published, ...] = ()) -> Cell:
    return Cell(name, title, Train(f"rsam/figure3_{name.replace('-', '_')}", cpu=20 * MINUTE), published)


TABLES = (
    Table(
        "rsam/figure-3",
        "Figure 3: CIFAR-10, 4 glimpses",
        (
            _arm("both", "feedback and down-sample network", BEST),
            _arm("no-feedback", "down-sample network without feedback"),
            _arm("no-down-sample", "feedback, one fully-connected layer instead of the down-sample network"),
            _arm("neither", "neither"),
        ),
        versions=(ARXIV,),
    ),
    Table(
        "rsam/figure-4",
        "Figure 4: CIFAR-10, 20 epochs",
        tuple(
            Cell(
                f"{count}-glimpses",
                "1 glimpse" if count == 1 else f"{count} glimpses",
                Train("rsam/figure4", (f"glimpses.count={count}",), cpu=count * 5 * MINUTE),
                BEST if count == 4 else (),
            )
            for count in range(1, 9)
        ),
        versions=(ARXIV,),
    ),
)
