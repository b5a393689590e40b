"""What was measured, one JSON file a table: cell → list of records, most of them of one seed.

Run in a checkout, from its root, `attn reproduce` writes into the package's own folder `measured/`, which is committed;
anywhere else into outputs/reproduce/measured, which is read beside it.

1. An older record may stand for several seeds, with their mean and sample standard deviation instead of their values.
2. Seeds see the same test images. So the interval of a cell is that of its mean error over these images, each counted
   once: it says how far other images could move the number, the deviation how far other seeds do.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attn_cli
from attn_cli.config.fields import build
from attn_cli.errors import Refused
from attn_cli.files import locked, write_atomically
from attn_cli.inference.intervals import wilson
from attn_cli.papers.cells import ERROR, Table

OUTPUTS = Path("outputs") / "reproduce"  # in the current folder
PACKAGED = Path(attn_cli.__file__).resolve().parent / "papers" / "measured"


@dataclass(frozen=True)
class Record:
    """One run, or several of which only this is left. Errors and their intervals in %, times in seconds a run."""

    seeds: tuple[int, ...]  # none where nothing is drawn
    value: float  # in the unit of the table: the test error, unless it says otherwise
    deviation: float | None = None  # sample standard deviation over the seeds; None: one seed
    validation: float | None = None
    interval: tuple[float, ...] | None = None  # 95 %, over the test images
    gain: tuple[float, ...] | None = None  # points and their 95 % interval, paired; see report.GAIN
    images: int | None = None  # in the test set
    epochs: int | None = None
    seconds: float | None = None
    hardware: str = ""
    commit: str = ""
    command: str = ""
    note: str = ""

    @property
    def busy(self) -> bool:
        """Whether the machine had something else to do, so that the time says little."""
        return "busy" in self.hardware


@dataclass(frozen=True)
class Summary:
    """A cell over its seeds."""

    seeds: tuple[int, ...]
    value: float
    deviation: float | None
    validation: float | None
    interval: tuple[float, ...] | None
    gain: tuple[float, ...] | None
    epochs: tuple[int, ...]
    seconds: float | None
    hardware: tuple[str, ...]
    commits: tuple[str, ...]
    notes: tuple[str, ...]


def load(table: Table) -> dict[str, list[Record]]:
    """Records by cell. Raises Refused naming a file that is damaged or has a cell that the table has not."""
    found: dict[str, list[Record]] = {}
    for folder in dict.fromkeys((PACKAGED, writable())):
        for cell, records in _read(folder / file_name(table), table).items():
            known = found.setdefault(cell, [])
            known += [record for record in records if not {*record.seeds} & seeds(known)]
    return found


def seeds(records: Sequence[Record]) -> set[int]:
    return {seed for record in records for seed in record.seeds}


def add(table: Table, cell: str, record: Record) -> None:
    """Write a record, unless a seed of it is recorded already: then what is recorded stays."""
    folder = writable()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(table)
    with locked(folder):  # two commands may fill cells of one table
        records = _read(path, table)
        if {*record.seeds} & seeds(load(table).get(cell, [])):
            return
        records.setdefault(cell, []).append(record)
        records[cell].sort(key=lambda record: record.seeds)
        write_atomically(path, as_json(records))


def summarise(records: Sequence[Record]) -> Summary:
    """Mean and sample standard deviation over all seeds; of records of several seeds exactly as from their values. The
    time is that of records on machines that had nothing else to do, if there are any.
    """
    value: float = _mean(records, "value")
    count = sum(map(_weight, records))
    squares = sum(
        (_weight(record) - 1) * (record.deviation or 0.0) ** 2 + _weight(record) * (record.value - value) ** 2
        for record in records
    )
    interval, images = records[0].interval, {record.images for record in records}
    if len(records) > 1 or interval is None:
        (same,) = images if len(images) == 1 else (None,)
        interval = None if same is None else wilson(value / 100 * same, same)
    alone = [record for record in records if not record.busy]
    return Summary(
        seeds=tuple(sorted(seeds(records))),
        value=value,
        deviation=math.sqrt(squares / (count - 1)) if count > 1 else None,
        validation=_mean(records, "validation"),
        interval=interval,
        gain=records[0].gain if len(records) == 1 else None,
        epochs=tuple(dict.fromkeys(record.epochs for record in records if record.epochs is not None)),
        seconds=_mean(alone or records, "seconds"),
        hardware=tuple(dict.fromkeys(record.hardware for record in records if record.hardware)),
        commits=tuple(dict.fromkeys(record.commit for record in records if record.commit)),
        notes=tuple(dict.fromkeys(record.note for record in records if record.note)),
    )


def as_json(records: dict[str, list[Record]]) -> str:
    """One line a record, without what it leaves at the default, so that a new one is one line of a diff."""
    defaults = {field.name: field.default for field in dataclasses.fields(Record)}
    cells = []
    for cell, found in records.items():
        lines = [
            json.dumps({k: v for k, v in dataclasses.asdict(record).items() if v != defaults[k]}, ensure_ascii=False)
            for record in found
        ]
        cells.append(f"  {json.dumps(cell)}: [\n    " + ",\n    ".join(lines) + "\n  ]")
    return "{\n" + ",\n".join(cells) + "\n}\n"


def writable() -> Path:
    """The folder that records are written to."""
    return PACKAGED if PACKAGED.parent.parent.parent == Path.cwd() else OUTPUTS / "measured"


def file_name(table: Table) -> str:
    """Of its records, in each of the two folders."""
    return table.name.replace("/", "-") + ".json"


def _read(path: Path, table: Table) -> dict[str, list[Record]]:
    if not path.exists():
        return {}
    remedy = f"restore {path}, or correct it"
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} is not readable as JSON ({error}): restore it.") from error
    if not isinstance(values, dict) or not all(isinstance(records, list) for records in values.values()):
        raise Refused(f"{path} must map the cells of {table.name} to lists of records: {remedy}.")
    unknown = sorted(values.keys() - {cell.name for cell in table.cells})
    if unknown:
        raise Refused(f"{path} has records of {unknown[0]}, which is not a cell of {table.name}: {remedy}.")
    try:
        found = {cell: [_record(record, cell, table.unit) for record in records] for cell, records in values.items()}
    except Refused as error:
        raise Refused(f"{path}: {error}") from error
    for cell, records in found.items():
        drawn = [seed for record in records for seed in record.seeds]
        if twice := sorted({seed for seed in drawn if drawn.count(seed) > 1}):
            raise Refused(f"{path} has two records of seed {twice[0]} of {cell}: {remedy}.")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that stands there twice the library takes the last without a word."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands there twice")
    return values


def _record(values: Any, cell: str, unit: str) -> Record:
    if not isinstance(values, dict) or not {"seeds", "value"} <= values.keys():
        raise Refused(f"a record of {cell} needs seeds and value, not {values!r}.")
    record = build(Record, values, cell)
    for name, length in (("interval", 2), ("gain", 3)):
        numbers = getattr(record, name)
        if numbers is not None and len(numbers) != length:
            raise Refused(f"{cell}.{name} must be {length} numbers, not {list(numbers)}.")
    highest = 100 if unit == ERROR else math.inf
    for name in ("value", "validation"):
        number = getattr(record, name)
        if number is not None and not 0 <= number <= highest:
            raise Refused(f"{cell}.{name}={number} cannot be a {unit}.")
    if record.interval is not None and not record.interval[0] <= record.interval[1]:
        raise Refused(f"{cell}.interval must be two numbers that rise, not {list(record.interval)}.")
    if record.images is not None and record.images < 1 or any(seed < 0 for seed in record.seeds):
        raise Refused(f"{cell}: images must be above 0, and no seed below it.")
    if any(mark in text for text in (record.hardware, record.commit, record.note) for mark in "|\n"):
        raise Refused(f"{cell}: hardware, commit and note go into one cell of a table, without | and line ends.")
    return record


def _weight(record: Record) -> int:
    return max(1, len(record.seeds))


def _mean(records: Sequence[Record], name: str) -> Any:
    """Over the seeds of the records that have it."""
    pairs = [(_weight(record), getattr(record, name)) for record in records if getattr(record, name) is not None]
    return sum(n * value for n, value in pairs) / sum(n for n, _ in pairs) if pairs else None
