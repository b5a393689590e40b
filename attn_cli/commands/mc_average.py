"""`attn mc-average`: error against the number of averaged paths, as a table and a plot."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from attn_cli.commands.file_names import changes
from attn_cli.config import command_sections
from attn_cli.devices import choose_device, prepare_cpu, within_memory
from attn_cli.files import make_folder, write_atomically
from attn_cli.inference.monte_carlo import evaluate
from attn_cli.learning.restore import check_sampling, restore
from attn_cli.pictures import tables
from attn_cli.pictures.curves import mc_curve
from attn_cli.runs import latest, open_run


@within_memory
def run(config: command_sections.McAverage) -> list[dict[str, Any]]:
    """Evaluate once with the largest M; the first 1, 2, … M of the same paths give every row."""
    prepare_cpu(config.threads)
    found = open_run(config.run) if config.run else latest(config.outputs)
    restored = restore(found, config.checkpoint, choose_device(config.device))
    check_sampling(restored, "attn mc-average")
    folder = make_folder(Path(config.output or found.path), "output")  # before what takes long
    images, labels = restored.data.fixed(config.split)
    outcome = evaluate(
        restored.model,
        images,
        labels,
        samples=config.max_samples,
        greedy=False,
        average=config.average,
        repeats=config.repeats,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    rows = [
        {
            "mc_samples": m,
            "error": outcome.error(m),
            "standard_error": outcome.deviation(m) / config.repeats**0.5,  # over the independent draws of the paths
            "low": outcome.interval(m)[0],
            "high": outcome.interval(m)[1],
        }
        for m in range(1, config.max_samples + 1)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    settings = changes(config, "checkpoint", "max_samples", "average", "seed", "repeats")
    table = folder / ("-".join(["mc-average", config.split, *settings]) + ".csv")
    try:
        write_atomically(table, text.getvalue())
        picture = mc_curve(rows, table.with_suffix(".png"))
    finally:  # also where the disk is full
        tables.show(tables.mc_table(rows))
    print(f"Written to {table} and {picture}")
    return rows
