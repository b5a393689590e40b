"""Names stand for built-in classes and for those of installed packages; nothing else can be loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from attn_cli.config import registry
from attn_cli.errors import Refused

MODULE = """
from dataclasses import dataclass
from attn_cli.config.fields import bounded, choice

print("imported")


@dataclass(frozen=True)
class TinyConfig:
    name: str = "tiny"
    width: int = bounded(16, 1, 64)
    mood: str = choice("calm", "calm", "wild")


class Tiny:
    Config = TinyConfig


class Bare:
    pass
"""

ENTRY_POINTS = """
[attn.models]
tiny = their_package:Tiny
bare = their_package:Bare
gone = their_package:Missing
ram = their_package:Tiny
[attn.data]
their_data = their_package:Tiny
"""

STUB = """
import json
from attn_cli.config import registry, schema


def run(config):
    loaded = registry.load("model", config.model.name)
    print(json.dumps([schema.to_dict(config)["model"], loaded.__module__, type(config.model).__name__]))
    return {}
"""

START = """
import sys
from attn_cli import cli
from attn_cli.commands import entry
from attn_cli.config import schema

entry.HYDRA_COMMANDS["train"] = entry.HydraCommand("train", "train", schema.Config, "stub:run")
sys.exit(cli.main())
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder that holds an installed package with entry points, as pip would leave it."""
    (tmp_path / "their_package.py").write_text(textwrap.dedent(MODULE))
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "start.py").write_text(START)
    return tmp_path


def attn(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed), str(Path(__file__).resolve().parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, str(installed / "start.py"), *words]
    return subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, timeout=60)


def test_an_installed_model_is_chosen_by_name(installed: Path) -> None:
    done = attn(installed, "train", "model=tiny", "model.width=32")
    assert done.returncode == 0, done.stderr
    assert '[{"name": "tiny", "width": 32, "mood": "calm"}, "their_package", "TinyConfig"]' in done.stdout


def test_an_installed_models_bounds_hold(installed: Path) -> None:
    done = attn(installed, "train", "model=tiny", "model.width=65")
    assert (done.returncode, done.stderr) == (1, "attn train: model.width must be at least 1 and at most 64, not 65.\n")


def test_installed_names_are_listed_without_importing_them(installed: Path) -> None:
    done = attn(installed, "train", "--help")
    assert done.returncode == 0, done.stderr
    assert (
        "model: bare, convnet_1, convnet_10, convnet_10_small, convnet_5, convnet_64_64_64_512, convnet_bn, dram, "
        "dram_mnist, dram_small, draw_reader, fc, gone, ram, ram_catch, ram_lstm, rsam, soft_ram, stn, timm, tiny"
        in done.stdout
    )
    assert "their_data" in done.stdout
    assert "imported" not in done.stdout


def test_a_built_in_name_cannot_be_taken_over(installed: Path) -> None:
    done = attn(installed, "train", "model=ram", "--cfg", "job", "-p", "model")
    assert done.returncode == 0, done.stderr
    assert "hidden: 256" in done.stdout and "imported" not in done.stdout


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bare", "attn train: model=bare needs a dataclass Bare.Config with a default for every field, among"),
        ("gone", "attn train: model=gone of the installed package their-package cannot be loaded: AttributeError"),
        ("tinny", "attn train: model=tinny is not available. Did you mean 'tiny'?\n"),
    ],
)
def test_unusable_packages_are_refused_in_one_sentence(installed: Path, name: str, says: str) -> None:
    done = attn(installed, "train", f"model={name}")
    assert done.returncode == 1
    assert done.stderr.startswith(says) and done.stderr.count("\n") == 1


def test_only_registered_names_load() -> None:
    for name in ("os:system", "attn_cli.models.ram:RAM", "RAM", ""):
        with pytest.raises(Refused, match="is not available. "):
            registry.load("model", name)


@pytest.mark.parametrize("kind", ["model", "data"])
def test_built_in_names_stand_for_something(kind: str) -> None:
    for name in registry.names(kind):
        assert callable(registry.load(kind, name))
