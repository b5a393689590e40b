"""Learning curves of a run, validation errors of several, and error against the number of averaged paths or glimpses.

Drawn with figure objects and the Agg canvas: no pyplot, no window, no state shared between callers.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from attn_cli.errors import Refused
from attn_cli.files import write_atomically

TRAIN, VALIDATION, REWARD, BEST = "#8a929e", "#1f6fd6", "#c77d0a", "#28a050"
COLUMNS = ("train_loss", "reward", "train_error", "val_error")

Series = dict[float, float]  # epoch → value


def learning_curves(metrics_csv: Path | str, path: Path | str) -> Path:
    """Loss, reward and errors (in %) against the epoch, with the best validation error marked, as a PNG.

    Reads a run's metrics.csv as `read_metrics` does; columns that are not there have no curve. Returns the path.
    Errors: `Refused` if the file cannot be read.
    """
    return write_atomically(path, _png(learning_figure(read_metrics(metrics_csv))))


def learning_figure(series: Mapping[str, Series]) -> Figure:
    """The drawing of `learning_curves`: one panel each for loss, reward and errors, those that have values."""
    errors = [name for name in ("train_error", "val_error") if series[name]]
    panels = [[name] for name in ("train_loss", "reward") if series[name]] + ([errors] if errors else [])
    figure = new_figure(max(1, len(panels)))
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    if not panels:
        axes[0].text(0.5, 0.5, "no epoch has finished", ha="center", va="center")
        axes[0].set_axis_off()
    for ax, names in zip(axes, panels, strict=False):
        _learning_panel(ax, names, series)
    return figure


def read_metrics(metrics_csv: Path | str) -> dict[str, Series]:
    """Train_loss, reward, train_error and val_error by epoch; a column that is missing or empty gives an empty series.

    Empty, non-numeric and non-finite cells are left out. Attempts may follow one another: a header line in the middle
    starts a new one; where the epoch goes back, the run was resumed there, and what went before it beyond that epoch no
    longer counts.
    Errors: `Refused` if the file cannot be read.
    """
    try:
        text = Path(metrics_csv).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        reason = error.strerror or str(error)
        raise Refused(f"{metrics_csv} cannot be read ({reason}); name a run folder that has a metrics.csv.") from error
    series: dict[str, Series] = {name: {} for name in COLUMNS}
    header: list[str] = []
    latest = -math.inf
    for cells in csv.reader(text.replace("\0", "").splitlines()):
        cells = [cell.strip() for cell in cells]
        if "epoch" in cells:
            header = cells
            continue
        row = {name: value for name, cell in zip(header, cells, strict=False) if (value := _number(cell)) is not None}
        if "epoch" not in row:
            continue
        epoch = row["epoch"]
        if epoch < latest:
            series = {name: {e: v for e, v in values.items() if e < epoch} for name, values in series.items()}
        latest = epoch
        for name in COLUMNS:
            if name in row:
                series[name][epoch] = row[name]
    return series


def comparison(runs: Mapping[str, Path | str], path: Path | str) -> Path:
    """Validation errors in % of several runs against the epoch, as a PNG; `runs` has the metrics.csv of each by label.
    Returns the path. Errors: `Refused` if a file cannot be read.
    """
    return write_atomically(path, _png(comparison_figure({label: read_metrics(file) for label, file in runs.items()})))


def comparison_figure(runs: Mapping[str, Mapping[str, Series]]) -> Figure:
    """The drawing of `comparison`: a curve for each run, the best at the top of the legend."""
    figure = new_figure(2)
    ax = figure.subplots()
    found = {label: series["val_error"] for label, series in runs.items() if series["val_error"]}
    shades = colormaps["viridis"].resampled(max(2, len(found)))
    for i, label in enumerate(sorted(found, key=lambda label: min(found[label].values()))):
        epochs = sorted(found[label])
        values = [found[label][epoch] for epoch in epochs]
        ax.plot(epochs, values, color=shades(i), label=f"{label}  (best {min(values):.2f} %)", linewidth=1.6)
    _dress(ax, "validation error", "epoch", "error (%)")
    scale_errors(ax, [value for values in found.values() for value in values.values()])
    if found:
        for text in ax.legend(frameon=False, fontsize=8).get_texts():
            text.set_parse_math(False)  # dollars in a value are no formula
    return figure


def mc_curve(rows: Sequence[Mapping[str, Any]], path: Path | str) -> Path:
    """Error in % against M, the number of averaged paths, with bars of one standard error, as a PNG.

    Each row has `mc_samples`, `error` and, unless it is unknown, `standard_error`. Returns the path.
    """
    return write_atomically(path, _png(mc_figure(rows)))


def mc_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The drawing of `mc_curve`."""
    rows = sorted(rows, key=lambda row: row["mc_samples"])
    samples = [int(row["mc_samples"]) for row in rows]
    errors = [float(row["error"]) for row in rows]
    spreads = [float(row.get("standard_error") or 0.0) for row in rows]
    figure = new_figure(1)
    ax = figure.subplots()
    ax.errorbar(samples, errors, yerr=spreads, color=VALIDATION, ecolor=TRAIN, marker="o", markersize=4, capsize=3)
    _dress(ax, "error against the number of paths", "paths averaged, M", "error (%)")
    ax.margins(x=0.05, y=0.15)
    return figure


def glimpse_curve(rows: Sequence[Mapping[str, Any]], path: Path | str) -> Path:
    """Test error in % against the mean number of glimpses, models that stop by themselves beside those that do not, as
    a PNG. Rows as `tables.sweep_summary` makes them; `mean_glimpses` None: always `glimpses`. Returns the path.
    """
    return write_atomically(path, _png(glimpse_figure(rows)))


def glimpse_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The drawing of `glimpse_curve`, with bars of one standard deviation over the seeds."""
    figure = new_figure(1)
    ax = figure.subplots()
    measured = [row for row in rows if row["test_error"] is not None and row["glimpses"] is not None]
    series = {
        "stops by itself": ("mean_glimpses", VALIDATION, [r for r in measured if r["mean_glimpses"] is not None]),
        "always all glimpses": ("glimpses", TRAIN, [r for r in measured if r["mean_glimpses"] is None]),
    }
    for label, (key, colour, own) in series.items():
        if own:
            points = sorted((row[key], row["test_error"], row["test_error_std"] or 0.0) for row in own)
            x, y, spread = zip(*points, strict=True)
            ax.errorbar(x, y, yerr=spread, color=colour, marker="o", markersize=4, capsize=3, label=label)
    _dress(ax, "error against glimpses", "mean glimpses per image", "test error (%)")
    ax.margins(x=0.05, y=0.15)
    if ax.lines:
        ax.legend(frameon=False, fontsize=8)
    return figure


def cost_curves(rows: Sequence[Mapping[str, Any]], path: Path | str) -> Path:
    """Multiply-adds and, where it was measured, time of one image against its side, a curve for each model, as a PNG.

    Each row has `model`, `side` in pixels, `multiply_adds` and `seconds` (None: not measured). Returns the path.
    """
    return write_atomically(path, _png(cost_figure(rows)))


def cost_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The drawing of `cost_curves`."""
    figure = new_figure(2)
    counted, timed = figure.subplots(1, 2)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for ax, key, scale in ((counted, "multiply_adds", 1e-9), (timed, "seconds", 1e3)):
        for model, colour in zip(models, (VALIDATION, REWARD), strict=False):
            points = [(row["side"], row[key] * scale) for row in rows if row["model"] == model and row[key] is not None]
            sides, values = [side for side, _ in points], [value for _, value in points]
            ax.plot(sides, values, color=colour, label=model, marker="o", markersize=3.5, linewidth=1.6)
    _dress(counted, "multiply-adds of an image", "side of the image (pixels)", "G")
    _dress(timed, "time of an image", "side of the image (pixels)", "ms")
    for ax in (counted, timed):
        ax.set_xscale("log")
        ax.set_yscale("log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        ax.set_xticks([28, 54, 110, 256, 1000])
    counted.legend(frameon=False, fontsize=9)
    return figure


def _learning_panel(ax: Axes, names: list[str], series: Mapping[str, Series]) -> None:
    labels = {"train_loss": "training loss", "reward": "reward", "train_error": "training", "val_error": "validation"}
    colours = {"train_loss": TRAIN, "reward": REWARD, "train_error": TRAIN, "val_error": VALIDATION}
    shown: list[float] = []
    for name in names:
        epochs = sorted(series[name])
        values = [series[name][epoch] for epoch in epochs]
        shown += values
        marker = "o" if len(epochs) <= 20 else ""
        ax.plot(epochs, values, color=colours[name], label=labels[name], marker=marker, markersize=3.5, linewidth=1.6)
    is_error = names[-1].endswith("_error")
    _dress(ax, "error" if is_error else labels[names[0]], "epoch", "error (%)" if is_error else "")
    if is_error:
        scale_errors(ax, shown)
    if "val_error" in names:
        validation = series["val_error"]
        best = min(validation, key=lambda epoch: (validation[epoch], epoch))
        label = f"best {validation[best]:.2f} %, epoch {best:g}"
        ax.plot([best], [validation[best]], "o", color=BEST, markersize=7, zorder=5, label=label)
    if is_error:
        ax.legend(frameon=False, fontsize=9)


def scale_errors(ax: Axes, shown: list[float]) -> None:
    """A logarithmic axis for errors (in %) that differ by much."""
    if shown and min(shown) > 0 and max(shown) > 8 * min(shown):
        ax.set_yscale("log")  # the last tenths of a percent matter as much as the first tens
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _dress(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=11)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def new_figure(panels: int, lines: int = 1) -> Figure:
    """An empty figure for so many panels side by side, and lines of them."""
    figure = Figure(figsize=(1.2 + 3.8 * panels, 3.4 * lines), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
