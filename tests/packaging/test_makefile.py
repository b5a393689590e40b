"""The Makefile's own sentences; that its targets work is tried by running them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from attn_cli.commands.reproducing import composed


@pytest.fixture
def make(repository: Path, tmp_path: Path):
    if shutil.which("make") is None:
        pytest.skip("no make")
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(repository / name, tmp_path)
    others = ("MAKE", "MFLAGS", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(others)}

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


def test_what_is_to_be_measured_on_a_gpu_can_be_asked_for(make, tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".ready").touch()
    said = make("-n", "bench-gpu").stdout.replace("\\\n", "")
    asked = re.findall(r"\.venv/bin/attn (\w+) (.*?)(?: \|\| exit 1)?(?:;|$)", said, re.MULTILINE)
    assert [command for command, _ in asked] == ["bench", "bench", "train", "eval", "bench", "bench"]
    for command, words in asked:
        composed(command, shlex.split(words.replace("$precision", "bf16").replace("$compile", "graph")))


@pytest.mark.skipif(shutil.which("awk") is None, reason="no awk")
def test_when_an_error_was_reached_is_read_from_the_metrics_of_the_latest_run(make, tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / ".ready").touch()
    attn = tmp_path / ".venv" / "bin" / "attn"
    attn.write_text("#!/bin/sh\n")
    attn.chmod(0o755)
    for name, error in (("mnist-ram-6g-1", 1.0), ("mnist-ram-6g-2", 1.3)):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        lines = ["epoch,val_error,seconds", f"1,{error},5.5", "2,1.29,7.5", "3,1.1,9.5"]
        (tmp_path / "outputs" / name / "metrics.csv").write_text("\n".join(lines) + "\n")
        os.utime(tmp_path / "outputs" / name, (1e9 + error, 1e9 + error))
    done = make("-s", "bench-gpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "validation error 1.29 after 7.5 s of training\n" * 2


@pytest.mark.parametrize(("target", "threads"), [("test", "PASSIVE"), ("demo", ""), ("bench", "")])
def test_how_threads_wait(make, tmp_path: Path, target: str, threads: str) -> None:
    """Two processes of tests leave each other the cores; the others run as a person's own commands do."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / ".ready").touch()
    for name in ("attn", "pytest", "ruff", "mypy"):
        (tmp_path / ".venv" / "bin" / name).write_text('#!/bin/sh\necho "threads $OMP_WAIT_POLICY"\n')
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    assert set(re.findall("threads (.*)", make("-s", target).stdout)) == {threads}


def test_the_readme_command_is_what_ci_runs(repository: Path) -> None:
    ci = repository / ".ci" / "run"
    assert os.access(ci, os.X_OK)
    assert "\nmake test" in ci.read_text() and "set -euo pipefail" in ci.read_text()
