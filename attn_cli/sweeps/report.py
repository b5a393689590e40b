"""What a sweep comes to: the table, results.csv, pictures and best.txt, the command that repeats the best.

table         mean ± standard deviation over the seeds of each setting, the best validation error first
results.csv   a line per run: one per job, or one per seed of `trainer.parallel_seeds`
curves.png    the validation error of each job against the epoch
axes.png      the validation error against each swept key, a point per run
glimpses.png  the test error against the mean number of glimpses, if a model stopped by itself
best.txt      the best setting is the one at the top of the table, its job the one with the lowest validation error;
              the test set chooses nothing
"""

from __future__ import annotations

import csv
import io
import math
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attn_cli import files
from attn_cli.errors import Refused, Terminated
from attn_cli.sweeps import plan
from attn_cli.sweeps.jobs import RESULTS, Job, folders, name_killed, read_jobs


def finish(folder: Path, ended: BaseException | None = None, new: bool = False) -> int:
    """Prints the table, writes the files and returns the sweep's exit code: 0 only if every job finished.

    `ended` is what broke the sweep off, if anything did; it is raised again if no job had begun, an error of a launcher
    as Refused. The folder of a `new` sweep that an error broke off before its first job is removed.
    """
    from attn_cli.pictures import curves, sweep_axes, tables  # rich and matplotlib take their time to import

    name_killed(folder)
    jobs = read_jobs(folder)
    if not jobs:
        broken = ended if isinstance(ended, Exception) else None
        _discard_empty(folder, {"multirun.yaml", plan.NAME} if new and broken else {"multirun.yaml"})
        if broken and not isinstance(broken, Refused):  # such as no Slurm on this machine
            raise Refused(f"The sweep broke off before its first job: {_reason(broken)}") from broken
        raise ended or Refused("The sweep has no jobs.")
    sweep = plan.read(folder) if (folder / plan.NAME).is_file() else None
    rows = table_rows(jobs)
    rows = [{**row, "overrides": {key: row["overrides"].get(key, "") for key in varying(rows)}} for row in rows]
    tables.show(tables.sweep_table(rows))
    write_results(folder / "results.csv", jobs)
    metrics: dict[str, Path] = {}
    for row in rows:
        name = " ".join(f"{key}={value}" for key, value in row["overrides"].items())
        found = [path for run in row["runs"] if (path := run / "metrics.csv").is_file()]
        metrics |= {f"{name} {path.parent.name}" if len(found) > 1 else name: path for path in found}
    if metrics:
        curves.comparison(metrics, folder / "curves.png")
    if sweep_axes.keys(rows):
        sweep_axes.draw(rows, folder / "axes.png")
    settings = tables.sweep_summary(rows)
    if any(None not in (row["mean_glimpses"], row["glimpses"]) for row in settings):  # attn eval tells no glimpses
        curves.glimpse_curve(settings, folder / "glimpses.png")
    if sweep is not None and (command := best_command(sweep, jobs)) is not None:
        files.write_atomically(folder / "best.txt", command + "\n")
        print(f"Best by validation error: {command}")
    finished = sum(job["status"] == "finished" for job in jobs)
    total = len(jobs) if sweep is None else sweep.total
    if isinstance(ended, Exception):
        print(f"The sweep broke off: {_reason(ended)}", file=sys.stderr)
    if finished < total:
        print(f"{total - finished} of {total} jobs did not finish; their status files tell why.", file=sys.stderr)
        if sweep is not None:
            again = shlex.join(["attn", sweep.command, "-m", f"{plan.KEY}={folder}"])
            print(f"Run what is missing: {again}", file=sys.stderr)
    print(f"Sweep folder: {folder}")
    if isinstance(ended, KeyboardInterrupt):
        return 143 if isinstance(ended, Terminated) else 130
    if isinstance(ended, SystemExit) and isinstance(ended.code, int) and ended.code:
        return ended.code
    return 1 if finished < total or ended else 0


def _reason(ended: Exception) -> str:
    """What broke a sweep off, in one line; that of a library may have many."""
    return str(ended) if isinstance(ended, Refused) else f"{type(ended).__name__}: {ended}".splitlines()[0]


def best_command(sweep: plan.Plan, jobs: Sequence[Job]) -> str | None:
    """The command that repeats the best job; None if no job has a validation error.

    The number of threads is part of it: on a CPU the same number repeats a run bit by bit.
    """
    from attn_cli.pictures.tables import sweep_summary

    settings = [row for row in sweep_summary(table_rows(jobs)) if row["val_error"] is not None]
    if not settings:
        return None
    of_best = [job for job in jobs if _setting(job) == settings[0]["overrides"]]
    job = min(of_best, key=lambda job: _rank((job.get("result") or {}).get("val_error")))
    threads = (job.get("result") or {}).get("threads")
    given = threads is None or any("threads=" in word for word in job["overrides"])
    own = [] if given else [f"{'trainer.' if sweep.command == 'train' else ''}threads={threads}"]
    return shlex.join(["attn", sweep.command, *sweep.flags, *job["overrides"], *own])


def table_rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Jobs as `pictures.tables.sweep_table` wants them: overrides as key → value. A job that trained several seeds
    together has a row for each that finished, and one for itself where others did not.
    """
    rows = []
    for job in jobs:
        overrides = dict(_pair(override) for override in job["overrides"])
        result = job.get("result") or {}
        row = {
            "job": job["job"],
            "overrides": overrides,
            **{key: result.get(key) for key in (*RESULTS, "glimpses")},
            "seconds": result.get("seconds", job.get("seconds")),
            "status": job["status"],
            "run": job.get("run", ""),
            "runs": folders(job),
            "message": job.get("message", ""),
        }
        each = [
            {**row, **run, "overrides": {**overrides, "seed": str(run["seed"])}, "runs": [Path(run["run"])]}
            for run in result.get("each", ())
        ]
        if each and job["status"] != "finished":
            each = [{**run, "status": "finished", "message": ""} for run in each]
            each.append({**row, **dict.fromkeys(RESULTS), "runs": []})
        rows += each or [row]
    return rows


def varying(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that do not have the same value in every row."""
    keys = dict.fromkeys(key for row in rows for key in row["overrides"])
    return [key for key in keys if len({row["overrides"].get(key) for row in rows}) > 1]


def write_results(path: Path, jobs: Sequence[Job]) -> None:
    """results.csv: a line per run, best validation error first, those without one last."""
    rows = sorted(table_rows(jobs), key=lambda row: _rank(row["val_error"]))
    keys = list(dict.fromkeys(key for row in rows for key in row["overrides"] if key != "run"))  # it is a column anyway
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["job", "status", *keys, *RESULTS, "run", "message"])
    for row in rows:
        values = [row["overrides"].get(key, "") for key in keys]
        measured = ["" if row[key] is None else row[key] for key in RESULTS]
        run = row["run"] or row["overrides"].get("run", "")
        table.writerow([row["job"], row["status"], *values, *measured, run, row["message"]])
    files.write_atomically(path, text.getvalue())


def _discard_empty(folder: Path, worthless: set[str]) -> None:
    """Removes the folder of a sweep without jobs, if nothing but `worthless` files is in it: sweepers of others make it
    before they know that all compose.
    """
    if os.path.isdir(folder) and {path.name for path in folder.iterdir()} <= worthless:
        shutil.rmtree(folder)
        for parent in (folder.parent, folder.parent.parent):
            if not any(parent.iterdir()):
                parent.rmdir()


def _setting(job: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in map(_pair, job["overrides"]) if key != "seed"}


def _pair(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value


def _rank(value: Any) -> tuple[bool, float]:
    missing = value is None or not math.isfinite(value)
    return missing, 0.0 if missing else float(value)
