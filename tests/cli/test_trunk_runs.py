"""A trunk in real runs: refused without weights, taken from a run, kept in the run's own checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from attn_cli import cli
from attn_cli.learning import checkpoints

SMALL = ("filters=[3,4]", "kernels=[3,3]", "strides=[1,1]", "pools=[2,2]", "hidden=[]")
SMOKE = ("trainer=smoke", "trainer.limit_train_steps=2", "data.train_limit=256", "trainer.threads=1", "logger=none")


def only(outputs: Path) -> Path:
    (found,) = outputs.glob("*/config.yaml")
    return found.parent


def test_a_trunk_from_training_to_evaluation(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTN_DATA", str(data_root))
    soft = ["train", "model=soft_ram", "+model@model.trunk=convnet_5", *(f"model.trunk.{word}" for word in SMALL)]
    soft += ["model.features=8", "model.hidden=8", "data=digits", "scales=1", "outputs=soft", *SMOKE]
    assert cli.main(soft) == 1
    assert "is a trunk whose weights are absent: make them with `attn train model=convnet_5" in capsys.readouterr().err
    assert not (tmp_path / "soft").exists()

    network = ["train", "model=convnet_5", *(f"model.{word}" for word in SMALL), "data=digits", "outputs=trunk"]
    assert cli.main([*network, *SMOKE]) == 0
    trunk = only(tmp_path / "trunk")
    theirs = checkpoints.load(trunk / "checkpoints" / "best.ckpt")["state_dict"]
    assert cli.main([*soft, f"model.trunk_from={trunk}"]) == 0
    run = only(tmp_path / "soft")
    for which in ("best", "last"):
        ours = checkpoints.load(run / "checkpoints" / f"{which}.ckpt")["state_dict"]
        kept = {name: value for name, value in ours.items() if name.startswith("model.trunk.")}
        assert len(kept) == 4
        assert all(value.equal(theirs[name.replace("trunk", "layers")]) for name, value in kept.items())

    shutil.rmtree(trunk)  # which nothing needs from here on
    assert cli.main(["eval", f"run={run}", "repeats=1"]) == 0
    again = json.loads((run / "evaluation-test-mean-repeats1.json").read_text())
    assert again["test_error"] == json.loads((run / "result.json").read_text())["test_error"]
    assert cli.main(["show", f"run={run}", "images=1", "gif=false"]) == 0
    assert (run / "pictures" / "paths-test.png").is_file()
    # A run that starts from this one takes its trunk over.
    words = [word for word in soft if word != "outputs=soft"]
    assert cli.main([*words, "outputs=next", f"init_from={run}"]) == 0
    last = checkpoints.load(only(tmp_path / "next") / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(value.equal(last[name]) for name, value in kept.items())
