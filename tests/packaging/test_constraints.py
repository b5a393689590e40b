"""constraints.txt pins everything that an installation brings, and nothing that belongs to one machine."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

EXTRAS = ("test", "tensorboard", "control", "sweeps")
OF_TORCH = re.compile(r"nvidia-|cuda-|triton")  # CUDA libraries: torch names their versions itself


@pytest.fixture
def pins(repository: Path) -> dict[str, str]:
    lines = [line for line in (repository / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line  # no local versions, addresses or options
    names = [canonicalize_name(line.partition("==")[0]) for line in lines]
    assert len(names) == len(set(names))
    return {name: line.partition("==")[2] for name, line in zip(names, lines, strict=True)}


def test_everything_that_is_installed_is_pinned(repository: Path, pins: dict[str, str]) -> None:
    """Follows the requirements of the project and its extras through the installed packages."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    waiting = [*project["dependencies"], *(r for extra in EXTRAS for r in project["optional-dependencies"][extra])]
    seen: set[str] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name in seen or OF_TORCH.match(name):
            continue
        seen.add(name)
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name]), f"{requirement} excludes {pins[name]}"
        try:
            waiting += metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
    assert {"torch", "numpy", "hydra-core", "pytest", "tensorboard"} <= seen


def test_what_is_installed_is_what_is_pinned(pins: dict[str, str]) -> None:
    """Else the suite says nothing about the pinned versions; a torch of another build (+cpu) is the same version."""
    for name in ("torch", "hydra-core", "omegaconf", "pytorch-lightning", "numpy", "h5py", "safetensors", "pillow"):
        assert Version(metadata.version(name)).public == pins[name], name
