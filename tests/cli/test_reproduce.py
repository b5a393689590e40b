"""`attn reproduce` by the real command: a made-up table is run, stopped and gone on with; bad input is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attn_cli import cli
from attn_cli.commands.reproduce import seconds
from attn_cli.config.completion import complete
from attn_cli.errors import Refused
from attn_cli.papers import index, records
from tests.cli.conftest import Attn

# `attn` with one more table: a lesson, a cell that starts from it, an evaluation of that.
TOY = """
import sys
from attn_cli import cli
from attn_cli.papers import index
from attn_cli.papers.cells import Cell, Evaluate, Published, Table, Train

small = ("model.hidden=32", "model.glimpse_hidden=16", "model.glimpse_features=32", "data.train_limit=640",
         "trainer.batch_size=32")
index.TABLES["toy/1"] = Table("toy/1", "Toy", (
    Cell("lesson", "Lesson", Train("demo", (*small, "trainer.epochs=6"), cpu=9), lesson=True),
    Cell("one", "One", Train("demo", (*small, "trainer.epochs=1"), start="lesson", cpu=9), (Published("v1", 5.0),)),
    Cell("many", "Many", Evaluate("one", ("mc_samples=2", "repeats=1"), cpu=9)),
), versions=("v1",))
sys.exit(cli.main(sys.argv[1:]))
"""
RESULTS = "# Mine\n<!-- attn reproduce toy/1 begins -->\n<!-- attn reproduce toy/1 ends -->\nThe end.\n"


def start(attn: Attn, *given: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TOY, "reproduce", *given],
        cwd=attn.folder, env=attn.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.timeout(900)  # four processes import torch, which takes a busy machine long
def test_a_table_is_run_stopped_and_gone_on_with(attn: Attn) -> None:
    (attn.folder / "RESULTS.md").write_text(RESULTS)
    outputs = attn.folder / "outputs" / "reproduce"
    process = start(attn, "toy/1")
    while not list(outputs.glob("toy/1/lesson/seed-1/*/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 143 and "The same command goes on from here." in err, err
    (lesson,) = outputs.glob("toy/1/lesson/seed-1/*/config.yaml")
    left = json.loads((lesson.parent / "status.json").read_text())
    assert left["status"] == "terminated"
    with pytest.raises(ProcessLookupError):
        os.kill(left["pid"], 0)

    process = start(attn, "toy/1")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "3 runs are missing" in out and f"attn train resume={lesson.parent.relative_to(attn.folder)}" in out
    assert list(outputs.glob("toy/1/lesson/seed-1/*/config.yaml")) == [lesson]  # not a second one
    measured = json.loads((outputs / "measured" / "toy-1.json").read_text())
    (run,) = outputs.glob("toy/1/one/seed-1/*/result.json")
    (averaged,) = outputs.glob("toy/1/one/seed-1/*/evaluation-test-mc2-repeats1.json")
    for cell, path in (("one", run), ("many", averaged)):
        (record,), result = measured[cell], json.loads(path.read_text())
        assert record["value"] == pytest.approx(result["test_error"], abs=1e-4)
        assert record["seeds"] == [1] and record["images"] == result["images"] == 2000
        assert f"**{result['test_error']:.2f}**" in (attn.folder / "RESULTS.md").read_text()
    assert f"init_from={lesson.parent.relative_to(attn.folder)}" in measured["one"][0]["command"]
    assert "one " in out and "Written into RESULTS.md." in out


@pytest.fixture
def unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and a package in which nothing is measured yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records, "PACKAGED", tmp_path / "site-packages" / "attn_cli" / "papers" / "measured")


def test_everything_is_listed(capsys: pytest.CaptureFixture[str], unmeasured: None) -> None:
    records.add(index.TABLES["ram/1a"], "6-glimpses", records.Record((1, 2, 3), 0.9, 0.04))
    assert cli.main(["reproduce"]) == 0
    said = capsys.readouterr().out
    for name, table in index.TABLES.items():
        assert f"{name} · {table.title}" in said
        for cell in table.cells:
            assert f" {cell.name} " in said
    assert "0.90 ± 0.04" in said and "attn reproduce ram/2b --only 4-glimpses" in said
    assert re.fullmatch(r"1 of \d+ cells are measured\.", said.splitlines()[-1])
    assert cli.main(["reproduce", "ram/1b", "--list"]) == 0
    assert "ram/1a" not in capsys.readouterr().out


def test_names_of_tables_are_completed() -> None:
    following = {name: words for name, (_, _, words) in cli.COMMANDS.items()}
    assert complete("attn reproduce ram/2", following, {}, Path()).words == ("ram/2a", "ram/2b")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["ram/2c"], "ram/2c is not a table. Did you mean 'ram/2b'"),
        (["ram/2a", "--only", "6-glimpse"], "6-glimpse is not a cell of ram/2a. Did you mean '6-glimpses'"),
        (["soft_ram/3-64", "--only", "goodfellow"], "soft_ram/3-64/goodfellow cannot be run: cited there"),
        (
            ["ram/2b", "--only", "4-glimpses", "--budget", "5min"],
            "too small for one run: ram/2b/4-glimpses, seed 1 takes about 15 min",
        ),
        (["ram/2a", "--budget", "long"], "--budget long is not a time: write it like 2h"),
        (["ram/2a", "--seeds", "0"], "--seeds must be at least 1 and at most 100, not 0"),
        (["ram/2a", "--seeds", "101", "--budget", "1s"], "--seeds must be at least 1 and at most 100, not 101"),
        (["ram/2a", "--seeds", "x"], "Argument --seeds: invalid int value: 'x'; see `attn reproduce --help`."),
        (["ram/1a", "ram/1b"], "Unrecognized arguments: ram/1b; see `attn reproduce --help`."),
        (["--seeds", "2"], "are for one table: name it"),
        (["ram/2a", "--list", "--only", "6-glimpse"], "say what is run; --list and --write run nothing"),
        (["ram/2a", "--write", "--seeds", "2"], "say what is run; --list and --write run nothing"),
        (["ram/2a", "--list", "--seeds", "1"], "say what is run; --list and --write run nothing"),
    ],
)
def test_what_is_refused(
    given: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, unmeasured: None
) -> None:
    assert cli.main(["reproduce", *given]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("attn reproduce: ") and says in line
    assert not (tmp_path / "outputs").exists()


def test_results_md_edited_by_hand_is_refused_before_anything_is_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, unmeasured: None
) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("<!-- attn reproduce ram/2b begins -->\n<!-- attn reproduce ram/2b ends -->\n")
    assert cli.main(["reproduce", "--write"]) == 0
    results.write_text(results.read_text().replace("| 14.95 |", "| 4.95 |"))
    assert cli.main(["reproduce", "ram/2b"]) == 1
    said = capsys.readouterr().err
    assert "edited by hand between the markers of ram/2b" in said
    assert [line[:17] for line in said.splitlines()[-2:]] == ["-| `4-glimpses` |", "+| `4-glimpses` |"]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("text", "value"), [("2h", 7200), ("90min", 5400), ("90m", 5400), ("1h30m", 5400), ("1.5h", 5400), ("45 s", 45)]
)
def test_times(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "2", "h", "2h3", "2 hours", "-2h", "0h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(Refused, match="is not a time"):
        seconds(text)
