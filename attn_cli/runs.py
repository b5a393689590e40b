"""The run folder: configuration, checkpoints, metrics, result, status; finding a run again.

    outputs/<data>-<model>-<glimpses>g-<yyyymmdd-hhmmss>-<4 hex>/
        config.yaml  status.json  result.json  metrics.csv  log.txt  curves.png  checkpoints/  pictures/

Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import attn_cli
from attn_cli.config import schema
from attn_cli.config.arguments import pasted
from attn_cli.errors import Refused, nearest
from attn_cli.files import alive, kind_of, write_atomically

STATUSES = ("running", "finished", "failed", "interrupted", "terminated")
LARGEST_SMALL_FILE = 4 << 20  # bytes; a config or status file beyond this is not one of ours


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return any(self.checkpoints.glob("*.ckpt"))

    def advice(self) -> str:
        """How to go on after a stop."""
        if self.resumable:
            return f"continue with `attn train {pasted('resume', self.path)}`"
        return f"{self.path} has no checkpoint to continue from, start a new run"

    def config(self) -> schema.Config:
        """The configuration that the run was started with; raises Refused naming the file."""
        values = self.raw_config()
        try:
            return schema.load(values)
        except Refused as error:
            raise Refused(f"{self.path / 'config.yaml'}: {error}") from error

    def raw_config(self) -> dict[str, Any]:
        """The configuration as plain values, unchecked."""
        path = self.path / "config.yaml"
        try:
            values = yaml.safe_load(_read(path))
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:  # of its constructors
            raise Refused(f"{path} is not readable as YAML: restore it or choose another run.") from error
        if not isinstance(values, dict):
            raise Refused(f"{path} holds no configuration: restore it or choose another run.")
        return values

    def status(self) -> dict[str, Any]:
        """status.json; "killed" where it says running and the process is gone. Raises Refused naming a damaged one."""
        path = self.path / "status.json"
        if not path.exists():
            return {"status": "killed", "message": "The process ended before it wrote a status."}
        status = _read_json(path)
        if status.get("status") not in STATUSES:
            raise Refused(f"{path} has none of the statuses {', '.join(STATUSES)}: delete or restore it.")
        if status["status"] == "running" and status.get("host") in (None, platform.node()):
            pid, since = status.get("pid"), _seconds(status.get("started"))
            if not isinstance(pid, int) or pid <= 0 or not alive(pid, since):
                status["status"] = "killed"
        return status

    def check_idle(self) -> None:
        """Raise Refused while a process trains the run; of another machine's that cannot be known."""
        status = self.status()
        if status["status"] != "running":
            return
        host, where, remedy = status.get("host"), "", "wait until that has ended"
        if host not in (None, platform.node()):
            where = f" of {host}"
            remedy = f"if that is gone, delete {self.path / 'status.json'} and go on"
        raise Refused(f"{self.path} is still being trained by process {status.get('pid')}{where}: {remedy}.")

    def set_status(self, status: str, message: str = "", epoch: int | None = None, step: int | None = None) -> None:
        """Replace status.json. `started` is when the process that trains took the run up; another one may say how it
        ended. Epoch and step stay unless given.
        """
        if status not in STATUSES:
            raise ValueError(f"{status!r} is none of {STATUSES}")
        old: dict[str, Any] = {}
        with contextlib.suppress(Refused):
            old = self.status()
        who = (old.get("status"), old.get("pid"), old.get("host"))
        # In a container every process may have the same number: a run that is taken up again is not the one that ended.
        goes_on = status != "running" or who == ("running", os.getpid(), platform.node())
        ours = goes_on and isinstance(old.get("started"), str)
        values = {
            "status": status,
            "pid": os.getpid(),
            "host": platform.node(),
            "started": old["started"] if ours else _now(),
            "ended": None if status == "running" else _now(),
            "message": message,
            "epoch": old.get("epoch") if epoch is None else epoch,
            "step": old.get("step") if step is None else step,
        }
        write_atomically(self.path / "status.json", json.dumps(values, indent=2) + "\n")

    def result(self) -> dict[str, Any] | None:
        """result.json, or None before there is one."""
        path = self.path / "result.json"
        return _read_json(path) if path.exists() else None

    def write_result(self, values: dict[str, Any]) -> None:
        """Replace result.json; numbers that are not finite become null."""
        write_atomically(self.path / "result.json", json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")

    def images(self) -> dict[str, Any] | None:
        """images.json: sha256 of each split of a person's own images when the run began; None of other data."""
        path = self.path / "images.json"
        return _read_json(path) if path.exists() else None

    def write_images(self, digests: dict[str, str]) -> None:
        write_atomically(self.path / "images.json", json.dumps(digests, indent=2) + "\n")

    def checkpoint(self, which: str = "best") -> Path:
        """Path of best.ckpt or last.ckpt; raises Refused where there is none."""
        path = self.checkpoints / f"{which}.ckpt"
        if not path.is_file():
            there = sorted(p.stem for p in self.checkpoints.glob("*.ckpt")) if self.checkpoints.is_dir() else []
            has = f"it has {' and '.join(there)}" if there else "it has none yet"
            raise Refused(f"{self.path} has no checkpoint {path.name}; {has}.")
        return path


on_create: list[Callable[[Run], None]] = []  # called with each new run folder: a sweep notes it in its job's file


def create(config: schema.Config, outputs: str | Path | None = None, glimpses: int | None = None) -> Run:
    """A new, unique run folder with its config.yaml and status "running"; `outputs` and `glimpses`, which is in its
    name, default to the configuration's.
    """
    outputs = Path(config.outputs if outputs is None else outputs)
    glimpses = glimpses or config.glimpses.count
    kind = f"{config.data.name}-{config.model.name}-{glimpses}g"
    try:
        outputs.mkdir(parents=True, exist_ok=True)
        while True:
            path = outputs / f"{kind}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                break
        (path / "checkpoints").mkdir()
        (path / "pictures").mkdir()
    except OSError as error:
        raise Refused(f"No run folder can be made in {outputs} ({error.strerror}): set outputs=FOLDER.") from error
    run = Run(path)
    content = yaml.safe_dump(schema.to_dict(config), sort_keys=False, allow_unicode=True)
    try:
        write_atomically(path / "config.yaml", content)
        run.set_status("running")
    except Refused:  # a full disk: no folder stays that holds nothing
        shutil.rmtree(path, ignore_errors=True)
        raise
    for listener in on_create:
        listener(run)
    return run


def open_run(path: str | Path) -> Run:
    """The run in an existing folder; raises Refused with the nearest names."""
    path = Path(path)
    if kind_of(path / "config.yaml") == "file":
        return Run(path)
    kind = kind_of(path)
    if kind == "folder":
        raise Refused(f"{path} is not a run folder: it has no config.yaml.{_hint(path.name, path)}")
    if kind == "file":
        own = next((folder for folder in path.parents if kind_of(folder / "config.yaml") == "file"), None)
        raise Refused(f"{path} is a file, not a run folder" + (f": name its run folder {own}." if own else "."))
    raise Refused(f"There is no run folder {path}.{_hint(path.name, path.parent)}")


def all_runs(outputs: str | Path = "outputs") -> list[Run]:
    """All runs in a folder, oldest first; raises Refused where the folder cannot be read."""
    outputs = Path(outputs)
    try:
        names = os.listdir(outputs) if kind_of(outputs) == "folder" else []
    except OSError as error:
        raise Refused(f"{outputs} cannot be read ({error.strerror}): change its rights or name another.") from error
    paths = [outputs / name for name in names if not name.startswith(".")]
    found = [Run(path) for path in paths if os.path.isfile(path / "config.yaml")]  # a locked one is not there
    return sorted(found, key=lambda run: (_started(run), run.name))


def latest(outputs: str | Path = "outputs") -> Run:
    """The run that started last of those that finished; raises Refused where there is none."""
    for run in reversed(all_runs(outputs)):
        with contextlib.suppress(Refused):
            if run.status()["status"] == "finished":
                return run
    raise Refused(
        f"There is no finished run in {outputs}: start one with `attn train`, or name a folder with run=FOLDER."
    )


def versions() -> dict[str, str | None]:
    """Of what the numbers depend on; reads package metadata, imports nothing."""

    def version(name: str) -> str | None:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
        return None

    return {
        "attn": attn_cli.__version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "lightning": version("pytorch-lightning"),
        "hydra": version("hydra-core"),
    }


@cache
def commit(package: Path | None = None) -> str | None:
    """The git commit of the checkout that this package runs from, with "-dirty" after it if the code or configuration
    there has changes of its own; None in a wheel, before the first commit and where there is no git.

    Asked once: later the checkout may be another than the code that runs.
    """
    root = (package or Path(attn_cli.__file__).parent).resolve().parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-c", f"safe.directory={root}", "-C", str(root), "--no-optional-locks"]
    code = ["attn_cli", "conf", ":!attn_cli/papers/measured"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [*git, "status", "--porcelain=v2", "--branch", "--", *code], capture_output=True, text=True, timeout=10
        )
        found = re.match(r"# branch.oid ([0-9a-f]{40,64})$", done.stdout, re.MULTILINE)
        changed = any(not line.startswith("#") for line in done.stdout.splitlines())
        return found and found[1] + "-dirty" * changed
    return None


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def _seconds(time: Any) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        return datetime.fromisoformat(time).timestamp()
    return None


def _started(run: Run) -> float:
    with contextlib.suppress(Refused):
        seconds = _seconds(run.status().get("started"))
        if seconds is not None:
            return seconds
    with contextlib.suppress(OSError):
        return run.path.stat().st_mtime
    return 0.0


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_SMALL_FILE:
            raise Refused(f"{path} is too large to be what its name says: restore it or choose another run.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise Refused(f"{path} cannot be read ({reason}): restore it or choose another run.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is not readable as JSON: delete or restore it.") from error
    if not isinstance(values, dict):
        raise Refused(f"{path} is not readable as JSON: delete or restore it.")
    return values


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hint(name: str, folder: Path) -> str:
    names = [run.name for run in all_runs(folder)]
    where = "this folder" if folder == Path() else folder
    return nearest(name, names) if names else f" There are no runs in {where}."
