"""The built wheel holds everything that is needed and nothing else, and works from any folder."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

Attn = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_wheel_holds_the_package_and_conf_and_nothing_else(wheel: Path, repository: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = repository / "attn_cli"
    code = {p.relative_to(repository).as_posix() for p in (*package.rglob("*.py"), *package.rglob("*.json"))}
    conf = {f"attn_cli/{path.relative_to(repository).as_posix()}" for path in (repository / "conf").rglob("*.yaml")}
    assert names == code | conf


def test_the_wheel_names_licence_python_and_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = archive.read(f"{info}/METADATA").decode()
    assert "License-Expression: MIT\n" in metadata and "Requires-Python: <3.13,>=3.11\n" in metadata
    assert b"the attn authors" in archive.read(f"{info}/licenses/LICENSE")
    assert "attn = attn_cli.cli:run" in archive.read(f"{info}/entry_points.txt").decode()


def test_the_wheel_trains_and_evaluates_from_another_folder(
    attn: Attn, installed: Path, tmp_path: Path, data_root: Path
) -> None:
    attn("train", "trainer=smoke")
    (run,) = (path for path in (tmp_path / "outputs").iterdir() if path.name != "sweeps")
    result = json.loads((run / "result.json").read_text())
    assert 0 < result["test_error"] <= 100
    assert result["commit"] is None  # a wheel is no checkout
    assert "digits" in attn("eval", "--mc-samples", "2").stdout
    assert json.loads((run / "evaluation-test-mc2.json").read_text())["mc_samples"] == 2
    assert "n_trials: 20" in attn("train", "hydra/sweeper=random", "--cfg", "hydra").stdout
    # Nothing beside the runs, the data folder and the package's own __pycache__ was written.
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}
    assert (data_root / "digits.h5").is_file()
    assert not (installed / "outputs").exists()


def test_the_wheel_has_the_tables_and_what_was_measured(attn: Attn, tmp_path: Path) -> None:
    assert "0.90 ± 0.04" in attn("reproduce", "ram/1a", "--list").stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demo_reaches_its_error_and_draws(attn: Attn, tmp_path: Path) -> None:
    """What `make demo` runs. It promises 10 % or better; measured was 2.6 %."""
    attn("train", "experiment=demo")
    attn("eval", "--mc-samples", "10")
    attn("show")
    (run,) = (path for path in (tmp_path / "outputs").iterdir() if path.name != "sweeps")
    assert json.loads((run / "result.json").read_text())["test_error"] < 5
    averaged = json.loads((run / "evaluation-test-mc10.json").read_text())
    assert averaged["test_error"] < 3
    assert (run / "pictures" / "paths-test.png").stat().st_size > 10_000
    assert len(list((run / "pictures").glob("glimpses-test-*.gif"))) == 8
