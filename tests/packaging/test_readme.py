"""What README.md shows exists: its commands are accepted, its files are there, its example package works as printed."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attn_cli import cli
from attn_cli.commands import bench, mc_average

Attn = Callable[..., "subprocess.CompletedProcess[str]"]
README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def block(language: str) -> str:
    (text,) = (text for name, text in BLOCKS if name == language)
    return text


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for name, text in BLOCKS if name == "bash" for line in text.splitlines()]
    return [line for line in lines if line.startswith("attn ")]


def composing() -> list[list[str]]:
    """The words after `attn` of every README command that Hydra composes, without names of the reader's own."""
    found = []
    for line in commands():
        words = shlex.split(line)[1:]
        if words[0] in ("train", "eval", "mc-average", "show", "cost", "bench") and "calm_ram" not in line:
            found.append(words)
    return found


@pytest.mark.parametrize("words", composing(), ids=" ".join)
def test_commands_compose(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each `attn` line is accepted up to the point where it would start; a sweep with the first of its values."""
    if "-m" in words:
        swept = [word for word in words if word != "-m" and not word.startswith(("hydra", "resume_sweep="))]
        swept = [re.sub(r"=(?:tag\(log,)?(?:range|(?:int\()?interval)\(([^,]+),.*\)$", r"=\1", word) for word in swept]
        words = [re.sub(r"(=[\d.]+)(,[\d.]+)+$", r"\1", word) for word in swept]
    assert cli.main([*words, "--cfg", "job"]) == 0, capsys.readouterr().err


def test_there_are_commands_of_every_kind() -> None:
    assert {words.split()[1] for words in commands()} == set(cli.COMMANDS)


def test_links_and_pictures_exist(repository: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert (repository / target).exists(), target


@pytest.mark.parametrize("name", ["README.md", "RESULTS.md"])
def test_links_within_a_page_lead_to_a_heading(repository: Path, name: str) -> None:
    text = re.sub(r"^```.*?^```", "", (repository / name).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(links) > 20 and set(links) <= set(anchors)
    assert len(anchors) == len(set(anchors))  # a second one of a name would be reached by another link


def test_every_column_and_key_is_explained() -> None:
    """The glossary names every column of metrics.csv, every key of result.json and of the bench."""
    from attn_cli.learning.reporting import COLUMNS, SOMETIMES

    source = (Path(cli.__file__).parent / "commands" / "outcome.py").read_text()
    keys = re.findall(r'"(\w+)":', source)
    assert {"test_error", "mean_glimpses"} <= set(keys)
    bench_keys = re.findall(r'^        "(\w+)":', Path(bench.__file__).read_text(), re.MULTILINE)
    mc_keys = re.findall(r'^            "(\w+)":', Path(mc_average.__file__).read_text(), re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", README))
    assert {*COLUMNS, *SOMETIMES} | set(keys) | set(mc_keys) | set(bench_keys) <= named


@pytest.mark.slow
def test_the_example_package_works_as_printed(attn: Attn, tmp_path: Path) -> None:
    """pip installs it beside the wheel; its model and its data set train, evaluate and draw."""
    source, target = tmp_path / "my-attention", tmp_path / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(block("toml"))
    (source / "my_attention.py").write_text(block("python"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (line,) = (line for line in commands() if "calm_ram" in line)
    attn(*shlex.split(line)[1:], "trainer.compile=off", also=target)
    (run,) = (tmp_path / "outputs").glob("bars-calm_ram-*")
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert float(rows[-1]["val_error"]) < 10  # two classes: chance is 50
    attn("eval", "--mc-samples", "2", also=target)
    attn("show", "images=2", "gif=false", also=target)
    assert (run / "pictures" / "paths-test.png").is_file()
    assert "24×32" in attn("data", "info", "bars", also=target).stdout
    assert "bars" in attn("data", "list", also=target).stdout
