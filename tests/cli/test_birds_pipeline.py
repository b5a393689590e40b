"""The steps of Semeniuta & Barth, section IV.C, by the real commands on photos with a planted object: pretrain a trunk,
learn where to look on its map, cut out what was looked at, and read that with another network.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attn_cli import cli
from attn_cli.config.schema import Cub200
from attn_cli.data.batches import open_data
from attn_cli.data.keys import key
from attn_cli.inference.regions import overlap

TEXTURES, SIDE, OBJECT = 4, 256, 72  # classes, pixels a side of a photo and of the object
TRAIN, TEST = 320, 160
SHORT = ("trainer.compile=off", "trainer.threads=1", "logger=none", "trainer.validate_every=4")
TRUNK = ("filters=[8,16]", "kernels=[5,3]", "strides=[2,1]", "pools=[2,2]", "hidden=[]", "dropout=0")
READER = (  # too coarse, and with too few images, for the texture of a small object
   
    "model=convnet_bn", "model.filters=[8,16,32]", "model.kernels=[5,3,3]", "model.strides=[8,2,1]",
    "model.pools=[1,1,2]", "model.hidden=[32]", "model.dropout=0", "trainer.epochs=15", "trainer.batch_size=16",
    "optimizer.lr=0.003", "data.train_limit=64",
)  # fmt: skip


def texture(kind: int, side: int, generator: np.random.Generator) -> np.ndarray:
    """0 or 1 (side, side): stripes across or down, a chequerboard, dots. A mirror leaves each its class."""
    y, x = np.indices((side, side)) + generator.integers(0, 6, (2, 1, 1))
    across, down = y % 6 < 3, x % 6 < 3
    return np.choose(kind, [across, down, across ^ down, across & down]).astype(np.float32)


def photo(kind: int, generator: np.random.Generator) -> tuple[np.ndarray, tuple[int, int]]:
    """A red and white texture of the class among grey ones of any class, on noise; and its left upper corner."""
    image = generator.integers(60, 130, (SIDE, SIDE, 1)).repeat(3, 2).astype(np.float32)
    for other in generator.integers(0, TEXTURES, 14):
        x, y = generator.integers(0, SIDE - 48, 2)
        image[y : y + 48, x : x + 48] = 60 + 120 * texture(other, 48, generator)[:, :, None]
    x, y = generator.integers(28, SIDE - OBJECT - 28, 2)
    image[y : y + OBJECT, x : x + OBJECT] = (230, 60, 60) + texture(kind, OBJECT, generator)[:, :, None] * (0, 170, 170)
    return np.clip(image + generator.normal(0, 12, image.shape), 0, 255).astype(np.uint8), (int(x), int(y))


def photos(folder: Path) -> Path:
    """In the layout of CUB-200-2011."""
    lists: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split")}
    lists |= {"bounding_boxes": [], "classes": [f"{k + 1} kind{k}" for k in range(TEXTURES)]}
    for i in range(TRAIN + TEST):
        kind = i % TEXTURES
        image, (x, y) = photo(kind, np.random.default_rng(key("photo", i)))
        path = folder / "images" / f"kind{kind}" / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        lists["images"].append(f"{i + 1} kind{kind}/{i}.bmp")
        lists["image_class_labels"].append(f"{i + 1} {kind + 1}")
        lists["train_test_split"].append(f"{i + 1} {int(i < TRAIN)}")
        lists["bounding_boxes"].append(f"{i + 1} {x} {y} {OBJECT} {OBJECT}")
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def patterns(folder: Path) -> Path:
    """Other images, for the trunk: a class folder of each texture in red, and one of all of them in grey."""
    for i in range(400):
        generator = np.random.default_rng(key("pattern", i))
        kind = i % 5
        pattern = texture(kind if kind < 4 else int(generator.integers(4)), 48, generator)[:, :, None]
        colours = ((230, 60, 60), (0, 170, 170)) if kind < 4 else ((60, 60, 60), (120, 120, 120))
        image = colours[0] + pattern * colours[1] + generator.normal(0, 12, (48, 48, 3))
        path = folder / f"pattern{kind}" / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)
    return folder


def attn(*words: str) -> None:
    assert cli.main(list(words)) == 0, words


def result(outputs: Path, name: str = "result.json") -> tuple[Path, dict]:
    (path,) = outputs.glob(f"*/{name}")
    return path.parent, json.loads(path.read_text())


def best_fixed_overlap(folder: Path) -> float:
    """What a model reaches that looks at the same square around the middle of every test image, however large."""
    boxes = open_data(Cub200(path=str(folder))).boxes("test")
    half = torch.arange(16, 113, 4)
    squares = torch.stack([112 - half, 112 - half, 112 + half, 112 + half], 1)
    return max(overlap(square.expand_as(boxes), boxes).mean().item() for square in squares)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_regions_that_were_learned_help_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    birds = ("data=cub200", f"data.path={photos(tmp_path / 'photos')}")
    attn(
        "train", "model=convnet_5", *(f"model.{word}" for word in TRUNK), "data=folder", "trainer.epochs=4",
        f"data.path={patterns(tmp_path / 'patterns')}", "outputs=trunk", "optimizer.lr=0.01",
        "trainer.batch_size=32", *SHORT,
    )  # fmt: skip
    trunk, pretrained = result(tmp_path / "trunk")
    assert pretrained["test_error"] < 30
    attn(
        "train", "model=soft_ram", "+model@model.trunk=convnet_5", *(f"model.trunk.{word}" for word in TRUNK), *birds,
        f"model.trunk_from={trunk}", "model.context=none", "model.answer_from=glimpse", "model.reset_every=6",
        "model.resets=2", "model.features=64", "model.hidden=64", "model.limit=0.5", "glimpses.count=3",
        "glimpses.size=8", "scales=1", "trainer.epochs=24", "trainer.batch_size=32", "optimizer.lr=0.003",
        "outputs=attention", *SHORT,
    )  # fmt: skip
    attention, _ = result(tmp_path / "attention")
    attn("eval", f"run={attention}", "repeats=1")
    _, seen = result(tmp_path / "attention", "evaluation-test-mean-repeats1.json")
    print({name: seen[name] for name in ("test_error", "iou", "whole_image_iou")})
    assert seen["iou"] > max(seen["whole_image_iou"], best_fixed_overlap(tmp_path / "photos")) + 0.05
    errors = {}
    for name, source in (("whole", birds[1]), ("attended", "data.path=regions.h5")):
        if name == "attended":
            attn("attend", f"run={attention}", "output=regions.h5")
        attn("train", *READER, birds[0], source, f"outputs={name}", *SHORT)
        run, _ = result(tmp_path / name)
        attn("eval", f"run={run}", "ten_crops=true", "repeats=1")
        errors[name] = result(tmp_path / name, "evaluation-test-mean-ten-crops-repeats1.json")[1]["test_error"]
    print(errors)
    assert errors["attended"] < errors["whole"] - 10
