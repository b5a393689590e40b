"""Soft attention by the commands that people type: trained, evaluated, drawn, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from attn_cli.learning.checkpoints import load

MODELS = {
    "rsam": ("model.hidden=64",),
    "draw_reader": ("model.hidden=8",),
    "stn": ("glimpses=1", "model.hidden=8", "model.features=8", "model.filters=[2,2,4]"),
    "soft_ram": (
        "model.hidden=8", "model.features=8", "model.filters=[2,2,4]", "model.noise=0", "model.mean_image=true",
    ),
}  # fmt: skip


def save(path, side: int) -> None:
    random = np.random.default_rng(side)
    parts = {"train": 64, "validation": 20, "test": 20}
    pixels = {f"{name}_images": random.integers(0, 256, (n, side, side), np.uint8) for name, n in parts.items()}
    np.savez(path, **pixels, **{f"{name}_labels": np.arange(n) % 3 for name, n in parts.items()})


def words(name: str) -> list[str]:
    own = MODELS[name]
    glimpses = [] if "glimpses=1" in own else ["glimpses=2"]
    return ["trainer=smoke", f"model={name}", *glimpses, "scales=1", "data=arrays", "data.path=small.npz", *own]


@pytest.mark.parametrize("name", MODELS)
def test_trained_evaluated_and_drawn(attn, name):
    save(attn.folder / "small.npz", 16)
    attn("train", *words(name), "trainer.batch_size=32")
    (run,) = attn.runs()
    attn("eval", f"run={run}")
    (found,) = run.glob("evaluation-*.json")
    evaluation = json.loads(found.read_text())
    assert 0 <= evaluation["test_error"] <= 100
    attn("show", f"run={run}")
    assert any((run / "pictures").iterdir())
    result = json.loads((run / "result.json").read_text())
    assert (result["size"] is None) == (result["scales"] is None) == (name == "rsam")  # it sees the whole image
    if name == "rsam":
        assert len(evaluation["mask_zeros"]) == len(evaluation["mean_mask"]) == 2
    if name == "soft_ram":
        mean = load(run / "checkpoints" / "last.ckpt")["state_dict"]["model.mean_image"]
        pixels = np.load(attn.folder / "small.npz")["train_images"]
        assert torch.allclose(mean[0], torch.from_numpy(pixels.mean(0)).float(), atol=1e-3)
    averaged = attn("eval", f"run={run}", "--mc-samples", "2", code=None)
    why = {
        "soft_ram": "mc_samples=2 needs noise, and this run of model=soft_ram was trained with model.noise=0.",
        "rsam": "needs a model that samples where it looks; model=rsam does not.",
    }
    assert averaged.returncode != 0 and why.get(name, f"model={name} does not.") in averaged.stderr
    save(attn.folder / "larger.npz", 24)
    other = attn("eval", f"run={run}", "data=arrays", "data.path=larger.npz", code=None)
    sizes = {"rsam": "made for images of 16×16, not of 24×24", "soft_ram": "is of 16×16, the images are of 24×24"}
    if name in sizes:
        assert other.returncode != 0 and sizes[name] in other.stderr and "Traceback" not in other.stderr
    else:
        assert other.returncode == 0


def test_the_run_s_own_images_need_not_be_there_to_evaluate_it_on_others(attn):
    attn("train", "trainer=smoke", "model=soft_ram", "scales=1", "data=digits", "data.train_limit=64", "model.hidden=8")
    (run,) = attn.runs()
    config = (run / "config.yaml").read_text()
    config = config.replace("source: digits", "source: mnist", 1).replace("download: true", "download: false", 1)
    (run / "config.yaml").write_text(config)
    assert "is not prepared" in attn("eval", f"run={run}", code=1).stderr
    attn("eval", f"run={run}", "data=digits")


def test_images_that_the_run_was_not_trained_on(attn):
    """Of files the size is in them alone. Colour is not read by a reader of grey."""
    save(attn.folder / "small.npz", 16)
    splits = ("train", "validation", "test")
    colour = {f"{split}_images": np.zeros((20, 16, 16, 3), np.uint8) for split in splits}
    np.savez(attn.folder / "colour.npz", **colour, **{f"{split}_labels": np.arange(20) % 3 for split in splits})
    attn("train", *words("soft_ram"), "trainer.batch_size=32")
    (run,) = attn.runs()
    refused = attn("eval", f"run={run}", "data=arrays", "data.path=colour.npz", code=1).stderr
    assert "was trained on images of 1 channels, and data=arrays has 3: choose other images" in refused
    (attn.folder / "small.npz").rename(attn.folder / "other.npz")
    refused = attn("eval", f"run={run}", "data=arrays", "data.path=other.npz", code=1).stderr
    assert "is for images of the size that it was trained on: data.path=small.npz is not a file" in refused


def test_batch_normalisation_over_one_image_is_refused(attn):
    save(attn.folder / "small.npz", 16)
    done = attn("train", *words("rsam"), "trainer.batch_size=1", code=None)
    assert done.returncode != 0 and "needs at least 2 images a batch, and there would be 1" in done.stderr
    assert "Traceback" not in done.stderr and attn.runs() == []


def test_a_reader_that_goes_on_is_refitted(attn):
    save(attn.folder / "small.npz", 16)
    soft = ("trainer=smoke", "model=soft_ram", "glimpses=2", "scales=1", "data=arrays", "data.path=small.npz")
    soft = (*soft, "model.hidden=8", "model.features=8", "model.filters=[2,2,4]", "trainer.batch_size=32")
    alone = attn("train", *soft, "model.refit=true", code=None)
    assert alone.returncode != 0
    assert "model.refit is for a reader that has learned to read: name its run with init_from=RUN." in alone.stderr
    attn("train", *soft)
    (first,) = attn.runs()
    for changes in (("model.glimpse=conv",), ("model.centre=relative",)):
        other = attn("train", *soft, "model.refit=true", f"init_from={first}", *changes, code=None)
        assert other.returncode != 0
        assert "model.refit is for model.glimpse=fc and model.centre=absolute." in other.stderr
    said = attn("train", *soft, "model.refit=true", f"init_from={first}", "outputs=more").stdout
    assert said.count("model.refit: grids ") == 1
    (run,) = (attn.folder / "more").iterdir()
    assert "model.refit: grids " in (run / "log.txt").read_text()
    together = attn("train", *soft, "model.refit=true", f"init_from={first}", "outputs=two", "trainer.parallel_seeds=2")
    assert together.stdout.count("model.refit: grids ") == 2
