"""How the cells of soft_ram.py are obtained, where several are obtained alike: settings, lessons, evaluations."""

from __future__ import annotations

from attn_cli.papers.cells import AVERAGED, MINUTE, Cell, Evaluate, How, Published, Train

SSCI = "IEEE SSCI 2016"
TEN_CROPS = ("ten_crops=true",)
EVERY = ("model.answers=every", "model.noise=0.05")
FIRST = (*EVERY, "optimizer.attention=0.2", "trainer.epochs=8")
SHARP = "model.coarse=40"  # pixels a side of the context's image
STEADY = ("optimizer=adam", "optimizer.lr=0.001")  # one rate, for lessons
SMALL = ("data.height=72", "data.width=72", "data.pieces=4", *STEADY)
EACH = "model.answer_from=glimpse"  # every glimpse must read the digit that is asked for, by itself
IN_ORDER = ("data=mnist_pairs", "data.label=sequence", "glimpses.count=2", *EVERY, EACH)
ORDERED = (*IN_ORDER, *STEADY, "optimizer.attention=0.3")
NEAR = (
    *ORDERED,
    "data.height=72",
    "data.width=72",
    "data.pieces=2",
    "data.overlap=0.4",
    "trainer.epochs=8",
)
APART = (
    *ORDERED,
    "data.height=80",
    "data.width=80",
    "data.pieces=4",
    "data.overlap=0.2",
    "trainer.epochs=6",
)
FAR = (*ORDERED, "trainer.epochs=6")
FAR_LONGER = (*IN_ORDER, "optimizer.attention=0.5", "trainer.epochs=25")
ABSOLUTE = ("model.centre=absolute", "model.limit=null", *EVERY)
PAIR = (*ABSOLUTE, "optimizer.attention=0.1", "optimizer.lr=0.002", "trainer.epochs=60")
LONGER = (*ABSOLUTE, "optimizer.attention=0.2", "trainer.epochs=54")
LONGEST = (*ABSOLUTE, "optimizer.attention=0.2", "trainer.epochs=216")
SUM = (*ABSOLUTE, "optimizer.attention=0.2", "trainer.epochs=27")
FIT = (*FAR_LONGER, "model.refit=true")
SHARP_PAIR = (*ABSOLUTE, "optimizer.attention=0.2", SHARP)
CONVOLVED = "model.glimpse=conv"
FIVE_LAYERS = "model.filters=[16,16,32,32,32]"  # of the glimpse network
BLIND = ("model.noise=0.05", "optimizer.attention=0.1", "trainer.epochs=35")
DRAWN = ("optimizer.attention=0.3", "trainer.epochs=100")
LONG = (*EVERY, "optimizer.attention=0.1", "trainer.epochs=160")
WARPED = (
    *EVERY,
    "data.warp=0.15",
    "optimizer.attention=0.3",
    "optimizer.weight_decay=0.1",
)


def cell(name: str, title: str, how: How, published: float, note: str = "") -> Cell:
    """A cell with a number of the paper."""
    return Cell(name, title, how, (Published(SSCI, published, note),))


def averaged(of: str) -> Cell:
    return Cell(f"{of}-average", "the same, 10 noisy paths averaged", Evaluate(of, AVERAGED))


def pair(name: str, title: str, start: str | tuple[str, ...], minutes: int, *overrides: str) -> Cell:
    """A reader of pairs with the context's sharp image, from others."""
    train = Train("soft_ram/table2_pair", (*SHARP_PAIR, *overrides), start=start, cpu=minutes * MINUTE)
    return Cell(name, title, train)


def warped(name: str, title: str, experiment: str, start: str, epochs: int, minutes: int, *overrides: str) -> Cell:
    """A reader of one digit from others, trained on warped digits."""
    given = (*WARPED, f"trainer.epochs={epochs}", *overrides)
    return Cell(name, title, Train(f"soft_ram/table1_{experiment}", given, start=start, cpu=minutes * MINUTE))


def lesson(name: str, title: str, start: str, minutes: int, *overrides: str) -> Cell:
    """Where to look, learned on scenes of one kind after another."""
    train = Train("soft_ram/table1_context", overrides, start=start, cpu=minutes * MINUTE)
    return Cell(name, f"lesson: {title}", train, lesson=True)


def draw_on(start: str) -> Train:
    """DRAW with four glimpses, for as many epochs again."""
    return Train("soft_ram/table1_draw_4", DRAWN, start=start, cpu=46 * MINUTE)
