"""Validation error of a sweep's runs against each key that was swept: which of them matter, and where the best lies.

A panel per key, a point per run, the best one green, the means of values that occur more than once in grey. Numbers lie
where they are, on a logarithmic axis if they span more than a decade; anything else stands side by side. No pyplot.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from attn_cli.files import write_atomically
from attn_cli.pictures.curves import BEST, TRAIN, VALIDATION, new_figure, scale_errors

DECADE = 10
COLUMNS = 4  # panels side by side
LONGEST = 24  # characters of a value, such as a run folder; more would leave no room for the points

Row = Mapping[str, Any]  # "overrides" (key → value as text), "val_error" in % or None


def draw(rows: Sequence[Row], path: Path | str) -> Path:
    """The picture as a PNG; returns the path. Errors: `Refused` if the file cannot be written."""
    buffer = io.BytesIO()
    axes_figure(rows).savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def keys(rows: Sequence[Row]) -> list[str]:
    """Keys with more than one value among the runs that have a validation error."""
    measured = _measured(rows)
    found = dict.fromkeys(key for row in measured for key in row["overrides"])
    return [key for key in found if len({row["overrides"].get(key) for row in measured}) > 1]


def axes_figure(rows: Sequence[Row]) -> Figure:
    """The drawing of `draw`; the run with the lowest error is marked in every panel."""
    swept, measured = keys(rows), _measured(rows)
    columns = min(COLUMNS, len(swept))
    lines = math.ceil(len(swept) / columns)
    figure = new_figure(columns, lines)
    panels = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for ax, key in zip(panels, swept, strict=False):
        _panel(ax, key, [row for row in measured if key in row["overrides"]])
    for ax in panels[len(swept) :]:
        ax.set_axis_off()
    return figure


def _panel(ax: Axes, key: str, rows: Sequence[Row]) -> None:
    names = [str(row["overrides"][key]) for row in rows]
    errors = [float(row["val_error"]) for row in rows]
    numbers = [_number(name) for name in names]
    if None in numbers:
        order = list(dict.fromkeys(names))
        places: list[float] = [order.index(name) for name in names]
        ax.set_xticks(range(len(order)), map(_short, order), parse_math=False)
        if len("".join(order)) > 24:  # each ends below its place
            ax.tick_params(axis="x", rotation=30)
            for label in ax.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        ax.margins(x=0.2)
    else:
        places = [number for number in numbers if number is not None]
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=all(place == int(place) for place in places)))
        if min(places) > 0 and max(places) > DECADE * min(places):
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.tick_params(axis="x", rotation=30)
    means = {
        place: fmean(e for p, e in zip(places, errors, strict=True) if p == place) for place in sorted(set(places))
    }
    if len(means) < len(places):
        style = "_" if None in numbers else "-"  # names have no order that a line could follow
        ax.plot(list(means), list(means.values()), style, color=TRAIN, markersize=22, linewidth=1.2, zorder=1)
    ax.plot(places, errors, "o", color=VALIDATION, markersize=4.5, alpha=0.75)
    best = min(range(len(errors)), key=errors.__getitem__)
    ax.plot([places[best]], [errors[best]], "o", color=BEST, markersize=8, zorder=5)
    ax.set_xlabel(key)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    scale_errors(ax, errors)
    if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        ax.set_ylabel("validation error (%)")


def _short(name: str) -> str:
    """Long names tend to differ at their end."""
    return name if len(name) <= LONGEST else f"{name[:6]}…{name[7 - LONGEST :]}"


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("val_error") is not None and math.isfinite(row["val_error"])]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
