"""What a sweep consists of, kept in its folder's sweep.json, so that another process can go on with it.

    {"format", "command", "flags", "overrides", "sweeper", "jobs", "space", "total", "pid", "host", "started", "from"}

`flags` and `overrides` are as typed, `jobs` the overrides of each job by its number. Where jobs depend on the results
of earlier ones (Optuna), `jobs` is empty and `space` holds what they are chosen from. `pid`, `host` and `started` are
of the process that runs the sweep now, or did so last. `from` is the working folder, which relative paths in the sweep
start from, as seen from the sweep's folder: the two may be moved together. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from attn_cli import files
from attn_cli.errors import Refused, nearest

FORMAT = 1
NAME = "sweep.json"
KEY = "resume_sweep"
LAUNCHER = re.compile(r"[+~]*hydra(/launcher=|\.launcher\.)")  # of words that say how jobs are run, not which
SHOWN = 3  # differences in a message

Words = tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    command: str  # as typed: train
    flags: Words  # such as --config-dir FOLDER
    overrides: Words
    sweeper: str  # grid, random or optuna
    jobs: tuple[Words, ...]
    space: Words
    total: int  # jobs in all


def read(folder: Path) -> Plan:
    """The plan of a sweep's folder; raises Refused where there is none or it is of another version of attn."""
    values = _read(folder)
    texts = {name: tuple(values[name]) for name in ("flags", "overrides", "space")}
    jobs = tuple(map(tuple, values["jobs"]))
    return Plan(values["command"], sweeper=values["sweeper"], jobs=jobs, total=values["total"], **texts)


def begin(folder: Path, plan: Plan) -> Plan:
    """Makes this process the one that runs the sweep; returns the plan to follow, which is the recorded one (its jobs
    in their recorded order) where the sweep was begun before.

    Raises Refused if the sweep is still running, or if it was begun with other jobs.
    """
    files.make_folder(folder, "outputs")
    with files.locked(folder):  # two processes that begin at once do so one after the other
        if (folder / NAME).exists():
            plan = _same(folder, read(folder), plan)
            check_stopped(folder)
        owner = {"pid": os.getpid(), "host": platform.node(), "started": datetime.now().astimezone().isoformat()}
        owner["from"] = os.path.relpath(Path.cwd(), folder.resolve())
        values = {"format": FORMAT, **asdict(plan), **owner}
        try:
            files.write_atomically(folder / NAME, json.dumps(values, indent=1) + "\n")
        except Refused:
            with contextlib.suppress(OSError):
                folder.rmdir()  # a new one, in which nothing is
            raise
    return plan


def begun(folder: Path) -> datetime:
    """When the process that runs the sweep now, or did so last, took it up."""
    return datetime.fromisoformat(_read(folder)["started"])


def check_stopped(folder: Path) -> None:
    """Raises Refused if the process of the sweep, or of one of its jobs, still runs or cannot be looked for."""
    from attn_cli.sweeps.jobs import path_of, read_jobs

    records = [(folder / NAME, "the sweep", _read(folder))]
    records += [(path_of(folder, job["job"]), "a job", job) for job in read_jobs(folder) if job["status"] == "running"]
    for path, what, record in records:
        match _runs(record):
            case True:
                raise Refused(
                    f"{folder} cannot be resumed yet: process {record['pid']} still runs {what}, see {path}; "
                    "wait for it or stop it."
                )
            case None:
                raise Refused(
                    f"{folder} cannot be resumed yet: process {record['pid']} on {record['host']} ran {what}; "
                    f'if it is over, write null for "host" in {path}.'
                )


def check_command(folder: Path, recorded: Plan, command: str) -> None:
    """Raises Refused if the sweep is one of another command."""
    if recorded.command != command:
        raise Refused(f"{folder} is a sweep of attn {recorded.command}, not of attn {command}.")


def check_working_folder(folder: Path) -> None:
    """Raises Refused if relative paths of the sweep, such as those of its run folders, mean other folders here."""
    begun = (folder.resolve() / _read(folder).get("from", Path.cwd())).resolve()  # older sweeps do not say
    if begun != Path.cwd():
        raise Refused(
            f"{folder} was begun in {begun}, and its run folders and files are named from there: "
            f"go there with `cd {shlex.quote(str(begun))}` and resume it again."
        )


def resumed(words: Sequence[str]) -> tuple[Path | None, Words]:
    """(the folder after `resume_sweep=`, the other words); no folder where it is not given."""
    given = [word.partition("=")[2] for word in words if word.startswith(f"{KEY}=")]
    others = tuple(word for word in words if not word.startswith(f"{KEY}="))
    if len(given) > 1 or given == [""]:
        raise Refused(f"{KEY} takes one folder of a sweep, such as {KEY}=outputs/sweeps/NAME.")
    return (Path(given[0]) if given else None), others


def continued(recorded: Plan, words: Sequence[str]) -> Words:
    """The overrides to go on with: those given, and for each kind of which none is given (which jobs; how they are
    run) the recorded ones.
    """
    kinds = [[word for word in some if LAUNCHER.match(word)] for some in (words, recorded.overrides)]
    which = [[word for word in some if not LAUNCHER.match(word)] for some in (words, recorded.overrides)]
    return (*(which[0] or which[1]), *(kinds[0] or kinds[1]))


def is_running(job: dict[str, Any]) -> bool:
    """Whether a job recorded as running may still be at it."""
    return _runs(job) is not False


def _runs(record: dict[str, Any]) -> bool | None:
    """Whether the process of a record is alive; None where it is one of another machine."""
    if record.get("host") not in (None, platform.node()):
        return None
    since = datetime.fromisoformat(record["started"]).timestamp()
    return record["pid"] != os.getpid() and files.alive(record["pid"], since)


def _same(folder: Path, recorded: Plan, plan: Plan) -> Plan:
    if recorded.sweeper != plan.sweeper:
        raise Refused(f"{folder} was begun with hydra/sweeper={recorded.sweeper}, not {plan.sweeper}.")
    theirs, ours = _contents(recorded), _contents(plan)
    if theirs != ours:
        there, here = (_shown(difference) for difference in (theirs - ours, ours - theirs))
        parts = [f"{there} only there" if there else "", f"{here} only here" if here else ""]
        difference = ", ".join(part for part in parts if part)
        raise Refused(f"{folder} has other jobs ({difference}): leave the settings out, or start a new sweep.")
    return recorded


def _contents(plan: Plan) -> Counter[str]:
    """Jobs whose overrides stand in another order are the same."""
    return Counter([*(" ".join(sorted(job)) for job in plan.jobs), *plan.space])


def _shown(names: Counter[str]) -> str:
    found = list(names.elements())
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def has_process(values: dict[str, Any]) -> bool:
    """Whether a record tells which process wrote it, and when, as running ones must."""
    try:
        datetime.fromisoformat(values["started"])
    except (KeyError, TypeError, ValueError):
        return False
    return type(values.get("pid")) is int and isinstance(values.get("host"), str | None)


def are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _whole(values: dict[str, Any]) -> bool:
    return (
        all(isinstance(values.get(name), str) for name in ("command", "sweeper"))
        and all(are_words(values.get(name)) for name in ("flags", "overrides", "space"))
        and isinstance(values.get("jobs"), list)
        and all(map(are_words, values["jobs"]))
        and type(values.get("total")) is int
        and isinstance(values.get("from", ""), str)
        and has_process(values)
    )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    if files.kind_of(folder, KEY) != "folder":
        others = [other.parent.name for other in folder.parent.glob(f"*/{NAME}")]
        hint = nearest(folder.name, others) if others else f" There are no sweeps in {folder.parent}."
        raise Refused(f"There is no folder {folder}.{hint}")
    if files.kind_of(path, KEY) != "file":
        raise Refused(f"{folder} is not the folder of a sweep that can be resumed: it has no {NAME}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(values, dict) and (values.get("format") != FORMAT or _whole(values))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} cannot be read ({error}): restore it or start a new sweep.") from error
    if not whole:
        raise Refused(f"{path} is not the plan of a sweep: restore it or start a new sweep.")
    if values.get("format") != FORMAT:
        raise Refused(
            f"{path} is of another version of attn (format {values.get('format')}, this one reads {FORMAT}): "
            "start a new sweep."
        )
    return values
