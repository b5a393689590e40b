"""Semeniuta, Barth 2016, Image Classification with Recurrent Attention Models: Tables I to IV, and video (section V).

1. Rows that the paper took from others are the same cells as in their own tables here, or experiments of their models.
2. Published accuracies stand as errors.
3. Expected times of what was never run are those of single steps, times their number.
4. Table IV's CNN is Inception with weights from ImageNet there, a ConvNet with batch normalisation here; both are
   evaluated on ten crops.
5. The readers of Tables I and II, and DRAW, learn where to look in small scenes first, those of Table II with ordered
   digits, where each glimpse answers by itself, so that each digit gets two of them. Then they go on with a lower rate
   for what chooses where to look, and Soft RAM with half the noise; RESULTS.md tells why. The measured rows of Table II
   have absolute centres without a limit on the region: relative centres and the repulsion of eq. 5, with which the
   paper reads pairs, are in lessons alone.
6. Warped training digits (`data.warp`) are ours, and so are the sizes of the image that the context network sees, 24×24
   and 40×40 pixels: the paper tells none. The convolutional glimpse network for MNIST is ours, too: the paper has it
   for house numbers. Readers trained on warped digits have a weight decay of 0.1, of which the paper does not speak.
7. The rate follows one cycle with a peak of 1e-3 or 2e-3, after a mean of weights 1e-4; the paper has Adam at 1e-4
   (`optimizer=adam optimizer.lr=1e-4`), as the birds' attention has it here.
8. The sizes of Table III's convolutions (soft_ram_svhn.py) are ours: the paper tells none, neither of the three nor of
   the five.
"""

from __future__ import annotations

from attn_cli.papers.cells import (
    HOUR,
    MINUTE,
    Absent,
    Attend,
    Cell,
    Evaluate,
    How,
    Same,
    Table,
    Train,
)
from attn_cli.papers.soft_ram_recipes import (
    APART,
    BLIND,
    CONVOLVED,
    DRAWN,
    FAR,
    FAR_LONGER,
    FIRST,
    FIT,
    LONG,
    LONGER,
    LONGEST,
    NEAR,
    PAIR,
    SHARP,
    SMALL,
    SSCI,
    SUM,
    TEN_CROPS,
    averaged,
    cell,
    draw_on,
    lesson,
    pair,
    warped,
)
from attn_cli.papers.soft_ram_svhn import TABLE3


def _draw(count: int, lesson_epochs: int, published: float, *overrides: str, minutes: int) -> tuple[Cell, Cell]:
    """DRAW, begun from small scenes."""
    experiment, first = f"soft_ram/table1_draw_{count}", f"small-scenes-draw-{count}"
    small = Train(experiment, (*SMALL, f"trainer.epochs={lesson_epochs}"), cpu=3 * MINUTE)
    train = Train(experiment, overrides, start=first, cpu=minutes * MINUTE)
    return (
        Cell(first, f"lesson: DRAW, {count} glimpses, one digit with 4 pieces, 72×72", small, lesson=True),
        cell(f"draw-{count}", f"Gregor et al., {count} glimpses", train, published),
    )


def _bird(name: str, title: str, how: How, accuracy: float) -> Cell:
    return cell(name, title, how, round(100 - accuracy, 2), f"accuracy {accuracy} %")


TABLES = (
    Table(
        "soft_ram/1",
        "Table I: one cluttered digit, 100×100; 4 glimpses 12×12",
        (
            cell("ram-4", "Mnih et al., 4 glimpses", Same("ram/2b/4-glimpses"), 9.41),
            cell("ram-8", "Mnih et al., 8 glimpses", Same("ram/2b/8-glimpses"), 8.11),
            *_draw(4, 8, 4.18, *DRAWN, minutes=46),
            Cell("draw-4-longer", "the same, for longer", draw_on("draw-4")),
            Cell("draw-4-longest", "and on", draw_on("draw-4-longer")),
            *_draw(8, 5, 3.36, "optimizer.attention=0.3", minutes=33),
            Cell(
                "small-scenes",
                "lesson: one digit with 4 pieces, 72×72",
                Train("soft_ram/table1_context", (*SMALL, "trainer.epochs=5"), cpu=2 * MINUTE),
                lesson=True,
            ),
            Cell(
                "small-scenes-no-context",
                "lesson: the same without context",
                Train("soft_ram/table1_no_context", (*SMALL, "trainer.epochs=8"), cpu=3 * MINUTE),
                lesson=True,
            ),
            cell(
                "no-context",
                "without context",
                Train("soft_ram/table1_no_context", BLIND, start="small-scenes-no-context", cpu=13 * MINUTE),
                3.29,
            ),
            warped(
                "no-context-warped",
                "the same for longer, warped training digits",
                "no_context",
                "small-scenes-no-context",
                120,
                46,
            ),
            averaged("no-context-warped"),
            warped("no-context-longer", "and on", "no_context", "no-context-warped", 60, 25),
            averaged("no-context-longer"),
            warped(
                "no-context-conv",
                "without context, from a convolutional reader of pairs, warped training digits",
                "no_context",
                "soft_ram/2/pair-conv-longer",
                60,
                22,
                CONVOLVED,
            ),
            averaged("no-context-conv"),
            Cell(
                "context-first",
                "with context, first run",
                Train("soft_ram/table1_context", FIRST, start="small-scenes", cpu=4 * MINUTE),
            ),
            cell(
                "context",
                "with context",
                Train("soft_ram/table1_context", LONG, start="context-first", cpu=62 * MINUTE),
                1.80,
            ),
            averaged("context"),
            warped(
                "context-warped",
                "with context, training digits turned, sheared and resized a little",
                "context",
                "context-first",
                100,
                58,
            ),
            averaged("context-warped"),
            Cell(
                "small-scenes-40",
                "lesson: one digit with 4 pieces, 72×72; context 40×40",
                Train("soft_ram/table1_context", (*SMALL, "trainer.epochs=5", SHARP), cpu=5 * MINUTE),
                lesson=True,
            ),
            Cell(
                "context-first-40",
                "with context 40×40, first run",
                Train("soft_ram/table1_context", (*FIRST, SHARP), start="small-scenes-40", cpu=13 * MINUTE),
            ),
            warped(
                "context-40",
                "with context 40×40, training digits turned, sheared and resized a little",
                "context",
                "context-first-40",
                150,
                107,
                SHARP,
            ),
            averaged("context-40"),
            warped(
                "context-conv",
                "with context 40×40, from a convolutional reader of pairs, warped training digits",
                "context",
                "soft_ram/2/pair-conv",
                40,
                50,
                SHARP,
                CONVOLVED,
            ),
            averaged("context-conv"),
            warped("context-conv-longer", "the same, for longer", "context", "context-conv", 25, 16, SHARP, CONVOLVED),
            averaged("context-conv-longer"),
        ),
        versions=(SSCI,),
    ),
    Table(
        "soft_ram/2",
        "Table II: two digits, 100×100; 4 glimpses 12×12",
        (
            cell("dram-pair", "Ba et al., pair", Same("dram/1/dram"), 5),
            cell("dram-sum", "Ba et al., sum", Same("dram/2/dram"), 2.5),
            lesson(
                "near",
                "which digits from left to right, each glimpse by itself; 72×72, close together",
                "soft_ram/1/small-scenes",
                5,
                *NEAR,
            ),
            lesson("apart", "the same, 80×80, less close", "near", 5, *APART),
            lesson("far", "the same, the scenes of the pairs", "apart", 5, *FAR),
            lesson("far-longer", "and on", "far", 18, *FAR_LONGER),
            cell("pair", "pair", Train("soft_ram/table2_pair", PAIR, start="far-longer", cpu=31 * MINUTE), 4.3),
            averaged("pair"),
            Cell(
                "pair-longer",
                "pair, for longer, at half the rate",
                Train("soft_ram/table2_pair", LONGER, start="pair", cpu=28 * MINUTE),
            ),
            averaged("pair-longer"),
            Cell(
                "pair-longest",
                "and on",
                Train("soft_ram/table2_pair", LONGEST, start="pair-longer", cpu=107 * MINUTE),
            ),
            averaged("pair-longest"),
            lesson("near-40", "as `near`; context 40×40", "soft_ram/1/small-scenes-40", 7, *NEAR, SHARP),
            lesson("near-40b", "and on", "near-40", 5, *NEAR, "trainer.epochs=5", SHARP),
            lesson("apart-40", "as `apart`; context 40×40", "near-40b", 5, *APART, SHARP),
            lesson("far-40", "as `far`; context 40×40", "apart-40", 6, *FAR, SHARP),
            lesson(
                "far-fit-40",
                "and on, with grids that are moved onto the digits and narrowed",
                "far-40",
                15,
                *FIT,
                SHARP,
            ),
            pair("pair-40", "pair, context 40×40", "far-fit-40", 25, "optimizer.lr=0.002", "trainer.epochs=50"),
            pair("pair-40-longer", "pair, for longer, at half the rate", "pair-40", 80, "trainer.epochs=150"),
            pair(
                "pair-40-warped",
                "the same, training digits turned, sheared and resized a little",
                "pair-40",
                73,
                "data.warp=0.1",
                "trainer.epochs=130",
            ),
            pair(
                "pair-40-mean",
                "pair, from the mean of the weights of these two",
                ("pair-40-longer", "pair-40-warped"),
                3,
                "optimizer.lr=0.0001",
                "trainer.epochs=4",
            ),
            averaged("pair-40-mean"),
            pair(
                "pair-conv",
                "pair, from these weights with a convolutional glimpse network in place of the fully-connected one",
                "pair-40-mean",
                37,
                CONVOLVED,
                "optimizer.lr=0.002",
                "trainer.epochs=50",
            ),
            pair(
                "pair-conv-longer",
                "pair, for longer, at half the rate",
                "pair-conv",
                75,
                CONVOLVED,
                "trainer.epochs=100",
            ),
            averaged("pair-conv-longer"),
            pair(
                "pair-conv-warped",
                "and on, training digits turned, sheared and resized a little",
                "pair-conv-longer",
                26,
                CONVOLVED,
                "data.warp=0.1",
                "trainer.epochs=36",
            ),
            averaged("pair-conv-warped"),
            pair(
                "pair-conv-mean",
                "pair, from the mean of the weights of these two",
                ("pair-conv-longer", "pair-conv-warped"),
                3,
                CONVOLVED,
                "optimizer.lr=0.0001",
                "trainer.epochs=4",
            ),
            averaged("pair-conv-mean"),
            cell("sum", "sum", Train("soft_ram/table2_sum", SUM, start="pair", cpu=15 * MINUTE), 2.55),
            averaged("sum"),
            Cell(
                "sum-40",
                "sum, context 40×40",
                Train("soft_ram/table2_sum", (*SUM, SHARP), start="pair-40-mean", cpu=14 * MINUTE),
            ),
            averaged("sum-40"),
            Cell(
                "sum-conv",
                "sum, convolutional glimpse network",
                Train("soft_ram/table2_sum", (*SUM, SHARP, CONVOLVED), start="pair-conv-longer", cpu=20 * MINUTE),
            ),
            averaged("sum-conv"),
        ),
        versions=(SSCI,),
    ),
    *TABLE3,
    Table(
        "soft_ram/4",
        "Table IV: 200 kinds of birds, 224×224",
        (
            Cell("boxes", "regions: the true boxes", Attend("whole", ("regions=boxes",)), lesson=True),
            _bird("jaderberg", "Jaderberg et al.", Absent("cited there"), 84.1),
            Cell("whole", "CNN without localization, centre crop", Train("birds/baseline", cpu=5 * HOUR)),
            _bird("whole-ten-crops", "CNN without localization", Evaluate("whole", TEN_CROPS), 78.57),
            Cell(
                "true-boxes",
                "CNN on true boxes, centre crop",
                Train("birds/baseline", start="boxes", by="data.path", cpu=5 * HOUR),
            ),
            _bird("true-boxes-ten-crops", "CNN on true boxes", Evaluate("true-boxes", TEN_CROPS), 79.63),
            _bird(
                "attended",
                "CNN on attended regions",
                Absent("by hand, as README's commands for birds tell: its trunk needs images of your own"),
                79.77,
            ),
        ),
        versions=(SSCI,),
    ),
    Table(
        "soft_ram/track",
        "Section V: video, a digit that moves through clutter, 100×100; glimpses 12×12",
        (
            Cell(
                "static",
                "trained on still scenes, 8 glimpses: still scenes",
                Train("soft_ram/track_static", cpu=24 * MINUTE),
            ),
            Cell("static-on-video", "the same: videos", Evaluate("static", ("data=moving_mnist_track",))),
            Cell(
                "video",
                "and trained on videos of 20 frames, a glimpse each",
                Train("soft_ram/track", start="static", cpu=15 * MINUTE),
            ),
        ),
    ),
)
