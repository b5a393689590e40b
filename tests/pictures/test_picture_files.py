"""Pictures are written whole or not at all, and importing them is light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attn_cli.errors import Refused
from attn_cli.pictures.writing import write

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_write_creates_folders_and_replaces(tmp_path) -> None:
    path = tmp_path / "a" / "b" / "p.png"
    assert write(path, b"old") == path
    assert write(str(path), b"new") == path
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["p.png"]
    os.umask(mask := os.umask(0))
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    write(tmp_path / "p.png", b"old")
    said = python(f"""
import resource, signal
from attn_cli.errors import Refused
from attn_cli.pictures.writing import write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write({str(tmp_path / "p.png")!r}, bytes(5000))
except Refused as error:
    print(error)
""")
    assert said.startswith(str(tmp_path / "p.png")) and said.endswith(".")
    assert (tmp_path / "p.png").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_a_file_in_place_of_a_folder_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot be written"):
        write(tmp_path / "file" / "p.png", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Refused, match="folder"):
        write(tmp_path / "folder", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_no_pyplot_and_no_torch(tmp_path) -> None:
    (tmp_path / "m.csv").write_text("epoch,val_error\n1,2\n")
    loaded = python(f"""
import sys
from attn_cli.pictures import animation, curves, paths, tables
curves.learning_curves({str(tmp_path / "m.csv")!r}, {str(tmp_path / "c.png")!r})
print([name for name in ("matplotlib.pyplot", "torch", "tkinter") if name in sys.modules])
""")
    assert loaded == "[]"
