"""A model that stops by itself, with the real command: a sweep over the price of a glimpse, evaluation, pictures."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

from tests.cli.conftest import SMALL


def test_a_sweep_over_the_price_and_what_is_known_of_its_runs(attn):
    words = ("model.stop=learned", "model.glimpse_cost=0.5,1", "glimpses.count=4", "trainer.epochs=2")
    done = attn("train", "-m", *SMALL, *words)
    assert "mean glimpses" in done.stdout
    (sweep,) = (attn.folder / "outputs" / "sweeps").iterdir()
    rows = {row["run"]: float(row["mean_glimpses"]) for row in csv.DictReader((sweep / "results.csv").open())}
    assert len(rows) == 2 and all(1 <= mean < 4 for mean in rows.values())
    assert Image.open(sweep / "glimpses.png").size[0] > 300
    run = attn.folder / next(iter(rows))
    result = json.loads((run / "result.json").read_text())
    assert (result["glimpses"], result["mean_glimpses"]) == (4, list(rows.values())[0])
    epochs = list(csv.DictReader((run / "metrics.csv").open()))
    assert all(1 <= float(row["mean_glimpses"]) <= 4 for row in epochs)

    attn("eval", f"run={run}")
    evaluation = json.loads((run / "evaluation-test-mean.json").read_text())
    assert evaluation["mean_glimpses"] == pytest.approx(result["mean_glimpses"], abs=1e-9)
    assert evaluation["test_error"] == pytest.approx(result["test_error"])
    attn("eval", f"run={run}", "mc_samples=3", "repeats=1")
    assert 1 < json.loads((run / "evaluation-test-mc3-repeats1.json").read_text())["mean_glimpses"] < 4
    attn("show", f"run={run}", "images=[0]")
    assert (run / "pictures" / "paths-test.png").is_file()
