"""Jobs of a sweep: one status file each, whatever happens to the job; at the end a table, results.csv and curves.png.

A sweep's folder holds job-000.json, job-001.json, … and Hydra's multirun.yaml, which together tell what is done and
what is missing. A status file is {"job", "overrides", "status", "message", "run", "result", "seconds", "started",
"ended", "pid", "traceback"} with status "running", "finished", "failed", "interrupted" or "killed". One that stays
"running" belongs to a sweep that was itself killed.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from attn_cli import runs
from attn_cli.errors import Refused, Terminated

STOPPED = (130, 143)  # exit codes after Ctrl-C and SIGTERM: they end the whole sweep, any other code one job
RESULTS = ("val_error", "test_error", "seconds")


def run_job(folder: Path, number: int, overrides: Sequence[str], run: Callable[[], Any]) -> dict[str, Any] | None:
    """Runs one job and records how it ended; only a stop (Ctrl-C, SIGTERM) goes on to the caller.

    Returns the job's result, None if it failed.
    """
    path = folder / f"job-{number:03d}.json"
    record: dict[str, Any] = {
        "job": number,
        "overrides": list(overrides),
        "status": "running",
        "message": "",
        "pid": os.getpid(),
        "started": _now(),
    }
    _write(path, record)
    print(f"Sweep job {number}: {' '.join(overrides)}", flush=True)
    begin = time.monotonic()
    result: Any = None
    stop: BaseException | None = None
    try:
        result = run()
        record.update(status="finished")
        if isinstance(result, Mapping):
            record.update(run=str(result.get("run", "")), result={key: result[key] for key in RESULTS if key in result})
    except KeyboardInterrupt as error:
        record.update(status="interrupted", message="terminated" if isinstance(error, Terminated) else "interrupted")
        stop = error
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if code in STOPPED:
            stop = error
        record.update(status="interrupted" if stop else "failed", message=f"the job left with exit code {code}")
    except Refused as error:
        if error.exit_code in STOPPED:
            stop = SystemExit(error.exit_code)
        record.update(status="interrupted" if stop else "failed", message=str(error))
    except Exception as error:
        record.update(status="failed", message=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    record.update(seconds=round(time.monotonic() - begin, 3), ended=_now())
    _write(path, record)
    if record["status"] != "finished":
        print(f"Sweep job {number} {record['status']}: {record['message']}", file=sys.stderr, flush=True)
    if stop is not None:
        raise stop
    return result if isinstance(result, dict) else None


def finish(folder: Path, ended: BaseException | None = None) -> int:
    """Prints the table, writes results.csv and the validation errors of all jobs as curves.png, and returns the sweep's
    exit code: 0 only if every job finished.

    `ended` is what broke the sweep off, if anything did; it is raised again if no job had begun.
    """
    from attn_cli.pictures import curves, tables  # rich and matplotlib take their time to import

    _name_killed(folder)
    jobs = read_jobs(folder)
    if not jobs:
        _discard_empty(folder)
        raise ended or Refused("The sweep has no jobs.")
    tables.show(tables.sweep_table(table_row(job) for job in jobs))
    write_results(folder / "results.csv", jobs)
    metrics = {" ".join(job["overrides"]): Path(job["run"]) / "metrics.csv" for job in jobs if job.get("run")}
    metrics = {label: path for label, path in metrics.items() if path.is_file()}
    if metrics:
        curves.comparison(metrics, folder / "curves.png")
    unfinished = [job for job in jobs if job["status"] != "finished"]
    if isinstance(ended, Exception):
        print(f"The sweep broke off: {type(ended).__name__}: {ended}", file=sys.stderr)
    if unfinished:
        print(f"{len(unfinished)} of {len(jobs)} jobs did not finish; their status files tell why.", file=sys.stderr)
    print(f"Sweep folder: {folder}")
    if isinstance(ended, KeyboardInterrupt):
        return 143 if isinstance(ended, Terminated) else 130
    if isinstance(ended, SystemExit) and isinstance(ended.code, int) and ended.code:
        return ended.code
    return 1 if unfinished or ended else 0


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """The status files of a sweep, in the order of the jobs; raises Refused naming one that cannot be read."""
    jobs = []
    for path in sorted(folder.glob("job-*.json")):
        try:
            job = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Refused(f"{path} cannot be read ({error}); delete it to leave this job out.") from error
        if not isinstance(job, dict) or not {"job", "overrides", "status"} <= job.keys():
            raise Refused(f"{path} is not a status file of a sweep; delete it to leave this job out.")
        jobs.append(job)
    return sorted(jobs, key=lambda job: job["job"])


def table_row(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job as `pictures.tables.sweep_table` wants it: overrides as key → value."""
    result = job.get("result") or {}
    return {
        "overrides": dict(_pair(override) for override in job["overrides"]),
        "val_error": result.get("val_error"),
        "test_error": result.get("test_error"),
        "seconds": result.get("seconds", job.get("seconds")),
        "status": job["status"],
    }


def write_results(path: Path, jobs: Sequence[Mapping[str, Any]]) -> None:
    """results.csv: a line per job, best validation error first, jobs without one last."""
    rows = sorted(((job, table_row(job)) for job in jobs), key=lambda pair: _rank(pair[1]["val_error"]))
    keys = list(dict.fromkeys(key for _, row in rows for key in row["overrides"]))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["job", "status", *keys, *RESULTS, "run", "message"])
    for job, row in rows:
        values = [row["overrides"].get(key, "") for key in keys]
        measured = ["" if row[key] is None else row[key] for key in RESULTS]
        table.writerow([job["job"], job["status"], *values, *measured, job.get("run", ""), job.get("message", "")])
    runs.write_atomically(path, text.getvalue())


def _name_killed(folder: Path) -> None:
    """A job that is "running" when the sweep is over was killed together with its process."""
    for job in read_jobs(folder):
        if job["status"] == "running":
            job.update(status="killed", message="its process ended without a word")
            _write(folder / f"job-{job['job']:03d}.json", job)


def _discard_empty(folder: Path) -> None:
    """Removes the folder of a sweep without jobs: Hydra makes it before it knows that all of them compose."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"multirun.yaml"}:
        shutil.rmtree(folder)
        for parent in (folder.parent, folder.parent.parent):
            if not any(parent.iterdir()):
                parent.rmdir()


def _pair(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value


def _rank(value: Any) -> tuple[bool, float]:
    missing = value is None or not math.isfinite(value)
    return missing, 0.0 if missing else float(value)


def _write(path: Path, record: Mapping[str, Any]) -> None:
    runs.write_atomically(path, json.dumps(record, indent=1, default=str) + "\n")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
