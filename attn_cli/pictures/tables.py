"""Tables of results, runs, averaging, sweeps and papers: rich on a terminal, plain aligned text elsewhere.

The functions are pure: rows in, table out. Missing values show as "–", numbers are errors in % as in the papers.
"""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from statistics import fmean, stdev
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
MISSING = "–"
_ASCII = str.maketrans({"±": "+/-", MISSING: "-", "×": "x", "µ": "u"})
_WIDE = 10_000  # characters; no table needs more
STATUS_STYLES = {
    "finished": "green",
    "running": "blue",
    "failed": "red",
    "interrupted": "yellow",
    "terminated": "yellow",
}

# result.json: key → what a person reads
RESULT_NAMES = {
    "run": "run",
    "data": "data",
    "model": "model",
    "glimpses": "glimpses",
    "size": "glimpse size",
    "scales": "scales",
    "epochs": "epochs",
    "seed": "seed",
    "learning_rate": "learning rate",
    "val_error": "validation error",
    "test_error": "test error",
    "mean_glimpses": "glimpses used, mean",
    "caught": "caught",
    "players": "caught by other players",
    "mc_samples": "paths averaged",
    "mask_zeros": "zeros of the masks",
    "mean_mask": "mean of the masks",
    "mislocalised_errors": "not looked at",
    "iou": "overlap with the object",
    "whole_image_iou": "of the whole image",
    "mean_magnification": "magnification, mean",
    "gaze_on_target": "gaze on the object",
    "gaze_on_target_by_frame": "by frame",
    "centre_on_target": "of a gaze in the centre",
    "random_on_target": "of a random gaze",
    "seconds": "time",
    "trained_together": "runs trained together",
    "images_per_second": "images per second",
    "frames": "frames",
    "frames_per_second": "frames per second",
    "device": "device",
    "threads": "threads",
    "commit": "commit",
    "versions": "versions",
}


def result_table(result: Row) -> Table:
    """What result.json or an evaluation holds, errors with their 95 % interval and their deviation over repeats.

    Other plain values follow under their keys; digests are for machines.
    """
    table = titled("Result", ["", ""], numeric=())
    table.show_header = False
    told = {*RESULT_NAMES, "val_error_deviation", "test_error_deviation", "digest"}
    others = [key for key in result if key not in told and isinstance(result[key], str | int | float)]
    for key in [*RESULT_NAMES, *others]:
        value = result.get(key)
        if value is None:
            continue
        if key in ("val_error", "test_error"):
            text = f"{error(value)} %"
            interval = result.get(f"{key}_interval")
            if interval:
                text += f"  (95 % interval {error(interval[0])} to {error(interval[1])})"
            if result.get("repeats", 1) > 1:
                text += f"  ± {error(result.get(f'{key}_deviation'))} over {result['repeats']} repeats"
        elif key == "seconds":
            text = duration(value)
        elif key == "caught":
            text = f"{error(value)} %"
        elif key == "players":
            text = ", ".join(f"{name} {error(share)} %" for name, share in value.items())
        elif key in ("images_per_second", "frames", "frames_per_second"):
            text = f"{float(value):,.0f}"
        elif key == "mc_samples":
            text = str(value) if value else "the mean-location path"
        elif key == "gain":
            low, high = result["gain_interval"]
            text = f"{value:.2f} points  (95 % interval {low:.2f} to {high:.2f}, paired)"
        elif key == "mask_zeros":
            text = " ".join(f"{share:.1f}" for share in value) + " %, by glimpse"
        elif key == "gaze_on_target_by_frame":
            text = " ".join(MISSING if share is None else f"{share:.0f}" for share in value) + " %"
        elif key in ("gaze_on_target", "centre_on_target", "random_on_target"):
            text = f"{value:.1f} % of the frames"
        elif key == "mean_mask":
            text = " ".join(f"{mean:.2f}" for mean in value) + ", by glimpse"
        elif key == "mean_magnification":
            text = " ".join(f"{mean:.2f}" for mean in value) + " pixels a cell, by glimpse"
        elif key == "mislocalised_errors":
            text = f"{value:.1f} % of the errors"
        elif key in ("iou", "whole_image_iou"):
            text = f"{value:.3f} (intersection over union)"
        elif key == "versions":
            text = ", ".join(f"{name} {version}" for name, version in value.items())
        else:
            text = plain(value)
        style = "bold" if key == "test_error" else ""
        table.add_row(Text(RESULT_NAMES.get(key, key), style="dim"), Text(text, style=style))
    return table


def runs_table(rows: Iterable[Row]) -> Table:
    """`run`, `data`, `model`, `glimpses`, `seed`, `learning_rate`, `val_error`, `test_error`, `seconds` and `status` of
    each run, in this order.
    """
    names = ["run", "data", "model", "glimpses", "seed", "rate", "val %", "test %", "time", "status"]
    table = titled("Runs", names, numeric=names[3:9])
    for row in rows:
        status = plain(row.get("status"))
        table.add_row(
            *(Text(plain(row.get(key))) for key in ("run", "data", "model", "glimpses", "seed", "learning_rate")),
            Text(error(row.get("val_error"))),
            Text(error(row.get("test_error"))),
            Text(duration(row.get("seconds"))),
            Text(status, style=STATUS_STYLES.get(status, "")),
        )
    return table


def mc_table(rows: Iterable[Row]) -> Table:
    """Error against M: rows of `mc_samples`, `error` and, if known, `standard_error`; the lowest error is bold."""
    rows = list(rows)
    names = ["M", "error %", "standard error"]
    table = titled("Averaging over M paths", names, numeric=names)
    lowest = min((row["error"] for row in rows), default=None)
    for row in rows:
        style = "bold" if row["error"] == lowest else ""
        cells = [str(row["mc_samples"]), error(row["error"]), error(row.get("standard_error"))]
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return table


def sweep_table(rows: Iterable[Row]) -> Table:
    """Mean ± standard deviation over the seeds of each setting, best validation error first; see `sweep_summary`."""
    summary = sweep_summary(rows)
    keys = list(dict.fromkeys(key for row in summary for key in row["overrides"]))
    stops = any(row["mean_glimpses"] is not None for row in summary)
    numeric = ["val %", "test %", *(["mean glimpses"] if stops else []), "seeds", "time"]
    table = titled("Sweep", [*keys, *numeric, "status"], numeric=numeric)
    for row in summary:
        status = row["status"]
        table.add_row(
            *(Text(plain(row["overrides"].get(key))) for key in keys),
            Text(_spread(row["val_error"], row["val_error_std"])),
            Text(_spread(row["test_error"], row["test_error_std"])),
            *([Text(error(row["mean_glimpses"]))] if stops else []),
            Text(str(row["seeds"])),
            Text(duration(row["seconds"])),
            Text(status, style=STATUS_STYLES.get(status, "red")),
        )
    return table


def sweep_summary(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One row per setting, runs that differ only in their seed taken together; best mean validation error first.

    A run is `overrides` (key → value, `seed` among them), `val_error`, `test_error`, `seconds`, `status`, and if known
    `glimpses` and, of a model that stops by itself, `mean_glimpses`, which a setting has as means. A setting is
    `overrides` (without seed), `seeds` (how many have an error; runs of one seed count once), `val_error` and
    `test_error` (means) and their `_std` (sample standard deviation, None below two seeds), `seconds` (mean), `status`
    (those of its runs, counted). Settings without any validation error come last.
    """
    settings: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        key = tuple((name, str(value)) for name, value in row["overrides"].items() if name != "seed")
        settings.setdefault(key, []).append(row)
    summary = []
    for key, jobs in settings.items():
        line: dict[str, Any] = {"overrides": dict(key)}
        known = [job for job in jobs if _measured(job.get("val_error")) or _measured(job.get("test_error"))]
        seeds = {job["overrides"].get("seed"): job for job in reversed(known)}
        for name in ("val_error", "test_error"):
            values = [float(job[name]) for job in seeds.values() if _measured(job.get(name))]
            line[name] = fmean(values) if values else None
            line[f"{name}_std"] = stdev(values) if len(values) > 1 else None
        line["seeds"] = len(seeds)
        for name in ("glimpses", "mean_glimpses"):
            counts = [float(job[name]) for job in jobs if job.get(name) is not None]
            line[name] = fmean(counts) if counts else None
        times = [float(job["seconds"]) for job in jobs if job.get("seconds") is not None]
        line["seconds"] = fmean(times) if times else None
        line["status"] = _statuses(jobs)
        summary.append(line)
    return sorted(summary, key=lambda line: (line["val_error"] is None, line["val_error"] or 0.0))


def paper_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A paper's table beside ours; the marks of Markdown, ` and **, are left out, and ** makes an item bold."""
    table = titled(title, header, numeric=())
    for row in rows:
        table.add_row(*(Text(re.sub(r"`|\*\*", "", item), style="bold" if "**" in item else "") for item in row))
    return table


def show(table: Table, file: TextIO | None = None) -> None:
    """Print to a terminal with rich; to a pipe or file as plain text without colours. Never wrapped or cropped:
    where the terminal is narrower than the table, its own line breaks are easier to read than letters in columns.
    """
    file = file or sys.stdout
    console = Console(file=file)
    if console.is_terminal:
        natural = console.measure(table, options=console.options.update(max_width=_WIDE)).maximum
        Console(file=file, width=max(console.width, natural)).print(table, soft_wrap=True)
        return
    text = as_text(table)
    encoding = getattr(file, "encoding", None) or "utf-8"
    if text != text.encode(encoding, "replace").decode(encoding):
        text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    file.write(text)


def as_text(table: Table) -> str:
    """The table as plain text with ASCII rules, as wide as its content needs."""
    console = Console(file=io.StringIO(), width=_WIDE, color_system=None, force_terminal=False, legacy_windows=False)
    simple = copy(table)
    simple.box, simple.show_edge = box.ASCII2, False
    with console.capture() as capture:
        console.print(simple, soft_wrap=True)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def error(value: Any) -> str:
    """An error in % with two decimals."""
    return MISSING if value is None else f"{float(value):.2f}"


def duration(seconds: Any) -> str:
    """42.0 s, 3 min 12 s, 1 h 02 min."""
    if seconds is None:
        return MISSING
    whole = round(float(seconds))
    if whole < 60:
        return f"{float(seconds):.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(float(seconds) / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def titled(title: str, columns: Sequence[str], numeric: Sequence[str]) -> Table:
    """An empty table with these columns, the numeric ones aligned to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(Text(name), justify="right" if name in numeric else "left", overflow="fold")
    return table


def plain(value: Any) -> str:
    """A value as a person reads it."""
    if value is None or value == "":
        return MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


def _spread(mean: float | None, deviation: float | None) -> str:
    return error(mean) if deviation is None else f"{error(mean)} ± {error(deviation)}"


def _measured(value: Any) -> bool:
    """A diverged job's NaN must not rank a setting."""
    return value is not None and math.isfinite(value)


def _statuses(jobs: Sequence[Row]) -> str:
    """ "finished", or "2 finished, 1 failed" where they differ."""
    counts: dict[str, int] = {}
    for job in jobs:
        status = plain(job.get("status"))
        counts[status] = counts.get(status, 0) + 1
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {status}" for status, count in counts.items())
