"""What pip installs is everything: all packages, conf/ inside, and a command that works from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

IGNORED = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")


def test_no_package_is_forgotten(repository: Path) -> None:
    listed = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(repository) for path in (repository / "attn_cli").rglob("*.py")}
    assert set(listed) == {".".join(folder.parts) for folder in folders} | {"attn_cli.conf"}
    for folder in folders:
        assert (repository / folder / "__init__.py").is_file(), f"{folder} has no __init__.py"


def test_the_malicious_lightning_wheels_are_excluded(repository: Path) -> None:
    dependencies = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "pytorch-lightning!=2.6.2,!=2.6.3" in dependencies


def test_a_wheel_works_from_another_folder(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    pytest.importorskip("pip")
    source, wheels, installed, elsewhere = (tmp_path / name for name in ("source", "wheels", "installed", "elsewhere"))
    for folder in ("attn_cli", "conf"):
        shutil.copytree(repository / folder, source / folder, ignore=IGNORED)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / file, source)
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels)]
    subprocess.run(build, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = wheels.glob("attn_cli-*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(installed), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, cwd=tmp_path)

    packed = {path.relative_to(installed / "attn_cli" / "conf") for path in (installed / "attn_cli").rglob("*.yaml")}
    assert packed == {path.relative_to(repository / "conf") for path in (repository / "conf").rglob("*.yaml")}

    command = [sys.executable, str(installed / "bin" / "attn"), "train", "glimpses=5", "--cfg", "job", "-p", "glimpses"]
    done = subprocess.run(
        command, cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "count: 5" in done.stdout
    assert list(elsewhere.iterdir()) == []
