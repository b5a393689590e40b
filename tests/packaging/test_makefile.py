"""The Makefile's own sentences; that its targets work is tried by running them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def make(repository: Path, tmp_path: Path):
    if shutil.which("make") is None:
        pytest.skip("no make")
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(repository / name, tmp_path)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", *words], cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_a_missing_python_is_one_clear_sentence(make, tmp_path: Path) -> None:
    done = make("setup", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert done.stderr.startswith("No Python 3.11 or 3.12 was found as no-such-python: install one")
    assert not (tmp_path / ".venv").exists()


def test_nothing_is_installed_twice(make, tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".ready").touch()
    assert "pip install" not in make("-n", "test").stdout
    os.utime(tmp_path / "constraints.txt", (2e9, 2e9))
    assert "pip install -c constraints.txt -e '.[test]'" in make("-n", "test").stdout


def test_the_readme_command_is_what_ci_runs(repository: Path) -> None:
    ci = repository / ".ci" / "run"
    assert os.access(ci, os.X_OK)
    assert "\nmake test" in ci.read_text() and "set -euo pipefail" in ci.read_text()
