"""The run folder: configuration, checkpoints, metrics, result, status; finding a run again.

    outputs/<data>-<model>-<glimpses>g-<yyyymmdd-hhmmss>-<4 hex>/
        config.yaml  status.json  result.json  metrics.csv  log.txt  curves.png  checkpoints/  pictures/

Small files are replaced as a whole: a reader sees the old or the new content, after a crash too. Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import platform
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import yaml

import attn_cli
from attn_cli.config import schema
from attn_cli.errors import NO_LOCKS, Refused, nearest

STATUSES = ("running", "finished", "failed", "interrupted", "terminated")
LARGEST_SMALL_FILE = 4 << 20  # bytes; a config or status file beyond this is not one of ours


@contextlib.contextmanager
def replacing(path: Path, keep_as: Path | None = None) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` when the block ends well; then and only then is the old file gone.

    The content goes to a temporary file in the same folder, to the disk, and is renamed; then the folder goes to the
    disk. With `keep_as`, the old `path` is kept under that name (same folder). Whatever fails, the old `path` stays and
    the temporary file is removed; an OSError becomes Refused. Temporary files of killed processes are removed too.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        remove_stale(path)
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep_as is not None and path.exists():
                _keep(path, keep_as)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        kept = "; what was there before is unchanged" if path.exists() else ""
        raise Refused(f"{path} could not be written ({reason}): make room or choose another folder{kept}.") from error


def _keep(path: Path, keep_as: Path) -> None:
    """Give the file a second name in place of what has that name; `path` itself is there all the time."""
    keep_as.unlink(missing_ok=True)
    try:
        os.link(path, keep_as)
    except OSError:  # a file system without hard links
        os.replace(path, keep_as)


def remove_stale(path: Path) -> None:
    """Remove the temporary files that dead processes left behind while they wrote `path`."""
    for name in os.listdir(path.parent):
        match = re.fullmatch(re.escape(f".{path.name}.") + r"(\d+)-[0-9a-f]{8}\.tmp", name)
        if match and (int(match[1]) == os.getpid() or not alive(int(match[1]))):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path.parent / name)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder, and then need not
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a small file as a whole; raises Refused naming it."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def append(path: Path, line: str) -> None:
    """Add a line to a text file; raises Refused naming it."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise Refused(f"{path} could not be written ({error.strerror}): make room or choose another folder.") from error


def make_folder(path: Path, setting: str) -> Path:
    """A folder that can be written, made if it is not there; raises Refused naming the setting that chose it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{path} cannot be made ({error.strerror}): set {setting}=FOLDER.") from error
    if not os.access(path, os.W_OK):
        raise Refused(f"{path} cannot be written: set {setting}=FOLDER.")
    return path


@contextlib.contextmanager
def locked(folder: Path, taken: str | None = None) -> Iterator[None]:
    """An exclusive lock on a folder, released by the system when the process ends, however it ends. While another
    process has it, this one waits or, with `taken`, is refused with that sentence.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError as error:
            raise Refused(str(taken)) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)


def alive(pid: int, since: float | None = None) -> bool:
    """Whether process `pid` runs (a zombie does not), and did already at the time `since` (seconds since the epoch)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        booted = float(re.search(r"^btime (\d+)", Path("/proc/stat").read_text(), re.M)[1])  # type: ignore[index]
    except (OSError, ValueError, TypeError):
        return True  # no /proc: existence is all that can be known
    if state == "Z":
        return False
    began = booted + int(fields[18]) / os.sysconf("SC_CLK_TCK")
    return since is None or began < since + 2  # a younger process has taken over the number


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
        except (yaml.YAMLError, RecursionError) as error:
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
        ours = isinstance(old.get("started"), str) and (status != "running" or old.get("pid") == os.getpid())
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

    def checkpoint(self, which: str = "best") -> Path:
        """Path of best.ckpt or last.ckpt; raises Refused where there is none."""
        path = self.checkpoints / f"{which}.ckpt"
        if not path.is_file():
            there = sorted(p.stem for p in self.checkpoints.glob("*.ckpt")) if self.checkpoints.is_dir() else []
            has = f"it has {' and '.join(there)}" if there else "it has none yet"
            raise Refused(f"{self.path} has no checkpoint {path.name}; {has}.")
        return path


on_create: list[Callable[[Run], None]] = []  # called with each new run folder: a sweep notes it in its job's file


def create(config: schema.Config, outputs: str | Path | None = None) -> Run:
    """A new, unique run folder with its config.yaml and status "running"; `outputs` defaults to the configuration's."""
    outputs = Path(config.outputs if outputs is None else outputs)
    glimpses = getattr(config.data, "frames", config.glimpses.count)  # games have one a frame
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
    if (path / "config.yaml").is_file():
        return Run(path)
    if path.is_dir():
        raise Refused(f"{path} is not a run folder: it has no config.yaml.{_hint(path.name, path)}")
    raise Refused(f"There is no run folder {path}.{_hint(path.name, path.parent)}")


def all_runs(outputs: str | Path = "outputs") -> list[Run]:
    """All runs in a folder, oldest first."""
    found = [Run(path.parent) for path in Path(outputs).glob("[!.]*/config.yaml")]
    return sorted(found, key=lambda run: (_started(run), run.name))


def latest(outputs: str | Path = "outputs", finished: bool = True) -> Run:
    """The run that started last (of those that finished); raises Refused where there is none."""
    for run in reversed(all_runs(outputs)):
        with contextlib.suppress(Refused):
            if not finished or run.status()["status"] == "finished":
                return run
    kind = "finished run" if finished else "run"
    raise Refused(f"There is no {kind} in {outputs}: start one with `attn train`, or name a folder with run=FOLDER.")


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


def commit(package: Path | None = None) -> str | None:
    """The git commit of the checkout that this package runs from; None in a wheel or before the first commit."""
    root = (package or Path(attn_cli.__file__).parent).resolve().parent
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError):
        head = (root / ".git" / "HEAD").read_text().strip()
        name = head.removeprefix("ref: ")
        found = head if name == head else (root / ".git" / name).read_text().strip()
        if re.fullmatch(r"[0-9a-f]{40,64}", found):
            return found
    # A worktree, packed references, or something newer: git knows.
    command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return done.stdout.strip() or None
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
