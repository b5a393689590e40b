"""Catch with the real command: train, go on, evaluate, show; and what does not go with it."""

from __future__ import annotations

import csv
import json
import signal
import time

import pytest
from PIL import Image

from tests.cli.conftest import Attn

CATCH = (
    "model=ram_catch", "data=catch", "trainer=smoke", "data.games=64", "trainer.batch_size=16", "model.hidden=16",
    "model.glimpse_hidden=8", "model.glimpse_features=16", "trainer.compile=off",
)  # fmt: skip


@pytest.fixture(scope="module")
def played(tmp_path_factory, data_root):
    attn = Attn(tmp_path_factory.mktemp("catch"), data_root)
    attn("train", *CATCH, "trainer.epochs=2")
    return attn


def test_a_run_tells_what_was_caught_and_by_whom(played):
    (run,) = played.runs()
    assert run.name.startswith("catch-ram_catch-23g-")
    result = json.loads((run / "result.json").read_text())
    assert result["glimpses"] == 23
    assert result["frames"] == 2 * 64 * 23
    assert result["frames_per_second"] == pytest.approx(result["frames"] / result["seconds"])
    assert result["caught"] == pytest.approx(100 - result["test_error"])
    assert result["players"]["perfect"] == 100
    assert result["players"]["random"] < result["players"]["follows_the_ball"] < 100
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [float(row["caught"]) for row in rows] == [pytest.approx(100 - float(row["val_error"])) for row in rows]


def test_evaluation_repeats_the_result(played):
    (run,) = played.runs()
    done = played("eval")
    evaluation = json.loads((run / "evaluation-test-mean.json").read_text())
    result = json.loads((run / "result.json").read_text())
    assert (evaluation["images"], evaluation["mean_glimpses"]) == (10_000, 23)
    assert evaluation["caught"] == result["caught"] and evaluation["players"] == result["players"]
    assert "caught by other players" in done.stdout


def test_games_are_shown_as_animations(played):
    (run,) = played.runs()
    played("show", "images=[3,0]")
    assert {path.name for path in (run / "pictures").iterdir()} == {
        "games-test.png", "game-test-3.gif", "game-test-0.gif",
    }  # fmt: skip
    assert Image.open(run / "pictures" / "game-test-0.gif").n_frames == 24  # 23 frames and how it ended


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(attn):
    whole = (*CATCH, "trainer.epochs=20", "trainer.validate_every=20")
    process = attn.start("train", *whole)
    while not list(attn.folder.glob("outputs/*/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    (run,) = attn.runs()
    attn("train", f"resume={run}")
    attn("train", *whole)
    results = [json.loads((path / "result.json").read_text()) for path in attn.runs()]
    assert results[0]["frames"] == results[1]["frames"] == 20 * 64 * 23
    first, second = (list(csv.DictReader((path / "metrics.csv").open())) for path in attn.runs())
    assert [row["train_loss"] for row in first] == [row["train_loss"] for row in second]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train", "data=catch"), "data=catch is a game, which does not suit model=ram: use model=ram_catch"),
        (("train", "model=ram_catch"), "data=digits is no game, which does not suit model=ram_catch"),
        (("train", *CATCH, "data.games=0"), "data.games must be at least 1"),
        (("train", *CATCH, "model.policy=nowhere"), "model.policy has no choice 'nowhere'"),
        (("train", *CATCH, "scales=2", "glimpses.size=5"), "glimpses.size=5 is odd"),
    ],
)
def test_refused(attn, words, sentence):
    done = attn(*words, code=None)
    assert done.returncode != 0 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not attn.runs()


@pytest.mark.parametrize("words", [("eval", "mc_samples=4"), ("mc-average",)])
def test_a_game_has_no_answers_to_average(played, words):
    done = played(*words, code=None)
    assert done.returncode != 0 and "model=ram_catch plays a game and has none" in done.stderr
