"""What a table of a paper is made of. A cell has a name, its published numbers, and a way to obtain it here.

The way is one of: `Train` an experiment, `Evaluate` or `Combine` runs that other cells trained, cut regions out of the
images by `Attend`, take over the number of the `Same` cell in another table, or `Absent`, with the reason why there is
none. A cell is referred to by its name within its table, and as "TABLE/CELL" from others. A lesson is a cell
of no paper: it is run only because others start from it.

Errors are in %, times in seconds of one CPU core.
"""

from __future__ import annotations

from dataclasses import dataclass

ERROR = "test error in %"
MINUTE, HOUR = 60.0, 3600.0
AVERAGED = ("mc_samples=10", "repeats=1")  # of `Evaluate`
BOTH, BOTH_AVERAGED = ("rule=average",), ("rule=average", "mc_samples=10")  # of `Combine`


@dataclass(frozen=True)
class Published:
    """One published number; where a paper has two versions, each has its own."""

    version: str  # of the paper, such as "arXiv 1406.6247"
    value: float
    note: str = ""  # how it is printed there, if not as this number


@dataclass(frozen=True)
class Train:
    """`attn train`, in a run folder for each seed."""

    experiment: str  # a file in conf/experiment
    overrides: tuple[str, ...] = ()
    start: str | tuple[str, ...] | None = None  # cell whose run (or file) of the same seed it takes over, or several
    by: str = "init_from"  # the key that takes it
    cpu: float | None = None  # expected seconds; None: not yet measured
    gpu: float | None = None


@dataclass(frozen=True)
class Evaluate:
    """`attn eval` of the run of a cell."""

    of: str
    overrides: tuple[str, ...] = ()
    cpu: float | None = 5 * MINUTE
    gpu: float | None = None


@dataclass(frozen=True)
class Combine:
    """`attn combine` of the runs of two cells."""

    forward: str
    backward: str
    overrides: tuple[str, ...] = ()
    cpu: float | None = 10 * MINUTE
    gpu: float | None = None


@dataclass(frozen=True)
class Attend:
    """`attn attend`: a data set of regions of the images of a cell's run. Only lessons are obtained like this."""

    of: str
    overrides: tuple[str, ...] = ()
    cpu: float | None = 10 * MINUTE
    gpu: float | None = None


@dataclass(frozen=True)
class Same:
    """The number of a cell of another table."""

    of: str


@dataclass(frozen=True)
class Absent:
    """Nothing here obtains this number."""

    why: str = "no experiment yet"


Run = Train | Evaluate | Combine | Attend
How = Run | Same | Absent


@dataclass(frozen=True)
class Cell:
    name: str  # such as "6-glimpses"
    title: str
    how: How
    published: tuple[Published, ...] = ()
    lesson: bool = False


@dataclass(frozen=True)
class Table:
    name: str  # "PAPER/TABLE", such as "ram/2a"
    title: str
    cells: tuple[Cell, ...]
    unit: str = ERROR
    versions: tuple[str, ...] = ()  # of published numbers: the columns, in this order


def sources(how: How) -> tuple[str, ...]:
    """The cells whose runs of the same seed must be finished before."""
    if isinstance(how, Train):
        return (how.start,) if isinstance(how.start, str) else how.start or ()
    if isinstance(how, Combine):
        return how.forward, how.backward
    return () if isinstance(how, Absent) else (how.of,)


def full_name(table: Table, cell: str) -> str:
    """TABLE/CELL of a reference made within `table`."""
    return cell if cell.count("/") == 2 else f"{table.name}/{cell}"
