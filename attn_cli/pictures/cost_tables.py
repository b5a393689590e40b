"""Tables of speed and cost, as `tables` has them of results: rows in, table out."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from attn_cli.pictures.tables import MISSING, Row, plain, titled

BENCH_FORMATS = {
    "step_ms": "{:.1f}",
    "steps_per_second": "{:,.1f}",
    "images_per_second": "{:,.0f}",
    "sgemm_share": "{:.2f}",
    "ratio_to_reference": "{:.1f}",
    "lightning_share": "{:.1%}",
    "glimpse_us": "{:.2f}",
    "grid_ratio": "{:.2f}",
    "grid_ratio_within": "{:.2f}",
    "peak_memory_mb": "{:,.0f}",
    "kernel_launches": "{:,.0f}",
    "busy_share": "{:.0%}",
    "gradient_error": "{:.1e}",
    "parallel_ratio": "{:.2f}",
}


def bench_table(rows: Iterable[Row]) -> Table:
    """Per shape: speed, share of the sgemm rate, ratio to the plain step, what Lightning adds to a step, of Gaussian
    grids the time in that of their products, memory, on a GPU kernel launches and the share of time in which it is
    busy, the relative error of a gradient in a lower precision, and the speed of several runs trained together in that
    of one after another.
    """
    rows, names = list(rows), ["shape", "compiled", "step ms", "steps/s", "images/s", "of sgemm", "× reference"]
    grids = {"grid_ratio": "grid / its products", "grid_ratio_within": "where they stand"}
    names += ["Lightning adds", "glimpse µs", *grids.values(), "peak MB"]
    optional = {
        "kernel_launches": "launches",
        "busy_share": "GPU busy",
        "gradient_error": "gradient error",
        "parallel_ratio": "× one by one",
    }
    names += optional.values()
    formats = dict(BENCH_FORMATS)
    for key, name in {**grids, **optional}.items():
        if all(row.get(key) is None for row in rows):
            names.remove(name)
            del formats[key]
    table = titled("Training step", names, numeric=names[2:])
    for row in rows:
        compiled = (
            "as graphs" if row.get("cuda_graphs") else {True: "yes", False: "no", None: MISSING}[row.get("compiled")]
        )
        table.add_row(
            Text(plain(row.get("shape"))),
            Text(compiled),
            *(Text(MISSING if row.get(key) is None else pattern.format(row[key])) for key, pattern in formats.items()),
        )
    return table


def parts_table(result: Row) -> Table:
    """The networks of a model: `name`, `multiply_adds` of a call and `calls` along a path; see commands/cost.py."""
    numeric = ["multiply-adds", "calls", "together"]
    title = f"{result['model']}, {result['data']} {result['height']}×{result['width']}"
    table = titled(title, ["part", *numeric], numeric=numeric)
    for part in result["parts"]:
        adds, calls = part["multiply_adds"], part["calls"]
        name = part["name"] + (" (once an image)" if part["shared"] else "")
        table.add_row(*(Text(cell) for cell in (name, f"{adds:,d}", f"{calls:g}", f"{round(adds * calls):,d}")))
    return table


def cost_table(result: Row) -> Table:
    """What an image costs in all, along one path or several, with one reader or two; see commands/cost.py."""
    numeric = ["paths", "parameters", "multiply-adds", "FLOPs", "multiply-adds with backward pass"]
    table = titled("One image", ["of", *numeric], numeric=numeric)
    for row in result["totals"]:
        what = row["what"] + (", forward and backward reader" if row["readers"] == 2 else "")
        numbers = (row[key] for key in ("parameters", "multiply_adds", "flops", "training_multiply_adds"))
        table.add_row(Text(what), Text(str(row["samples"])), *(Text(amount(number)) for number in numbers))
    return table


def curve_table(rows: Iterable[Row]) -> Table:
    """Cost against the size of the image, a row for each model and size."""
    numeric = ["side", "parameters", "multiply-adds", "ms an image"]
    table = titled("Cost against the size of the image", ["model", *numeric], numeric=numeric)
    for row in rows:
        seconds = row["seconds"]
        counts = (str(row["side"]), amount(row["parameters"]), amount(row["multiply_adds"]))
        time = MISSING if seconds is None else f"{1e3 * seconds:,.1f}"
        table.add_row(*(Text(cell) for cell in (row["model"], *counts, time)))
    return table


def cost_comparison(result: Row) -> Table:
    """A published table of costs beside our numbers, cell by cell; see commands/cost.py."""
    numeric = ["published", "ours"]
    table = titled(f"{result['table']} ({result['paper']})", ["of", "images", "network", *numeric, ""], numeric=numeric)
    for cell in result["cells"]:
        if not cell["reproducible"]:
            note = (
                f"ours with M = {cell['samples']}; the text names none, {cell['passes']:.1f} passes: not reproducible"
            )
        elif cell["at_most"]:
            note = "agrees" if cell["ours"] <= cell["published"] else "more"
        else:
            note = f"{100 * (cell['ours'] / cell['published'] - 1):+.0f} %"
        published = ("≤ " if cell["at_most"] else "") + f"{cell['published']:g}"
        side = f"{cell['size']}×{cell['size']}"
        texts = (cell["quantity"], side, cell["column"], published, f"{cell['ours']:.3g}", note)
        table.add_row(*(Text(text) for text in texts))
    return table


def amount(count: float) -> str:
    """A large number with three digits: 11.3 M, 0.192 G as 192 M, what rounds to 1000 M as 1 G."""
    for unit, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g}{letter}"
    return f"{count:g}"
