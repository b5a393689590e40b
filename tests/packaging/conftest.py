"""A wheel of this checkout, installed on its own, and a folder elsewhere to use it from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
IGNORED = shutil.ignore_patterns("__pycache__", ".*_cache", "build", "*.egg-info")

Attn = Callable[..., "subprocess.CompletedProcess[str]"]


def pip(*words: str | Path) -> None:
    """Runs pip offline with this interpreter's packages."""
    done = subprocess.run([*PIP, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy with tests and a run in it, so that nothing stale gets in and nothing is left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("attn_cli", "conf", "tests"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    (source / "outputs" / "a-run").mkdir(parents=True)
    (source / "outputs" / "a-run" / "config.yaml").write_text("seed: 0\n")
    pip("wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    (built,) = folder.glob("attn_cli-*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def attn(installed: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attn:
    """Runs `python -m attn_cli …` of the installed wheel in an empty folder; refuses a failure."""
    environment = {**os.environ, "ATTN_DATA": str(data_root), "OMP_NUM_THREADS": "1"}
    monkeypatch.chdir(tmp_path)

    def run(*words: str, also: Path | None = None) -> subprocess.CompletedProcess[str]:
        own = {**environment, "PYTHONPATH": os.pathsep.join(str(path) for path in (installed, also) if path)}
        command = [sys.executable, "-m", "attn_cli", *words]
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        return done

    return run
