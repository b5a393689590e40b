"""Tables 3, 4 and 6 of Ba et al. 2015 and Table III of Semeniuta & Barth 2016 in shape, on images that need no SVHN,
beside the numbers published for SVHN.

1. dram/3-mnist, dram/4-mnist, dram/6-mnist and soft_ram/3-mnist: genuine digits laid out like house numbers;
   dram/3-painted, dram/4-painted and soft_ram/3-painted: rendered digits on painted house fronts.
2. The readers of the former are `model=dram_small`, the ConvNet is `model=convnet_10_small`, the soft reader has the
   sizes of MNIST: these numbers compare them with each other, not with the papers' networks.
3. `rule=average` aligns and averages both readers; `rule=flip` is the literal reading of section 4.3.
"""

from __future__ import annotations

from attn_cli.papers.cells import (
    AVERAGED,
    BOTH,
    BOTH_AVERAGED,
    MINUTE,
    Cell,
    Combine,
    Evaluate,
    How,
    Published,
    Same,
    Table,
    Train,
)
from attn_cli.papers.dram import ARXIV, FLIP, FLIP_AVERAGED
from attn_cli.papers.soft_ram_recipes import FIVE_LAYERS, SSCI

SVHN, SOFT_SVHN = f"SVHN, {ARXIV}", f"SVHN, {SSCI}"
PAINTED = ("data=house_numbers", "model.samples=2", "model.reward=probability", "trainer.epochs=15")
SOFT_PAINTED = ("data=house_numbers", "trainer.epochs=15")
PAINTED_110 = (
    "data=house_numbers_110",
    "model.samples=2",
    "model.reward=probability",
    "trainer.epochs=10",
    "optimizer.lr=0.0003",
)


def _cell(name: str, title: str, how: How, svhn: float | None = None, version: str = SVHN) -> Cell:
    return Cell(name, title, how, () if svhn is None else (Published(version, svhn),))


def _soft(
    forward: Train, backward: Train, stn: Train, five: tuple[Train, Train], published: tuple[float | None, ...]
) -> tuple[Cell, ...]:
    """The rows of Table III: one reader and both, by one pass and averaged over the noise in centre and stride."""
    five_layers = Combine("five-layers-forward", "five-layers-backward", BOTH_AVERAGED)
    ways: tuple[tuple[str, str, How], ...] = (
        ("stn", "spatial transformers", stn),
        ("forward", "forward, single pass", forward),
        ("forward-average", "forward, average", Evaluate("forward", AVERAGED)),
        ("backward", "backward, single pass", backward),
        ("both", "both, single pass", Combine("forward", "backward", BOTH)),
        ("both-average", "both, average", Combine("forward", "backward", BOTH_AVERAGED)),
        ("five-layers-forward", "5 layers, forward, single pass", five[0]),
        ("five-layers-backward", "5 layers, backward, single pass", five[1]),
        ("five-layers", "5 layers, both, average", five_layers),
    )
    return tuple(_cell(*way, number, SOFT_SVHN) for way, number in zip(ways, published, strict=True))


def _painted(reader: str, start: str, minutes: int, *overrides: str) -> Train:
    """A reader of Table III on painted fronts, from that of genuine digits."""
    given = (*SOFT_PAINTED, *overrides)
    return Train(f"soft_ram/sequence_{reader}", given, start=f"soft_ram/3-mnist/{start}", cpu=minutes * MINUTE)


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
                Train("dram/sequence_convnet", ("data=mnist_sequence_110",), cpu=103 * MINUTE),
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
    Table(
        "soft_ram/3-mnist",
        "Table III in shape: genuine digits laid out like house numbers, 54×54",
        _soft(
            Train("soft_ram/sequence_forward", cpu=56 * MINUTE),
            Train("soft_ram/sequence_backward", cpu=56 * MINUTE),
            Train("soft_ram/sequence_stn", cpu=13 * MINUTE),
            (
                Train("soft_ram/sequence_forward", (FIVE_LAYERS,), cpu=67 * MINUTE),
                Train("soft_ram/sequence_backward", (FIVE_LAYERS,), cpu=67 * MINUTE),
            ),
            (3.6, 4.5, 4.3, None, 3.9, 3.65, None, None, 3.4),
        ),
        versions=(SOFT_SVHN,),
    ),
    Table(
        "soft_ram/3-painted",
        "Table III in shape: `house_numbers`, rendered digits on painted fronts, 54×54",
        _soft(
            _painted("forward", "forward", 8),
            _painted("backward", "backward", 8),
            _painted("stn", "stn", 4),
            (
                _painted("forward", "five-layers-forward", 10, FIVE_LAYERS),
                _painted("backward", "five-layers-backward", 10, FIVE_LAYERS),
            ),
            (None,) * 9,
        ),
    ),
)
