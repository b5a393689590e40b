"""Tables 3 and 4 of Ba et al. 2015 in shape, on images that need no SVHN, beside the numbers published for SVHN.

1. dram/3-mnist, dram/4-mnist and dram/6-mnist: genuine digits laid out like house numbers; dram/3-painted and
   dram/4-painted: rendered digits on painted house fronts.
2. The readers are `model=dram_small`, the ConvNet is `model=convnet_10_small`: these numbers compare them with each
   other, not with the paper's networks.
3. `rule=average` aligns and averages both readers; `rule=flip` is the literal reading of section 4.3.
"""

from __future__ import annotations

from attn_cli.papers.cells import MINUTE, Cell, Combine, Evaluate, How, Published, Same, Table, Train
from attn_cli.papers.dram import ARXIV, AVERAGED, FLIP, FLIP_AVERAGED

SVHN = f"SVHN, {ARXIV}"
BOTH, BOTH_AVERAGED = ("rule=average",), ("rule=average", "mc_samples=10")
PAINTED = ("data=house_numbers", "model.samples=2", "model.reward=probability", "trainer.epochs=15")
PAINTED_110 = (
    "data=house_numbers_110",
    "model.samples=2",
    "model.reward=probability",
    "trainer.epochs=10",
    "optimizer.lr=0.0003",
)


def _cell(name: str, title: str, how: How, svhn: float | None = None) -> Cell:
    return Cell(name, title, how, () if svhn is None else (Published(SVHN, svhn),))


TABLES = (
    Table(
        "dram/3-mnist",
        "Table 3 in shape: genuine digits laid out like house numbers, 54×54",
        (
            _cell("forward", "forward", Train("dram/sequence_forward", cpu=54 * MINUTE), 5.1),
            _cell("forward-average", "forward, 10 paths averaged", Evaluate("forward", AVERAGED), 4.4),
            _cell("backward", "backward", Train("dram/sequence_backward", start="forward", cpu=14 * MINUTE)),
            _cell("backward-average", "backward, 10 paths averaged", Evaluate("backward", AVERAGED)),
            _cell("both", "both, `rule=average`", Combine("forward", "backward", BOTH)),
            _cell(
                "both-average",
                "both, `rule=average`, 10 paths each",
                Combine("forward", "backward", BOTH_AVERAGED),
                3.9,
            ),
            _cell("both-flip", "both, `rule=flip`", Combine("forward", "backward", FLIP)),
            _cell(
                "both-flip-average",
                "both, `rule=flip`, 10 paths each",
                Combine("forward", "backward", FLIP_AVERAGED),
                3.9,
            ),
            _cell("convnet", "ConvNet", Train("dram/sequence_convnet", cpu=16 * MINUTE), 4.11),
        ),
        versions=(SVHN,),
    ),
    Table(
        "dram/4-mnist",
        "Table 4 in shape: genuine digits laid out like house numbers, 110×110",
        (
            _cell(
                "forward-as-is",
                "forward, as trained on 54×54",
                Evaluate("dram/3-mnist/forward", ("data=mnist_sequence_110",)),
            ),
            _cell(
                "focus",
                "the same with `--focus`",
                Evaluate("dram/3-mnist/forward", ("data=mnist_sequence_110", "focus=true")),
                5.7,
            ),
            _cell(
                "forward",
                "forward, fine-tuned",
                Train("dram/sequence_110_forward", start="dram/3-mnist/forward", cpu=27 * MINUTE),
                5.1,
            ),
            _cell("forward-average", "the same, 10 paths averaged", Evaluate("forward", AVERAGED)),
            _cell(
                "backward",
                "backward, fine-tuned",
                Train("dram/sequence_110_backward", start="dram/3-mnist/backward", cpu=8 * MINUTE),
            ),
            _cell("both", "both, `rule=average`", Combine("forward", "backward", BOTH)),
            _cell(
                "both-average",
                "both, `rule=average`, 10 paths each",
                Combine("forward", "backward", BOTH_AVERAGED),
                4.46,
            ),
            _cell(
                "convnet-resized",
                "ConvNet as trained on 54×54, images resized",
                Evaluate("dram/3-mnist/convnet", ("data=mnist_sequence_110",)),
                50,
            ),
            _cell(
                "convnet",
                "ConvNet, re-trained",
                Train("dram/sequence_convnet", ("data=mnist_sequence_110",), cpu=64 * MINUTE),
                5.60,
            ),
        ),
        versions=(SVHN,),
    ),
    Table(
        "dram/3-painted",
        "Table 3 in shape: `house_numbers`, rendered digits on painted fronts, 54×54",
        (
            _cell(
                "forward",
                "forward",
                Train("dram/table6_small", PAINTED, start="dram/3-mnist/forward", cpu=5 * MINUTE),
            ),
            _cell("forward-average", "forward, 10 paths averaged", Evaluate("forward", AVERAGED)),
            _cell(
                "backward",
                "backward",
                Train(
                    "dram/table6_small",
                    (*PAINTED, "model.reader=backward"),
                    start="dram/3-mnist/backward",
                    cpu=5 * MINUTE,
                ),
            ),
            _cell("both", "both, `rule=average`", Combine("forward", "backward", BOTH)),
            _cell("both-average", "both, `rule=average`, 10 paths each", Combine("forward", "backward", BOTH_AVERAGED)),
            _cell(
                "convnet",
                "ConvNet",
                Train("dram/sequence_convnet", ("data=house_numbers", "trainer.epochs=20"), cpu=5 * MINUTE),
            ),
        ),
    ),
    Table(
        "dram/4-painted",
        "Table 4 in shape: `house_numbers_110`, rendered digits on painted fronts, 110×110",
        (
            _cell(
                "forward-as-is",
                "forward, as trained on 54×54",
                Evaluate("dram/3-painted/forward", ("data=house_numbers_110",)),
            ),
            _cell(
                "focus",
                "the same with `--focus`",
                Evaluate("dram/3-painted/forward", ("data=house_numbers_110", "focus=true")),
            ),
            _cell(
                "forward",
                "forward, fine-tuned",
                Train("dram/table6_small", PAINTED_110, start="dram/3-painted/forward", cpu=5 * MINUTE),
            ),
            _cell("forward-average", "the same, 10 paths averaged", Evaluate("forward", AVERAGED)),
            _cell(
                "backward",
                "backward, fine-tuned",
                Train(
                    "dram/table6_small",
                    (*PAINTED_110, "model.reader=backward"),
                    start="dram/3-painted/backward",
                    cpu=5 * MINUTE,
                ),
            ),
            _cell("both", "both, `rule=average`", Combine("forward", "backward", BOTH)),
            _cell("both-average", "both, `rule=average`, 10 paths each", Combine("forward", "backward", BOTH_AVERAGED)),
            _cell(
                "convnet-resized",
                "ConvNet as trained on 54×54, images resized",
                Evaluate("dram/3-painted/convnet", ("data=house_numbers_110",)),
            ),
            _cell(
                "convnet",
                "ConvNet, re-trained",
                Train("dram/sequence_convnet", ("data=house_numbers_110", "trainer.epochs=20"), cpu=25 * MINUTE),
            ),
        ),
    ),
    Table(
        "dram/6-mnist",
        "Table 6 in shape: genuine digits laid out like house numbers, 54×54",
        (
            _cell("small", "small DRAM", Same("dram/3-mnist/forward"), 5.1),
            _cell(
                "small-dropout",
                "small DRAM + dropout",
                Train("dram/sequence_forward", ("model.dropout=0.5",), cpu=54 * MINUTE),
                4.6,
            ),
        ),
        versions=(SVHN,),
    ),
)
