"""Preparation that is killed half-way, and several at once (row 33 of the list of faults)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from attn_cli import files
from attn_cli.data import prepared
from attn_cli.data.prepare import prepare
from attn_cli.data.sources import digits
from attn_cli.errors import Refused

# Renders few digits; counts the file events below the data folder and dies at the one it is told to.
CHILD = """
import os, signal, sys
from pathlib import Path
from attn_cli.data import prepared
from attn_cli.data.prepare import prepare
from attn_cli.data.sources import digits
digits.COUNTS = {"train": 30, "validation": 10, "test": 10}
root, deadly, seen = sys.argv[1], int(sys.argv[2]), 0

def event(name, arguments):
    global seen
    counted = ("open", "os.rename", "os.mkdir", "os.remove", "fsync")
    if name in counted and any(root in str(argument) for argument in arguments):
        seen += 1
        if seen == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(event)
true_fsync = os.fsync
def fsync(handle):
    event("fsync", (root,))
    true_fsync(handle)
os.fsync = fsync
print("start", flush=True)
sys.stdin.readline()
prepare("digits", Path(root))
print("events", seen)
"""


def start(root: Path, deadly: int = 0) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(prepared.__file__).parents[2])}
    command = [sys.executable, "-c", CHILD, str(root), str(deadly)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def test_killed_at_every_file_event(tmp_path: Path) -> None:
    """Absent or complete, whenever the process dies; and the next one succeeds and clears what was left."""
    out, errors = start(tmp_path / "counted").communicate("\n")
    events = int(out.split()[-1])
    assert events >= 6, errors
    children = [start(tmp_path / str(n), n) for n in range(1, events + 1)]
    outcomes = []
    for n, child in enumerate(children, 1):
        child.communicate("\n")
        assert child.returncode == -signal.SIGKILL
        path = tmp_path / str(n) / "digits.h5"
        outcomes.append(path.exists())
        if path.exists():
            prepared.read("digits", path.parent)
    assert outcomes[0] is False and outcomes[-1] is True  # both sides of the renaming were tried
    # Died before the renaming: a temporary file may lie there, and nobody takes it for data.
    left = tmp_path / str(outcomes.index(True))
    assert any(p.name.endswith(".tmp") for p in left.iterdir())
    out, errors = start(left).communicate("\n")
    assert "prepared" in out, errors
    assert sorted(p.name for p in left.iterdir()) == [".digits.h5.lock", "digits.h5"]


def test_three_at_once(tmp_path: Path) -> None:
    """One prepares, the others wait and use its result."""
    children = [start(tmp_path) for _ in range(3)]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "start\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    outputs = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert sum("rendering" in out for out in outputs) == 1
    prepared.read("digits", tmp_path)


def test_a_waiting_process_says_so_and_goes_on_when_the_lock_is_free(tmp_path: Path, digit_root: Path) -> None:
    import fcntl

    with open(tmp_path / ".digits.h5.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = start(tmp_path)
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "start\n"
        assert "waiting for another process" in child.stdout.readline()
        os.replace(digit_root / "digits.h5", tmp_path / "digits.h5")
    out, _ = child.communicate()
    assert child.returncode == 0 and "rendering" not in out


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "digits.h5").write_bytes(b"junk")
    out, errors = start(tmp_path).communicate("\n")
    assert "as it is damaged" in out, errors
    prepared.read("digits", tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(handle: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr(digits, "COUNTS", {"train": 30, "validation": 10, "test": 10})
    prepare("digits", tmp_path)
    prepared.read("digits", tmp_path)
    with files.locked(tmp_path, "taken"):
        pass


def test_what_cannot_be_prepared(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="Did you mean 'mnist'"):
        prepare("mnits", tmp_path)
    with pytest.raises(Refused, match="leave out --from"):
        prepare("digits", tmp_path, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="digits.h5 cannot be made .Not a directory"):
        prepare("digits", tmp_path / "file" / "root")
