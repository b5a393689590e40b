"""A model that chooses its scale, with the real command: training that is interrupted, evaluation, pictures."""

from __future__ import annotations

import csv
import json
import signal
import time

import pytest
from PIL import Image

from tests.cli.conftest import SMALL

SCALE = (
    *SMALL, "data=digits_scales", "data.height=40", "data.width=44", "data.largest=36", "data.train_limit=256",
    "model.scale=learned", "glimpses.count=3", "scales.count=1", "trainer.epochs=20", "trainer.validate_every=20",
)  # fmt: skip


def test_from_training_to_pictures(attn):
    process = attn.start("train", *SCALE)
    while not list(attn.folder.glob("outputs/*/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    (run,) = attn.runs()
    attn("train", f"resume={run}")
    assert len(list(csv.DictReader((run / "metrics.csv").open()))) == 20

    done = attn("eval", "repeats=1")
    evaluation = json.loads((run / "evaluation-test-mean-repeats1.json").read_text())
    first, *others = evaluation["mean_magnification"]
    assert first == pytest.approx(8) and len(others) == 2 and all(1 <= mean <= 8 for mean in others)
    assert f"{first:.2f} {others[0]:.2f} {others[1]:.2f} pixels a cell, by glimpse" in done.stdout
    assert 0 < evaluation["iou"] < 1 and "mislocalised_errors" in evaluation
    attn("eval", "mc_samples=3", "repeats=1")
    assert json.loads((run / "evaluation-test-mc3-repeats1.json").read_text())["mc_samples"] == 3
    attn("show", "images=[0]")
    assert (run / "pictures" / "paths-test.png").is_file()
    assert Image.open(run / "pictures" / "glimpses-test-0.gif").n_frames == 3
