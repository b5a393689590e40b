"""What is told of a data set without its images is what opening it tells."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_cli.commands.data import config_of
from attn_cli.config import schema
from attn_cli.data import house_numbers, prepared, writing
from attn_cli.data.batches import open_data
from attn_cli.data.prepared import Prepared
from attn_cli.data.shapes import shape_of, usual_length


def described(info: Any) -> dict[str, Any]:
    """Without the number of images, which only opening tells, and the names of the classes."""
    left_out = ("train", "validation", "test", "class_names")
    return {key: value for key, value in dataclasses.asdict(info).items() if key not in left_out}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("digits", {}),
        ("cluttered_digits_100", {}),
        ("digits_pairs", {}),
        ("digits_sum", {"height": 80}),
        ("digits_sequence", {}),
        ("digits_sequence_110", {}),
        ("house_numbers", {}),
        ("house_numbers_110", {"grey": False}),
    ],
)
def test_of_digits(name: str, keys: dict[str, Any], digit_root: Path) -> None:
    config = dataclasses.replace(config_of(name), root=str(digit_root), **keys)
    assert described(shape_of(config)) == described(open_data(config).info)


@pytest.mark.parametrize(("name", "grey"), [("svhn", True), ("svhn_110", False)])
def test_of_house_numbers(name: str, grey: bool, tmp_path: Path) -> None:
    side, shape = 128 if name == "svhn_110" else 64, () if grey else (3,)
    images = {split: np.zeros((20, *shape, side, side), np.uint8) for split in ("train", "test")}
    labels = {split: np.tile(np.array([3, 10, *[prepared.EMPTY] * 4], np.uint8), (20, 1)) for split in images}
    source = Prepared(name + ("" if grey else "_rgb"), "made for a test", tuple("0123456789"), images, labels)
    writing.write(source, prepared.path_of(source.name, tmp_path))
    config = dataclasses.replace(config_of(name), root=str(tmp_path), grey=grey, background=7)
    assert described(shape_of(config)) == described(open_data(config).info)


def test_of_photos_from_their_papers() -> None:
    for name, size, classes in (("cifar10", (3, 32, 32), 10), ("cub200", (3, 224, 224), 200)):
        info = shape_of(config_of(name))
        assert ((info.channels, info.height, info.width), info.classes, info.length) == (size, classes, 0)


def test_own_images_are_opened(tmp_path: Path) -> None:
    images = np.zeros((40, 9, 14, 3), np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(40) % 4)
    info = shape_of(schema.Arrays(path=str(tmp_path / "own.npz")))
    assert (info.channels, info.height, info.width, info.classes) == (3, 9, 14, 4)


def test_the_usual_length_is_that_of_the_annotations() -> None:
    counts = (5137, 18071, 8574, 1413, 9)  # numbers of 1 to 5 digits in SVHN's training split
    mean = sum(k * n for k, n in enumerate(counts, 1)) / sum(counts)
    for name in ("svhn", "digits_sequence", "house_numbers_110"):
        assert usual_length(config_of(name)) == pytest.approx(mean)
    assert usual_length(config_of("mnist")) is None
    assert shape_of(config_of("house_numbers")).background == house_numbers.BACKGROUND
