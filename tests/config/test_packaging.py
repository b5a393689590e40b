"""pyproject.toml names every package and excludes what must not be installed."""

from __future__ import annotations

import tomllib
from pathlib import Path


def test_no_package_is_forgotten(repository: Path) -> None:
    listed = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(repository) for path in (repository / "attn_cli").rglob("*.py")}
    assert set(listed) == {".".join(folder.parts) for folder in folders} | {"attn_cli.conf"}
    for folder in folders:
        assert (repository / folder / "__init__.py").is_file(), f"{folder} has no __init__.py"


def test_the_malicious_lightning_wheels_are_excluded(repository: Path) -> None:
    dependencies = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "pytorch-lightning!=2.6.2,!=2.6.3" in dependencies
