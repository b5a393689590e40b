"""Jobs of a sweep: one status file each, whatever happens to the job; a job that was cut off goes on where it was.

A sweep's folder holds job-000.json, job-001.json, …, each {"job", "overrides", "status", "message", "run", "runs",
"result", "seconds", "started", "ended", "pid", "host", "traceback"} with a status of STATUSES. One that stays
"running" belongs to a process that was itself killed. `run` is the run folder, from the moment that there is one;
`runs` are all folders of the job: several if it trains several runs as one computation or, until it has finished, began
anew.

What happens to a job in a resumed sweep:
 finished                        nothing, it is done
 failed                          starts anew; of several runs those that had not finished
 interrupted, left, killed       continues from its run folder's newest checkpoint; starts anew where there is none. Of
                                 several runs that were trained together each is continued alone
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from attn_cli import files, runs
from attn_cli.config import schema
from attn_cli.errors import PartlyRefused, Refused, Terminated
from attn_cli.sweeps import plan

STATUSES = ("running", "finished", "failed", "left", "interrupted", "killed")
STOPPED = (130, 143)  # exit codes after Ctrl-C and SIGTERM: they end the whole sweep, any other code one job
RESULTS = ("val_error", "test_error", "mean_glimpses", "seconds")
KEPT = (*RESULTS, "threads", "glimpses", "each")  # `each`: these of every run of `trainer.parallel_seeds`

Job = dict[str, Any]
RunJob = Callable[[list[Path]], Any]  # given the run folders to continue, if any


def path_of(folder: Path, number: int) -> Path:
    return folder / f"job-{number:03d}.json"


def run_job(folder: Path, number: int, overrides: Sequence[str], run: RunJob) -> dict[str, Any] | None:
    """Runs one job and records how it ended; only a stop (Ctrl-C, SIGTERM) goes on to the caller.

    Returns the job's result, None if it failed.
    """
    path = path_of(folder, number)
    earlier = unfinished_runs(path)
    record: Job = {
        "job": number,
        "overrides": list(overrides),
        "status": "running",
        "message": "",
        "run": str(earlier[-1]) if earlier else "",
        "runs": [str(run) for run in earlier],
        "pid": os.getpid(),
        "host": platform.node(),
        "started": _now(),
    }
    write(folder, record)
    print(f"Sweep, job {progress(folder, number)}: {' '.join(overrides)}", flush=True)

    def note(run: runs.Run) -> None:
        record["run"] = str(run.path)
        if record["run"] not in record["runs"]:
            record["runs"].append(record["run"])
        write(folder, record)

    begin = time.monotonic()
    result: Any = None
    stop: BaseException | None = None
    runs.on_create.append(note)
    try:
        result = run(earlier)
        record.update(status="finished")
        if isinstance(result, Mapping):
            last = str(result.get("run", record["run"]))
            record.update(run=last, runs=result.get("runs") or [last], result=_kept(result))
    except KeyboardInterrupt as error:
        record.update(status="interrupted", message="terminated" if isinstance(error, Terminated) else "interrupted")
        stop = error
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if code in STOPPED:
            stop = error
        record.update(status="interrupted" if stop else "left", message=f"the job left with exit code {code}")
    except Refused as error:
        if error.exit_code in STOPPED:
            stop = SystemExit(error.exit_code)
        record.update(status="interrupted" if stop else "failed", message=str(error))
        if isinstance(error, PartlyRefused):
            record["result"] = _kept(error.result)
    except Exception as error:
        # submitit raises this one in the middle of a job whose time is over
        cut = type(error).__name__ == "UncompletedJobError"
        message = f"{type(error).__name__}: {error}"
        record.update(status="left" if cut else "failed", message=message, traceback=traceback.format_exc())
    finally:
        runs.on_create.remove(note)
    record.update(seconds=round(time.monotonic() - begin, 3), ended=_now())
    write(folder, record)
    if record["status"] != "finished":
        print(f"Sweep, {path.name} {record['status']}: {record['message']}", file=sys.stderr, flush=True)
    if stop is not None:
        raise stop
    return result if isinstance(result, dict) else None


def _kept(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in KEPT if key in result}


def unfinished_runs(path: Path) -> list[Path]:
    """The run folders that earlier attempts at the job of this status file left, the latest last: those that go on and
    those that have finished, of a job that failed the latter alone.
    """
    if not path.exists():
        return []
    job = read_job(path)
    found = [run for run in folders(job) if (run / "config.yaml").is_file()]
    if job["status"] == "failed":
        return [run for run in found if _finished(run)]
    for run in folders(job):
        if run not in found:
            print(f"{path.name}: there is no run folder {run} any more. Its run starts anew.", flush=True)
    return found


def folders(job: Job) -> list[Path]:
    return [Path(run) for run in job.get("runs") or [job.get("run")] if run]


def _finished(path: Path) -> bool:
    try:
        return runs.open_run(path).status()["status"] == "finished"
    except Refused:  # a damaged one
        return False


def going_on(config: schema.Config, earlier: Sequence[Path]) -> list[schema.Config | dict[str, Any]]:
    """What is left of a job with the run folders `earlier`, for each of its runs: the configuration that continues it,
    its result if it has finished, or its own configuration, to start anew, if nothing there can be continued. If that
    is so of all of them, `config` itself.
    """
    each = config.alone()
    left = [_rest(own, earlier, len(each) > 1) for own in each]
    return [config] if left == each else left


def _rest(config: schema.Config, earlier: Sequence[Path], of_several: bool) -> schema.Config | dict[str, Any]:
    from attn_cli.learning.checkpoints import newest_valid  # torch takes its time

    why = f"{earlier[-1]} was begun with other settings than this job has now. The job starts anew."
    if of_several:
        why = f"No run folder of this job has seed {config.seed} and optimizer.lr {config.optimizer.lr:g}: a new one."
    for path in reversed(earlier):
        run = runs.open_run(path)
        try:
            recorded = run.config()
            # The threads that a sweep gives to its jobs may be others now; a run goes on with its own.
            if recorded != replace(config, trainer=replace(config.trainer, threads=recorded.trainer.threads)):
                continue
            if run.status()["status"] == "finished" and (result := run.result()) is not None:
                return result
            newest_valid(run.checkpoints)
            if run.status()["status"] == "running" and run.status().get("host") != platform.node():
                run.set_status("interrupted", "its process on another machine is gone")
            return replace(config, resume=str(path))
        except Refused as refused:
            why = f"{refused} The {'run' if of_several else 'job'} starts anew."
    print(why, flush=True)
    return config


def progress(folder: Path, number: int) -> str:
    """ "3 of 12 (job-002.json), 2 done, 1 failed, about 14 min left" """
    jobs = read_jobs(folder)
    total = plan.read(folder).total if (folder / plan.NAME).is_file() else None
    done = [job for job in jobs if job["status"] == "finished"]
    lost = [job for job in jobs if job["status"] not in ("finished", "running")]
    parts = [f"{number + 1}{f' of {total}' if total else ''} ({path_of(folder, number).name})"]
    parts += [f"{len(some)} {name}" for some, name in ((done, "done"), (lost, "failed")) if some]
    if total and done:
        begun = plan.begun(folder)
        over = [job for job in lost if datetime.fromisoformat(job["started"]) >= begun]  # others are run once more
        at_once = sum(job["status"] == "running" for job in jobs)
        seconds = fmean(job["seconds"] for job in done)
        parts.append(f"about {_rough((total - len(done) - len(over)) * seconds / max(1, at_once))} left")
    return ", ".join(parts)


def read_jobs(folder: Path) -> list[Job]:
    """The status files of a sweep, in the order of the jobs; raises Refused naming one that cannot be read."""
    return sorted((read_job(path) for path in folder.glob("job-*.json")), key=lambda job: job["job"])


def read_job(path: Path) -> Job:
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} cannot be read ({error}); delete it to run this job anew.") from error
    if not isinstance(job, dict) or not _whole(job):
        raise Refused(f"{path} is not a status file of a sweep; delete it to run this job anew.")
    return job


def _whole(job: Job) -> bool:
    return (
        type(job.get("job")) is int
        and plan.are_words(job.get("overrides"))
        and job.get("status") in STATUSES
        and (job["status"] != "running" or plan.has_process(job))
        and isinstance(job.get("result"), dict | None)
    )


def name_killed(folder: Path) -> None:
    """A job that is "running" when the sweep is over, and whose process is gone, was killed together with it."""
    for job in read_jobs(folder):
        if job["status"] == "running" and not plan.is_running(job):
            write(folder, {**job, "status": "killed", "message": "its process ended without a word"})


def write(folder: Path, record: Mapping[str, Any]) -> None:
    content = json.dumps(record, indent=1, default=str) + "\n"
    files.write_atomically(path_of(folder, record["job"]), content)


def _rough(seconds: float) -> str:
    """40 s, 14 min, 2 h 10 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
