"""Videos with the real command: train, evaluate, show; and a model of still images that watches them."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.cli.conftest import Attn

SHORT = (
    "trainer=smoke", "data.train_limit=320", "data.height=40", "data.width=48", "model.hidden=16",
    "trainer.compile=off",
)  # fmt: skip
VIDEO = ("data=moving_digits_track", "data.frames=4", *SHORT)
SOFT = ("model=soft_ram", "scales=1", "glimpses.size=6", "model.features=16", "model.filters=[4,4,4]")
GAZE = ("gaze_on_target", "centre_on_target", "random_on_target")


@pytest.fixture(scope="module")
def watched(tmp_path_factory, data_root) -> Attn:
    attn = Attn(tmp_path_factory.mktemp("videos"), data_root)
    attn("train", *VIDEO, "scales=2", "trainer.epochs=2")
    return attn


@pytest.fixture(scope="module")
def still(tmp_path_factory, data_root) -> Attn:
    """Two glimpses, of images that stand still."""
    attn = Attn(tmp_path_factory.mktemp("still"), data_root)
    attn("train", "data=cluttered_digits_100", *SHORT, *SOFT, "glimpses=2")
    return attn


def test_a_glimpse_a_frame_unless_told_otherwise(watched):
    (run,) = watched.runs()
    assert run.name.startswith("moving_digits_track-ram-4g-")
    assert json.loads((run / "result.json").read_text())["glimpses"] == 4


def test_evaluation_tells_how_often_the_gaze_is_on_the_digit(watched):
    (run,) = watched.runs()
    done = watched("eval")
    result = json.loads((run / "evaluation-test-mean.json").read_text())
    assert result["test_error"] == json.loads((run / "result.json").read_text())["test_error"]
    assert "gaze on the object" in done.stdout and len(result["gaze_on_target_by_frame"]) == 4
    assert all(0 <= result[key] <= 100 for key in GAZE)
    assert result["random_on_target"] == pytest.approx(100 * 28 * 28 / (40 * 48))


def test_videos_are_shown_as_a_strip_and_animations(watched):
    (run,) = watched.runs()
    watched("show", "images=[3,0]")
    assert {path.name for path in (run / "pictures").iterdir()} == {
        "strips-test.png", "glimpses-test-3.gif", "glimpses-test-0.gif",
    }  # fmt: skip
    assert Image.open(run / "pictures" / "glimpses-test-0.gif").n_frames == 4


def test_a_model_of_still_images_follows_in_videos(still):
    """With other data it looks once a frame, however often it looked in training."""
    (run,) = still.runs()
    still("eval", *VIDEO[:2], "data.frames=5", "data.height=40", "data.width=48")
    (path,) = run.glob("evaluation-moving_digits_track-test-mean-*.json")  # the settings of the data have a part in it
    result = json.loads(path.read_text())
    assert (result["mean_glimpses"], len(result["gaze_on_target_by_frame"])) == (5, 5)


def test_a_model_of_still_images_is_shown_videos(still):
    (run,) = still.runs()
    still("show", *VIDEO[:2], "data.height=40", "data.width=48", "images=1")
    names = {path.name for path in (run / "pictures").iterdir()}
    assert names == {"strips-moving_digits_track-test.png", "glimpses-moving_digits_track-test-0.gif"}


def test_a_model_of_still_images_is_where_training_on_videos_starts(still):
    (run,) = still.runs()
    done = still("train", *VIDEO, *SOFT, f"init_from={run}", "outputs=more")
    words = done.stdout.split()
    taken, of = (words[words.index(word) + step] for word, step in (("of", -1), ("of", 1)))
    assert taken == of  # every tensor


def test_other_numbers_of_glimpses_are_refused(attn):
    done = attn("train", *VIDEO, "glimpses=3", code=None)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "data=moving_digits_track has 4 frames, each for one glimpse, and glimpses.count is 3" in done.stderr
    assert not attn.runs()
