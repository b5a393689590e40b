"""Readers of sequences by the real commands: forward, backward, both, on other data, beside a ConvNet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Attn

READER = ("model=dram_small", "data=digits_sequence", "trainer=smoke", "data.train_limit=640", "glimpses=1")
READER += ("model.filters=[2,2,2]", "model.features=8", "model.hidden=8", "model.samples=2")
CONVNET = ("model=convnet_10_small", "data=digits_sequence", "trainer=smoke", "data.train_limit=640")
CONVNET += ("model.filters=[2]", "model.kernels=[5]", "model.strides=[4]", "model.pools=[2]", "model.hidden=[8]")


@pytest.fixture(scope="module")
def readers(tmp_path_factory, data_root) -> tuple[Attn, dict[str, Path]]:
    """A folder with a forward reader, a backward reader that shares its glimpse network, and a ConvNet."""
    attn = Attn(tmp_path_factory.mktemp("readers"), data_root)
    attn("train", *READER)
    (forward,) = attn.runs()
    attn("train", *READER, "model.reader=backward", f"model.share_glimpse_from={forward}")
    (backward,) = set(attn.runs()) - {forward}
    attn("train", *CONVNET)
    (convnet,) = set(attn.runs()) - {forward, backward}
    return attn, {"forward": forward, "backward": backward, "convnet": convnet}


def test_combine_writes_both_readers_and_the_paired_interval(readers):
    attn, runs = readers
    for rule, words in (("flip", ()), ("average", ("--mc-samples", "2"))):
        said = attn("combine", f"forward={runs['forward']}", f"backward={runs['backward']}", f"rule={rule}", *words)
        written = Path(said.stdout.strip().splitlines()[-1].removeprefix("Written to "))
        result = json.loads((attn.folder / written).read_text())
        assert result["rule"] == rule and result["images"] > 0
        assert result.keys() >= {"commit", "versions", "device", "threads"}
        low, high = result["gain_interval"]
        assert low <= result["gain"] <= high
        assert result["gain"] == pytest.approx(result["forward_error"] - result["test_error"])


def test_combinations_with_other_readers_or_settings_have_files_of_their_own(readers, tmp_path):
    attn, runs = readers
    forward = shutil.copytree(runs["forward"], tmp_path / "forward", ignore=shutil.ignore_patterns("combined-*"))
    for name in ("one", "two"):
        shutil.copytree(runs["backward"], tmp_path / name)
        attn("combine", f"forward={forward}", f"backward={tmp_path / name}")
    attn(
        "combine",
        f"forward={forward}",
        f"backward={tmp_path / 'one'}",
        "checkpoint=last",
        "focus=true",
        "focus_size=40",
    )
    names = ("mean-with-one", "mean-with-two", "mean-focus40-with-one-last")
    written = {f"combined-test-flip-{name}.json" for name in names}
    assert {path.name for path in forward.glob("combined-*")} == written
    attn("combine", f"forward={forward}", f"backward={tmp_path / 'one'}", "seed=4", f"output={tmp_path / 'elsewhere'}")
    assert {path.name for path in forward.glob("combined-*")} == written
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["combined-test-flip-mean-with-one-seed4.json"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("forward={backward}", "backward={forward}"), "was trained with model.reader=backward: swap the two"),
        (("forward={convnet}", "backward={forward}"), "was trained with model.reader=forward: swap the two"),
        (("forward={convnet}", "backward={backward}", "mc_samples=2"), "mc_samples=2 needs a model that samples"),
    ],
)
def test_what_combine_refuses(readers, words, says):
    attn, runs = readers
    done = attn("combine", *(word.format(**runs) for word in words), code=1)
    assert says in done.stderr and len(done.stderr.splitlines()) == 1


def test_show_draws_both_readers_side_by_side(readers, tmp_path):
    attn, runs = readers
    pair = (f"run={runs['forward']}", f"backward={runs['backward']}")
    attn("show", *pair, "images=[1,4]", f"output={tmp_path}")
    attn("show", pair[0], "images=[1,4]", f"output={tmp_path}")
    width = {path.name: Image.open(path).width for path in tmp_path.iterdir()}
    assert width["forward-backward-paths-test.png"] > 1.3 * width["paths-test.png"]
    assert width["forward-backward-glimpses-test-4.gif"] > 1.3 * width["glimpses-test-4.gif"]
    done = attn("show", f"run={runs['backward']}", f"backward={runs['forward']}", code=1)
    assert "was trained with model.reader=backward" in done.stderr


def test_eval_of_other_images(readers):
    """A reader moves over larger images as it is, or reads once more in a box; a ConvNet gets them resized."""
    attn, runs = readers
    for words in ((), ("--focus",)):
        attn("eval", f"run={runs['forward']}", "data=digits_sequence_110", *words)
    attn("eval", f"run={runs['convnet']}", "data=digits_sequence_110")
    names = [path.name for path in runs["forward"].glob("evaluation-digits_sequence_110-*.json")]
    assert sorted(names) == [f"evaluation-digits_sequence_110-test-mean{how}.json" for how in ("-focus", "")]
    done = attn("eval", f"run={runs['convnet']}", "data=digits_sequence_110", "--focus", code=1)
    assert "focus=true is for models that move over a sequence" in done.stderr


def test_both_readers_of_other_images_with_a_second_look(readers):
    """Each reader alone is in `combine` what it is in `eval`."""
    attn, runs = readers
    other = ("data=digits_sequence_110", "--focus")
    attn("combine", f"forward={runs['forward']}", f"backward={runs['backward']}", "rule=average", *other)
    name = f"combined-digits_sequence_110-test-average-mean-focus-with-{runs['backward'].name}.json"
    both = json.loads((runs["forward"] / name).read_text())
    assert both["focus"] == 54 and both["data"] == "digits_sequence_110"
    for name in ("forward", "backward"):
        attn("eval", f"run={runs[name]}", *other)
        alone = json.loads((runs[name] / "evaluation-digits_sequence_110-test-mean-focus.json").read_text())
        assert both[f"{name}_error"] == pytest.approx(alone["test_error"])
        assert both["digest"] == alone["digest"]


@pytest.mark.parametrize("command", [("eval", "--mc-samples", "2"), ("mc-average",)])
def test_a_convnet_has_nothing_to_sample(readers, command):
    attn, runs = readers
    done = attn(*command, f"run={runs['convnet']}", code=1)
    assert "needs a model that samples where it looks; model=convnet_10_small does not." in done.stderr


def test_a_convnet_is_drawn_and_listed_like_any_model(readers):
    attn, runs = readers
    attn("show", f"run={runs['convnet']}", "images=2")
    assert (runs["convnet"] / "pictures" / "paths-test.png").exists()
    assert json.loads((runs["convnet"] / "result.json").read_text())["glimpses"] == 1
    assert "convnet_10_small" in attn("runs").stdout
