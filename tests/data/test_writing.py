"""Prepared files are written durably, completely or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from attn_cli.data import prepared, writing
from tests.data.conftest import small_digits


def test_the_file_does_not_depend_on_when_it_was_written(tmp_path: Path) -> None:
    for name in ("digits.h5", "again.h5"):
        writing.write(small_digits(), tmp_path / name)
    assert (tmp_path / "digits.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()


def test_durable_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls: the file's content reaches the disk, then its name, then the folder."""
    calls: list[str] = []
    fsync, replace_ = os.fsync, os.replace

    def recorded_fsync(handle: int) -> None:
        calls.append("fsync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "fsync file")
        fsync(handle)

    def recorded_replace(source: Path, target: Path) -> None:
        assert source.parent == target.parent
        calls.append("replace")
        replace_(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    writing.write(small_digits(), tmp_path / "digits.h5")
    assert calls == ["fsync file", "replace", "fsync folder"]


def test_full_disk(tmp_path: Path) -> None:
    """The limit on file sizes stands for the full disk: a sentence, the old file intact, nothing else left."""
    writing.write(small_digits(), tmp_path / "digits.h5")
    before = (tmp_path / "digits.h5").read_bytes()
    program = f"""
import resource, signal, numpy as np
from pathlib import Path
from attn_cli.data import prepared, writing
from attn_cli.errors import Refused
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
images = {{s: np.zeros((1000, 4, 4), np.uint8) for s in prepared.SPLITS}}
labels = {{s: np.zeros(1000, np.uint8) for s in prepared.SPLITS}}
try:
    writing.write(prepared.Prepared("digits", "", ("a",), images, labels), Path({str(tmp_path / "digits.h5")!r}))
except Refused as refused:
    print(refused)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(prepared.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "digits.h5 cannot be written (File too large)" in done.stdout, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["digits.h5"]
    assert (tmp_path / "digits.h5").read_bytes() == before
