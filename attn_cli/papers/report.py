"""A table of ours beside the paper's: its rows, as Markdown, and between markers in RESULTS.md.

A section of RESULTS.md begins and ends with a line that names its table; the first carries a digest of what is between
them. Text that does not fit the digest was written by a person: it is never overwritten.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attn_cli.errors import Refused
from attn_cli.files import locked, write_atomically
from attn_cli.papers.cells import ERROR, Absent, Attend, Cell, Combine, Evaluate, How, Same, Table, Train, sources
from attn_cli.papers.index import find_table, resolve
from attn_cli.papers.records import Record, Summary, load, summarise

RESULTS = Path("RESULTS.md")  # in the current folder
GAIN = "gain"  # of averaged paths over the mean path of the same run; of two readers over the forward one
NONE = "–"
_BEGIN = re.compile(r"<!-- attn reproduce (\S+) begins(?:, sha256=([0-9a-f]+))? -->")
_END = re.compile(r"<!-- attn reproduce (\S+) ends -->")

Measured = Mapping[str, Sequence[Record]]


def count(table: Table, measured: Measured) -> tuple[int, int]:
    """How many cells have a number of ours, and how many could have one."""
    cells = [cell for cell in table.cells if not cell.lesson and not isinstance(cell.how, Absent | Same)]
    return sum(bool(measured.get(cell.name)) for cell in cells), len(cells)


def title(table: Table, measured: Measured) -> str:
    done, possible = count(table, measured)
    return f"{table.name} · {table.title} · {table.unit} · {done} of {possible} measured"


def rows(table: Table, measured: Measured) -> tuple[list[str], list[list[str]]]:
    """Header and rows: Markdown in every item."""
    gains = any(record.gain for records in measured.values() for record in records)
    header = ["cell", "what, and how", *table.versions, "ours", "95 % interval"]
    header += [GAIN] if gains else []
    header += ["validation", "seeds", "epochs", "time a run", "hardware", "commit"]
    found = []
    for cell in table.cells:
        records = measured.get(cell.name, ())
        if isinstance(cell.how, Same):
            other, same = resolve(table, cell.how.of)
            records = load(other).get(same.name, ())
        row = [f"`{cell.name}`", f"{cell.title}: {how(cell.how)}", *(_published(cell, v) for v in table.versions)]
        found.append(row + (_ours(table, summarise(records), gains) if records else _missing(table, cell, gains)))
    return header, found


def how(way: How) -> str:
    """How a cell is obtained, in a few words."""
    if isinstance(way, Train):
        words = " ".join([f"experiment={way.experiment}", *way.overrides])
        start = " and ".join(f"`{cell}`" for cell in sources(way))
        return f"`{words}`" + (f", {way.by} {start}" if start else "")
    if isinstance(way, Combine):
        return f"`attn combine {' '.join(way.overrides)}` of `{way.forward}` and `{way.backward}`"
    if isinstance(way, Evaluate | Attend):
        command = "eval" if isinstance(way, Evaluate) else "attend"
        return f"`attn {command} {' '.join(way.overrides)}` of `{way.of}`"
    return f"is `{way.of}`" if isinstance(way, Same) else way.why


def expected(way: How) -> str:
    """Expected time of a run on a CPU and on a GPU."""
    cpu, gpu = getattr(way, "cpu", None), getattr(way, "gpu", None)
    known = [
        f"{about(seconds)} on {where}" for seconds, where in ((cpu, "a CPU"), (gpu, "a GPU")) if seconds is not None
    ]
    unknown = [where for seconds, where in ((cpu, "a CPU"), (gpu, "a GPU")) if seconds is None]
    parts = [f"expected {' and '.join(known)}"] if known else []
    return ", ".join([*parts, *([f"not yet measured on {' or '.join(unknown)}"] if unknown else [])])


def about(seconds: float) -> str:
    """A time in its largest unit: 42 s, 39 min, 5 h, 17 days."""
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def markdown(table: Table, measured: Measured) -> str:
    """What stands between the markers."""
    header, body = rows(table, measured)
    lines = [header, ["---"] * len(header), *body]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"\n**{table.title}.** {table.unit[0].upper()}{table.unit[1:]}.\n\n{text}\n\n"


@dataclass(frozen=True)
class Section:
    """Lines `first` (the marker) to `last` (the other marker) of RESULTS.md."""

    name: str
    digest: str | None
    first: int
    last: int
    body: str


def sections(text: str) -> dict[str, Section]:
    """Raises Refused for markers that do not pair."""
    found: dict[str, Section] = {}
    begun: tuple[int, str, str | None] | None = None
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        begin, end = _BEGIN.fullmatch(line.strip()), _END.fullmatch(line.strip())
        if begin and (begun or begin[1] in found):
            raise Refused(
                f"{RESULTS}, line {number + 1}: {begin[1]} begins inside another table or twice: mend the markers."
            )
        if end and (begun is None or begun[1] != end[1]):
            raise Refused(f"{RESULTS}, line {number + 1}: {end[1]} ends and has not begun: mend the markers.")
        if begin:
            find_table(begin[1])
            begun = number, begin[1], begin[2]
        elif end and begun:
            first, name, digest = begun
            found[name] = Section(name, digest, first, number, "".join(lines[first + 1 : number]))
            begun = None
    if begun:
        raise Refused(f"{RESULTS}, line {begun[0] + 1}: {begun[1]} begins and never ends: mend the markers.")
    return found


def check(names: Iterable[str]) -> None:
    """Refuse, with the difference, sections of RESULTS.md that a person has edited."""
    if RESULTS.is_file():
        _updated(_text(), names)


def update(names: Iterable[str]) -> list[str]:
    """Write these tables between their markers in RESULTS.md, if it is there and has them; returns which it has.

    Raises Refused, with the difference, where a person has edited one of them; then nothing is written.
    """
    if not RESULTS.is_file():
        return []
    with locked(RESULTS.parent):  # two commands may fill tables at once
        before = _text()
        after, there = _updated(before, names)
        if after != before:
            write_atomically(RESULTS, after)
    return there


def _text() -> str:
    try:
        return RESULTS.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{RESULTS} is not UTF-8 (byte {error.start}): save it as UTF-8, or restore it.") from error


def _updated(text: str, names: Iterable[str]) -> tuple[str, list[str]]:
    found = sections(text)
    there = [name for name in names if name in found]
    lines = text.splitlines(keepends=True)
    for name in sorted(there, key=lambda name: -found[name].first):  # from the last, so that line numbers stay
        section, table = found[name], find_table(name)
        body = markdown(table, load(table))
        if section.body.strip() and section.digest != digest(section.body) and section.body != body:
            raise Refused(_edited(section, body))
        marker = f"<!-- attn reproduce {name} begins, sha256={digest(body)} -->\n"
        lines[section.first : section.last] = [marker, body]
    return "".join(lines), there


def _edited(section: Section, body: str) -> str:
    difference = difflib.unified_diff(
        body.splitlines(), section.body.splitlines(), "what was measured", str(RESULTS), n=0, lineterm=""
    )
    return (
        f"{RESULTS} was edited by hand between the markers of {section.name}: undo that, or delete the lines between "
        "them to have them written anew. The difference:\n" + "\n".join(difference)
    )


def digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _published(cell: Cell, version: str) -> str:
    for published in cell.published:
        if published.version == version:
            return f"{published.value:g}" + (f" ({published.note})" if published.note else "")
    return NONE


def _ours(table: Table, found: Summary, gains: bool) -> list[str]:
    number = "{:.2f}" if table.unit == ERROR else "{:g}"

    def spread(low_high: Sequence[float] | None) -> str:
        return "" if low_high is None else f"{low_high[0]:.2f} – {low_high[1]:.2f}"

    value = number.format(found.value) + ("" if found.deviation is None else f" ± {number.format(found.deviation)}")
    gain = "" if found.gain is None else f"{found.gain[0]:.2f} ({spread(found.gain[1:])})"
    return [
        f"**{value}**" + "".join(f" ({note})" for note in found.notes),
        spread(found.interval),
        *([gain.replace("-", "−")] if gains else []),
        "" if found.validation is None else f"{found.validation:.2f}",
        ", ".join(map(str, found.seeds)),
        ", ".join(map(str, found.epochs)),
        "" if found.seconds is None else about(found.seconds),
        ", ".join(found.hardware),
        ", ".join(found.commits),
    ]


def _missing(table: Table, cell: Cell, gains: bool) -> list[str]:
    empty = [""] * (7 + gains)
    if isinstance(cell.how, Absent):
        return [NONE, *empty]
    if cell.lesson:
        said = "a lesson for others"
    elif isinstance(cell.how, Same):
        other, same = resolve(table, cell.how.of)
        said = f"not yet measured: `attn reproduce {other.name} --only {same.name}`"
    else:
        said = f"not yet measured: `attn reproduce {table.name} --only {cell.name}`"
    empty[-3] = "" if isinstance(cell.how, Same) else expected(cell.how)
    return [said, *empty]
