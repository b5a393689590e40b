"""Ba, Mnih, Kavukcuoglu 2015, Multiple Object Recognition with Visual Attention: Tables 1 to 6 and section 5's ConvNet.

1. The readers of pairs and sums go through lessons, of which the paper says nothing; RESULTS.md tells why. σ falls from
   0.3 to 0.12 and 0.08 on the way, and some of those that end in `mean` have dropout, two paths an image or a policy
   gradient that stops above the lower LSTM. `mean` starts from the mean of the weights of four readers.
2. Both readers are put together by the rule of section 4.3, `rule=flip`. stand_ins.py has Tables 3 and 4 in shape.
3. The columns "MC avg." of Table 5 are 1.8 and 5.6 times a pass, which no single number of samples explains.
"""

from __future__ import annotations

from attn_cli.papers.cells import (
    AVERAGED,
    HOUR,
    MINUTE,
    Absent,
    Cell,
    Combine,
    Evaluate,
    How,
    Published,
    Same,
    Table,
    Train,
)

ARXIV = "arXiv 1412.7755"
FLIP, FLIP_AVERAGED = ("rule=flip",), ("rule=flip", "mc_samples=10")
CITED = Absent("cited there from Goodfellow et al. 2013")
NOT_FROM_TEXT = Absent("not reproducible from the text, which does not say how many paths")
COUNTED = Absent("`attn cost table=dram/5`")
# Table 5: giga multiply-adds, which the paper calls floating-point operations, and millions of parameters, for images
# of 54×54 and 110×110: 10 layer CNN, DRAM (operations: at most), DRAM MC avg., forward-backward DRAM MC avg.
OPERATIONS: dict[int, tuple[float, float, float, float]] = {54: (2.1, 0.2, 0.35, 0.7), 110: (8.5, 0.2, 1.1, 2.2)}
PARAMETERS: dict[int, tuple[float, float, float, float]] = {54: (51, 14, 14, 28), 110: (169, 14, 14, 28)}


def _cell(name: str, title: str, how: How, published: float | None = None) -> Cell:
    return Cell(name, title, how, () if published is None else (Published(ARXIV, published),))


def _lesson(name: str, title: str, how: Train) -> Cell:
    return Cell(name, title, how, lesson=True)


def _on(*overrides: str, cpu: float) -> Train:
    """The reader of pairs, from cell `longer` on."""
    return Train("dram/table1_dram", overrides, start="longer", cpu=cpu)


def _four_scales(experiment: str, *overrides: str, start: str | None = None, cpu: float) -> Train:
    """RAM with the retina of its own paper for 100×100 pixels."""
    return Train(experiment, ("model.core=lstm", "scales.count=4", *overrides), start=start, cpu=cpu)


def _wide_retina(experiment: str, *overrides: str, start: str | None = None, cpu: float) -> Train:
    """DRAM, two paths an image, with patches of up to 96×96 pixels."""
    return Train(experiment, ("scales.count=4", "model.samples=2", *overrides), start=start, cpu=cpu)


def _costs(size: int, published: tuple[float, float, float, float], how: tuple[How, How]) -> list[Cell]:
    """A row of Table 5; `how` its last two columns are obtained."""
    convnet, single, averaged, both = published
    at = f"{size}×{size}"
    return [
        _cell(f"convnet-{size}", f"10 layer CNN, {at}", COUNTED, convnet),
        _cell(f"single-{size}", f"DRAM, {at}", COUNTED, single),
        _cell(f"average-{size}", f"DRAM, MC average, {at}", how[0], averaged),
        _cell(f"both-average-{size}", f"forward-backward DRAM, MC average, {at}", how[1], both),
    ]


TABLES = (
    Table(
        "dram/1",
        "Table 1: which two digits, MNIST pairs, 100×100; 4 glimpses 12×12, 2 scales",
        (
            _lesson("one-digit", "one cluttered digit", Train("dram/first_digit", cpu=7 * MINUTE)),
            _lesson(
                "near-pairs",
                "two digits close to each other, 60×60",
                Train("dram/near_pairs", start="one-digit", cpu=8 * MINUTE),
            ),
            _lesson(
                "wide",
                "the cell itself with σ 0.3",
                Train("dram/table1_dram", ("trainer.epochs=24",), start="near-pairs", cpu=30 * MINUTE),
            ),
            _cell("ram", "RAM", Train("dram/table1_ram", cpu=6 * MINUTE), 9),
            _lesson(
                "ram-4-one-digit",
                "RAM with 4 scales, up to 96×96 pixels, and an LSTM: one cluttered digit",
                _four_scales("dram/first_digit", "model=ram", "trainer.epochs=8", "optimizer.lr=0.002", cpu=6 * MINUTE),
            ),
            _lesson(
                "ram-4-near-pairs",
                "two digits close to each other, 60×60",
                _four_scales(
                    "dram/near_pairs",
                    *("model=ram", "trainer.epochs=20", "optimizer.lr=0.002"),
                    start="ram-4-one-digit",
                    cpu=10 * MINUTE,
                ),
            ),
            _cell(
                "ram-4-scales",
                "RAM with 4 scales",
                _four_scales(
                    "dram/table1_ram",
                    *("trainer.epochs=60", "optimizer.lr=0.002"),
                    start="ram-4-near-pairs",
                    cpu=25 * MINUTE,
                ),
            ),
            _cell(
                "ram-4-scales-longer",
                "and on from there with σ 0.05",
                _four_scales(
                    "dram/table1_ram",
                    *("trainer.epochs=100", "optimizer.lr=0.0015", "model.sigma=0.05"),
                    start="ram-4-scales",
                    cpu=45 * MINUTE,
                ),
            ),
            _cell(
                "ram-4-scales-longer-average",
                "the same, 10 paths averaged",
                Evaluate("ram-4-scales-longer", AVERAGED),
            ),
            _cell(
                "ram-4-first",
                "RAM with 4 scales that learns where to look first, too",
                _four_scales(
                    "dram/table1_ram",
                    *("model.first=learned", "model.sigma=0.1", "trainer.epochs=60", "optimizer.lr=0.002"),
                    start="ram-4-near-pairs",
                    cpu=25 * MINUTE,
                ),
            ),
            _cell(
                "ram-4-first-longer",
                "and on from there with σ 0.05",
                _four_scales(
                    "dram/table1_ram",
                    *("model.first=learned", "model.sigma=0.05", "trainer.epochs=100", "optimizer.lr=0.0015"),
                    start="ram-4-first",
                    cpu=45 * MINUTE,
                ),
            ),
            _cell(
                "ram-4-first-longer-average",
                "the same, 10 paths averaged",
                Evaluate("ram-4-first-longer", AVERAGED),
            ),
            _cell(
                "no-context",
                "DRAM without context",
                Train(
                    "dram/table1_no_context",
                    ("model.samples=2", "trainer.epochs=24"),
                    start="near-pairs",
                    cpu=40 * MINUTE,
                ),
                7,
            ),
            _lesson(
                "no-context-4-one-digit",
                "DRAM without context, 4 scales: one cluttered digit",
                _wide_retina("dram/first_digit", "model.context=none", "trainer.epochs=6", cpu=15 * MINUTE),
            ),
            _lesson(
                "no-context-4-near-pairs",
                "two digits close to each other, 60×60",
                _wide_retina(
                    "dram/near_pairs",
                    *("model.context=none", "trainer.epochs=8"),
                    start="no-context-4-one-digit",
                    cpu=20 * MINUTE,
                ),
            ),
            _cell(
                "no-context-4",
                "DRAM without context, 4 scales",
                _wide_retina(
                    "dram/table1_no_context", "trainer.epochs=28", start="no-context-4-near-pairs", cpu=75 * MINUTE
                ),
            ),
            _cell("no-context-4-average", "the same, 10 paths averaged", Evaluate("no-context-4", AVERAGED)),
            _cell(
                "no-context-4-longer",
                "and on from there with σ 0.12",
                _wide_retina("dram/table1_no_context", "model.sigma=0.12", start="no-context-4", cpu=90 * MINUTE),
            ),
            _cell(
                "no-context-4-longer-average",
                "the same, 10 paths averaged",
                Evaluate("no-context-4-longer", AVERAGED),
            ),
            _cell(
                "dram",
                "DRAM",
                Train("dram/table1_dram", ("trainer.epochs=32", "model.sigma=0.12"), start="wide", cpu=37 * MINUTE),
                5,
            ),
            _cell("dram-average", "DRAM, 10 paths averaged", Evaluate("dram", AVERAGED)),
            _cell(
                "longer",
                "DRAM, and on from there with σ 0.08",
                Train("dram/table1_dram", ("model.sigma=0.08",), start="dram", cpu=124 * MINUTE),
            ),
            _cell("longer-average", "the same, 10 paths averaged", Evaluate("longer", AVERAGED)),
            _lesson(
                "on", "and on", _on("trainer.epochs=14", "optimizer.lr=0.0007", "model.sigma=0.08", cpu=35 * MINUTE)
            ),
            _lesson(
                "on-dropout",
                "and on with dropout",
                _on(
                    *("trainer.epochs=16", "optimizer.lr=0.0007", "model.sigma=0.08", "model.dropout=0.2"),
                    cpu=29 * MINUTE,
                ),
            ),
            _lesson(
                "on-upper",
                "and on with two paths an image, σ 0.06 and no policy gradient below the upper LSTM",
                _on("model.sigma=0.06", "model.samples=2", "model.policy_gradient=upper", cpu=45 * MINUTE),
            ),
            _cell(
                "mean",
                "DRAM, from the mean of the weights of these four",
                Train(
                    "dram/table1_dram",
                    ("model.sigma=0.08", "optimizer.lr=0.0001", "trainer.epochs=4"),
                    start=("longer", "on", "on-upper", "on-dropout"),
                    cpu=8 * MINUTE,
                ),
            ),
            _cell("mean-average", "the same, 10 paths averaged", Evaluate("mean", AVERAGED)),
        ),
        versions=(ARXIV,),
    ),
    Table(
        "dram/2",
        "Table 2: the sum of two digits, MNIST, 100×100; 4 glimpses 12×12, 2 scales",
        (
            _lesson(
                "wide",
                "the cell itself with σ 0.3",
                Train("dram/table2_dram", ("trainer.epochs=24",), start="dram/1/near-pairs", cpu=30 * MINUTE),
            ),
            _cell("convnet", "ConvNet 64-64-64-512", Train("dram/table2_convnet", cpu=95 * MINUTE), 3.2),
            _cell(
                "dram",
                "DRAM",
                Train("dram/table2_dram", ("trainer.epochs=30", "model.sigma=0.12"), start="wide", cpu=34 * MINUTE),
                2.5,
            ),
            _cell("dram-average", "DRAM, 10 paths averaged", Evaluate("dram", AVERAGED)),
        ),
        versions=(ARXIV,),
    ),
    Table(
        "dram/3",
        "Table 3: whole house numbers, SVHN, 54×54",
        (
            _cell("goodfellow", "11 layer CNN", CITED, 3.96),
            _cell("convnet", "10 layer CNN", Train("dram/table3_convnet", cpu=400 * HOUR), 4.11),
            _cell("forward", "single DRAM", Train("dram/table3_forward", cpu=100 * HOUR), 5.1),
            _cell("forward-average", "single DRAM, MC average", Evaluate("forward", AVERAGED), 4.4),
            Cell(
                "backward",
                "DRAM from right to left",
                Train("dram/table3_backward", start="forward", by="model.share_glimpse_from", cpu=100 * HOUR),
            ),
            _cell(
                "both-average",
                "forward-backward DRAM, MC average",
                Combine("forward", "backward", FLIP_AVERAGED),
                3.9,
            ),
        ),
        versions=(ARXIV,),
    ),
    Table(
        "dram/4",
        "Table 4: whole house numbers, enlarged SVHN, 110×110",
        (
            _cell("convnet-resized", "10 layer CNN, resized", Evaluate("dram/3/convnet", ("data=svhn_110",)), 50),
            _cell("convnet", "10 layer CNN, re-trained", Train("dram/table4_convnet", cpu=1600 * HOUR), 5.60),
            _cell("focus", "single DRAM, focus", Evaluate("dram/3/forward", ("data=svhn_110", "focus=true")), 5.7),
            _cell(
                "both-focus",
                "forward-backward DRAM, focus",
                Combine("dram/3/forward", "dram/3/backward", ("data=svhn_110", "focus=true", "rule=flip")),
                5.0,
            ),
            _cell(
                "forward",
                "single DRAM, fine-tuned",
                Train("dram/table4_forward", start="dram/3/forward", cpu=10 * HOUR),
                5.1,
            ),
            Cell(
                "backward",
                "DRAM from right to left, fine-tuned",
                Train("dram/table4_backward", start="dram/3/backward", cpu=10 * HOUR),
            ),
            _cell(
                "both",
                "forward-backward DRAM, fine-tuned",
                Combine("forward", "backward", FLIP),
                4.46,
            ),
        ),
        versions=(ARXIV,),
    ),
    Table(
        "dram/5",
        "Table 5: operations per image",
        (
            *_costs(54, OPERATIONS[54], (NOT_FROM_TEXT, NOT_FROM_TEXT)),
            *_costs(110, OPERATIONS[110], (NOT_FROM_TEXT, NOT_FROM_TEXT)),
        ),
        unit="10⁹ multiply-adds; DRAM with all of its 18 glimpses, published as at most 0.2",
        versions=(ARXIV,),
    ),
    Table(
        "dram/5-parameters",
        "Table 5: parameters",
        (
            *_costs(54, PARAMETERS[54], (Same("single-54"), COUNTED)),
            *_costs(110, PARAMETERS[110], (Same("single-110"), COUNTED)),
        ),
        unit="10⁶ parameters",
        versions=(ARXIV,),
    ),
    Table(
        "dram/6",
        "Table 6: regularisation, SVHN, 54×54",
        (
            _cell("small", "small DRAM", Train("dram/table6_small", cpu=17 * HOUR), 5.1),
            _cell("small-dropout", "small DRAM + dropout", Train("dram/table6_small_dropout", cpu=17 * HOUR), 4.6),
        ),
        versions=(ARXIV,),
    ),
    Table(
        "dram/section-5",
        "Section 5: SVHN, 54×54",
        (
            _cell(
                "convnet-hidden",
                "10 layer CNN, dropout on the two hidden layers alone",
                Train("dram/section5_convnet", cpu=400 * HOUR),
                5.5,
            ),
        ),
        versions=(ARXIV,),
    ),
)
