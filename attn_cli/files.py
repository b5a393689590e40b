"""Paths as a person gives them, files that reach the disk whole or not at all, locks on folders, and whether a process
still lives. Imports no torch.

A small file is replaced as a whole: a reader sees the old or the new content, after a crash too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from attn_cli.errors import NO_LOCKS, Refused


def expanded(given: str, setting: str = "") -> Path:
    """A path as a person gave it, with the home folder that ~ stands for; raises Refused where there is none."""
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise Refused(
            f"{_named(given, setting)} begins with a home folder that does not exist: write it out."
        ) from error


def kind_of(path: Path, setting: str = "") -> str | None:
    """What is there, "folder", "file" or None; raises Refused where that cannot be told."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last of a name that no file can have
        return None
    except OSError as error:
        what = _named(path, setting)
        raise Refused(f"{what} cannot be read ({error.strerror}): change its rights or name another.") from error
    return "folder" if stat.S_ISDIR(mode) else "file"


def check_place(path: str | None, setting: str) -> None:
    """Refuse a file to be written whose folder is not there, or in whose place a folder is, before what is written is
    worked out.
    """
    if path is None:
        return
    if kind_of(Path(path).absolute().parent, setting) != "folder":
        raise Refused(f"{setting}={path} is in a folder that does not exist.")
    if kind_of(Path(path), setting) == "folder":
        raise Refused(f"{setting}={path} is a folder: name a file.")


def _named(path: object, setting: str) -> str:
    return f"{setting}={path}" if setting else str(path)


@contextlib.contextmanager
def replacing(path: Path | str, keep_as: Path | None = None) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` when the block ends well; then and only then is the old file gone.

    The content goes to a temporary file in the same folder, to the disk, and is renamed; then the folder goes to the
    disk. With `keep_as`, the old `path` is kept under that name (same folder). Whatever fails, the old `path` stays and
    the temporary file is removed; an OSError becomes Refused. Temporary files of killed processes are removed too.
    """
    path = Path(path)
    temporary = path.with_name(f"{_hidden(path)}{os.getpid()}-{secrets.token_hex(4)}.tmp")
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


def _hidden(path: Path) -> str:
    """What the names of temporary files of `path` begin with, short enough for any name."""
    return f".{path.name[:50]}."


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
        match = re.fullmatch(re.escape(_hidden(path)) + r"(\d+)-[0-9a-f]{8}\.tmp", name)
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


def write_atomically(path: Path | str, content: str | bytes) -> Path:
    """Replace a small file as a whole and return its path; raises Refused naming it."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


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
def locked(folder: Path, taken: str | None = None) -> Iterator[int]:
    """An exclusive lock on a folder, released by the system when the process ends, however it ends, and every other one
    to which the handle was passed on. While another process has it, this one waits or, with `taken`, is refused with
    that sentence.
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
        yield handle
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
