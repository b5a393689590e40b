"""Mnih, Heess, Graves, Kavukcuoglu 2014, Recurrent Models of Visual Attention: Tables 1 and 2, the game of Catch,
the actions of section 5, and video.

Two sets of numbers are published: the arXiv version, and the conference version, of which the glimpse models alone
were at hand: its baselines differ, too.

1. The readers of Table 2b with 6 and 8 glimpses go on from the one with fewer; the paper does not speak of that.
2. Departures in how all of them are trained are numbered in models/ram.py.
"""

from __future__ import annotations

from attn_cli.papers.cells import MINUTE, Cell, Published, Table, Train

ARXIV, NIPS = "arXiv 1406.6247", "NIPS 2014"


def _glimpses(
    table: str,
    count: int,
    minutes: float,
    arxiv: float,
    nips: float | None,
    start: str | None = None,
    epochs: int | None = None,
) -> Cell:
    """`epochs`: those of its records, where they are not the experiment's."""
    versions = (Published(ARXIV, arxiv), *([Published(NIPS, nips)] if nips is not None else []))
    overrides = () if epochs is None else (f"trainer.epochs={epochs}",)
    how = Train(f"ram/table{table}_{count}", overrides, start, cpu=minutes * MINUTE)
    return Cell(f"{count}-glimpses", f"RAM, {count} glimpses", how, versions)


def _baseline(table: str, name: str, title: str, minutes: float, arxiv: float | None) -> Cell:
    how = Train(f"ram/table{table}_{FILES[name]}", cpu=minutes * MINUTE)
    return Cell(name, title, how, () if arxiv is None else (Published(ARXIV, arxiv),))


def _price(price: str, title: str) -> Cell:
    words = (f"model.glimpse_cost={price}",)
    return Cell(f"price-{price}", title, Train("ram/stop_6", words, start="ram/1a/6-glimpses", cpu=7 * MINUTE))


FILES = {"fc-64": "fc64", "fc-256": "fc256", "conv": "conv", "conv-16": "conv_16"}
FC_64, FC_256 = ("fc-64", "FC, 2 layers of 64"), ("fc-256", "FC, 2 layers of 256")
CONV = ("conv", "Convolutional, 2 layers: 8 filters 10×10, stride 5 (captions), then 256 units")

TABLES = (
    Table(
        "ram/1a",
        "Table 1a: MNIST, 28×28; retina 8×8, 1 scale",
        (
            _baseline("1a", *FC_256, 1, 1.35),
            Cell(
                "random",
                "1 random glimpse",
                Train("ram/table1a_random", cpu=4 * MINUTE),
                (Published(ARXIV, 42.85),),
            ),
            _glimpses("1a", 2, 10, 6.27, 3.79),
            _glimpses("1a", 3, 11, 2.7, 1.51),
            _glimpses("1a", 4, 11, 1.73, 1.54),
            _glimpses("1a", 5, 6, 1.55, 1.34, epochs=60),
            _glimpses("1a", 6, 39, 1.29, 1.12),
            _glimpses("1a", 7, 14, 1.47, 1.07, epochs=60),
        ),
        versions=(ARXIV, NIPS),
    ),
    Table(
        "ram/1b",
        "Table 1b: Translated MNIST, 60×60; retina 12×12, 3 scales",
        (
            _baseline("1b", *FC_64, 2, 7.56),
            _baseline("1b", *FC_256, 4, 3.7),
            _baseline("1b", *CONV, 3, 2.31),
            _baseline("1b", "conv-16", "the same with the 16 filters of the text", 5, None),
            _glimpses("1b", 4, 8, 2.29, 1.54),
            _glimpses("1b", 6, 23, 1.86, 1.22),
            _glimpses("1b", 8, 20, 1.84, 1.20),
        ),
        versions=(ARXIV, NIPS),
    ),
    Table(
        "ram/2a",
        "Table 2a: Cluttered Translated MNIST, 60×60, 4 pieces; retina 12×12, 3 scales",
        (
            _baseline("2a", *FC_64, 3, 28.96),
            _baseline("2a", *FC_256, 8, 13.2),
            _baseline("2a", *CONV, 6, 7.83),
            _glimpses("2a", 4, 7, 7.1, 4.96, epochs=60),
            _glimpses("2a", 6, 41, 5.88, 4.08),
            _glimpses("2a", 8, 26, 5.23, 4.04, epochs=40),
            Cell("8-glimpses-longer", "the same, for longer", Train("ram/table2a_8", cpu=70 * MINUTE)),
        ),
        versions=(ARXIV, NIPS),
    ),
    Table(
        "ram/2b",
        "Table 2b: Cluttered Translated MNIST, 100×100, 8 pieces; retina 12×12, 4 scales",
        (
            _baseline("2b", "conv", "Convolutional, 2 layers: 8 filters 10×10, stride 5, then 86 units", 14, 16.51),
            _glimpses("2b", 4, 15, 14.95, 9.41),
            _glimpses("2b", 6, 10, 11.58, None, "4-glimpses", epochs=20),
            _glimpses("2b", 8, 18, 10.83, 8.11, "6-glimpses", epochs=20),
        ),
        versions=(ARXIV, NIPS),
    ),
    Table(
        "ram/stop",
        "Section 5: MNIST, 28×28; RAM that decides itself when to answer; at most 6 glimpses, retina 8×8, 1 scale",
        (
            _price("0.002", "from a reader of always 6 glimpses, at a price of 0.002 of the reward a glimpse"),
            _price("0.006", "the same at a price of 0.006"),
            _price("0.02", "the same at a price of 0.02"),
            Cell(
                "from-nothing",
                "at a price of 0.01, from nothing",
                Train(
                    "ram/stop_6",
                    ("model.glimpse_cost=0.01", "optimizer.lr=0.002", "trainer.epochs=40"),
                    cpu=17 * MINUTE,
                ),
            ),
        ),
    ),
    Table(
        "ram/scales",
        "Section 5: one digit of 14 to 56 pixels, 100×100; RAM that decides itself at which scale to look; 6 glimpses, "
        "retina 12×12",
        (
            Cell("learned", "learned, 1 to 8 pixels a cell", Train("ram/scales_learned", cpu=8 * MINUTE)),
            Cell("fixed-4", "fixed, 4 pixels a cell", Train("ram/scales_fixed", cpu=7 * MINUTE)),
            Cell(
                "fixed-2",
                "fixed, 2 pixels a cell",
                Train("ram/scales_fixed", ("model.magnification=2",), cpu=12 * MINUTE),
            ),
            Cell("retina", "fixed, 3 scales of 1, 2 and 4 pixels a cell", Train("ram/scales_retina", cpu=11 * MINUTE)),
        ),
    ),
    Table(
        "ram/catch",
        "Section 4.2: Catch, 24×24; retina 6×6, 3 scales",
        (
            Cell(
                "best",
                "RAM with an LSTM of 256, best agent after 20 million frames",
                Train("ram/catch", cpu=50 * MINUTE),
                (Published(ARXIV, 15.0, "caught roughly 85 %"),),
            ),
            Cell(
                "longer",
                "and on for as many frames again, 128 games at a time",
                Train(
                    "ram/catch",
                    ("trainer.batch_size=128", "data.games=25600", "trainer.epochs=35"),
                    start="best",
                    cpu=15 * MINUTE,
                ),
            ),
            Cell(
                "fixed-gaze",
                "as `best`, but with its gaze fixed on the centre",
                Train("ram/catch", ("model.policy=fixed",), cpu=20 * MINUTE),
            ),
            Cell(
                "whole-screen",
                "as `best`, but with the whole screen in sight",
                Train("ram/catch", ("model.policy=fixed", "glimpses.size=24", "scales.count=1"), cpu=20 * MINUTE),
            ),
        ),
        unit="balls missed in %",
        versions=(ARXIV,),
    ),
    Table(
        "ram/track",
        "Sections 4.2 and 5: video, a digit that moves through clutter, 100×100; retina 12×12, 4 scales",
        (Cell("video", "RAM with an LSTM, a glimpse in each of 20 frames", Train("ram/track", cpu=44 * MINUTE)),),
    ),
)
