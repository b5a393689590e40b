"""Sequences against a painter in real numbers; layouts, labels and splits; the statistics against annotations."""

from __future__ import annotations

import dataclasses
import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attn_cli.commands.data import config_of
from attn_cli.commands.data import main as data_command
from attn_cli.config import registry, schema
from attn_cli.data import layouts, prepared, writing
from attn_cli.data.batches import Composed, open_data
from attn_cli.data.keys import draws
from attn_cli.data.prepared import Prepared
from attn_cli.data.sequences import Sequences, cut_to_ink
from attn_cli.data.sources import svhn_layout
from attn_cli.data.splits import digest_of
from tests.data.conftest import assert_batches_are_pure

ANNOTATIONS = "svhn/svhn_format1_annotations.h5"


def opened(root: Path, **keys: Any) -> Composed:
    data = open_data(schema.Sequences("digits_sequence", "digits", root=str(root), **keys))
    assert isinstance(data, Composed)
    return data


def numbers_of(size: tuple[int, int] = (54, 54), count: int = 4000, random_crop: bool = False) -> layouts.Numbers:
    return layouts.draw(layouts.Pool(np.arange(100) % 10), size, random_crop, count, "numbers")


def painted(
    ink: np.ndarray, extent: np.ndarray, numbers: layouts.Numbers, size: tuple[int, int], blur: np.ndarray
) -> np.ndarray:
    """(B, H, W) in real numbers, a pixel of a digit after another: what part of it lies in what a pixel takes in."""
    out = np.zeros((len(numbers.count), *size))
    for number, digit, edges in zip(numbers.number, numbers.digit, numbers.box, strict=True):
        averages = []
        for axis, (low, high) in enumerate(edges.reshape(2, 2)):
            scale = extent[digit, axis] * 256 / (high - low)  # pixels of the digit per pixel of the image
            middle = (np.arange(size[axis]) + 0.5 - low / 256) * scale
            width = max(1.0, scale * (1 + 2 * blur[number, axis] / 256))
            parts = [
                np.clip(np.minimum(middle + width / 2, k + 1) - np.maximum(middle - width / 2, k), 0, None) / width
                for k in range(ink.shape[1])
            ]
            averages.append(np.stack(parts, 1))
        out[number] += averages[0] @ ink[digit] @ averages[1].T
    return np.minimum(out, 255)


@pytest.mark.parametrize("size", [(54, 54), (110, 110), (54, 80), (61, 54)])
@pytest.mark.parametrize("random_crop", [False, True])
@pytest.mark.parametrize("blurred", [False, True])
def test_equal_to_the_painter(size: tuple[int, int], random_crop: bool, blurred: bool) -> None:
    digits = (draws((40, 28, 28), "digits") >> 23).astype(np.uint8)
    digits[:, :4], digits[:20, :, 18:] = 0, 0
    scenes = Sequences(size, random_crop, digits, np.arange(40) % 10)
    numbers = layouts.draw(scenes.pool, size, random_crop, 12, "painter")
    blur = draws((12, 2), "blur") % 600 if blurred else np.zeros((12, 2), np.int64)
    made = scenes.draw(numbers, blur if blurred else None)
    assert made.dtype == torch.uint8 and made.shape == (12, *size)
    expected = painted(scenes.ink.numpy(), scenes.extent, numbers, size, blur)
    difference = np.abs(made.numpy() - expected)
    assert difference.max() < 6 and difference.mean() < 0.6 and expected.max() > 200


def test_ink_is_cut_out() -> None:
    digits = np.zeros((3, 28, 28), np.uint8)
    digits[0, 5:15, 7:19], digits[1, 2:22, 10:13] = 9, 7  # the second is slim; the third empty
    ink, extent = cut_to_ink(digits)
    assert extent.tolist() == [[10, 12], [20, 10], [28, 28]] and ink.shape == (3, 28, 28)
    assert (ink[0, :10, :12] == 9).all() and ink[0].sum() == 9 * 120
    assert (ink[1, :20, 3:6] == 7).all() and ink[1].sum() == 7 * 60  # 3 pixels of ink in the middle of 10
    assert not ink[2].any()


def test_digits_lie_from_left_to_right_inside_the_crop() -> None:
    for size in ((54, 54), (110, 110), (70, 54)):
        numbers = numbers_of(size)
        top, bottom, left, right = numbers.box.T
        assert (bottom > top + 256).all() and (right > left + 256).all()
        same = numbers.number[1:] == numbers.number[:-1]
        assert ((left + right)[1:] > (left + right)[:-1])[same].all()
        gap = (left[1:] - right[:-1])[same] / (right - left)[1:][same]
        assert gap.min() > -0.5  # of a digit's width
        # The box around all digits is 64 / 1.3 pixels in both directions, in the middle.
        for low, high, side in ((top, bottom, size[0]), (left, right, size[1])):
            first = np.full(len(numbers.count), 10**6)
            last = -first
            np.minimum.at(first, numbers.number, low)
            np.maximum.at(last, numbers.number, high)
            assert np.abs(last - first - 64 / 1.3 * 256).max() <= 2
            assert np.abs(first + last - side * 256).max() <= 2


def test_training_crops_are_anywhere_within_the_margin() -> None:
    numbers = numbers_of((110, 54), 8000, random_crop=True)
    for axis, side in ((0, 110), (1, 54)):
        offsets, counts = np.unique(numbers.middle[:, axis] / 256 - side / 2, return_counts=True)
        assert offsets.tolist() == list(range(-5, 6)) and np.abs(counts - 8000 / 11).max() < 6 * (8000 / 11) ** 0.5
    assert np.abs(np.corrcoef(numbers.middle.T)[0, 1]) < 0.1


def test_layouts_follow_the_statistics() -> None:
    found = json.loads(files("attn_cli.data").joinpath("svhn_layout.json").read_text())
    numbers = numbers_of(count=30_000)
    share = np.array(found["lengths"]) / sum(found["lengths"])
    assert np.abs(np.bincount(numbers.count, minlength=6)[1:] / 30_000 - share).max() < 0.012
    for name, chosen in (
        ("single", numbers.count[numbers.number] == 1),
        ("leading", (numbers.count[numbers.number] > 1) & (numbers.place == 0)),
        ("following", numbers.place > 0),
    ):
        seen = np.bincount(numbers.digit[chosen] % 10, minlength=10) / chosen.sum()
        assert np.abs(seen - np.array(found[name]) / sum(found[name])).max() < 0.025
    assert set(np.unique(numbers.digit)) == set(range(100))  # every digit of a class is used


@pytest.mark.real_data
def test_statistics_are_those_of_the_annotations(real_data: Path) -> None:
    path = real_data / ANNOTATIONS
    if not path.is_file():
        pytest.skip(f"no {path}")
    committed = files("attn_cli.data").joinpath("svhn_layout.json").read_text()
    assert svhn_layout.to_text(svhn_layout.measure(*svhn_layout.read(path))) == committed


@pytest.mark.real_data
def test_layouts_look_like_the_annotated_numbers(real_data: Path) -> None:
    """Heights and widths of digits as shares of the box around the number, which no single statistic states."""
    path = real_data / ANNOTATIONS
    if not path.is_file():
        pytest.skip(f"no {path}")
    offset, box, _ = svhn_layout.read(path)
    count = np.diff(offset)
    number = np.repeat(np.arange(len(count)), count)
    low, high = np.minimum.reduceat(box[:, :2], offset[:-1]), np.maximum.reduceat(box[:, 2:], offset[:-1])
    real = (box[:, 2:] - box[:, :2]) / (high - low)[number]
    ours = numbers_of(count=30_000)
    made = np.stack([ours.box[:, 3] - ours.box[:, 2], ours.box[:, 1] - ours.box[:, 0]], 1) / (64 / 1.3 * 256)
    for length in (2, 3, 4):
        expected = np.percentile(real[count[number] == length], (10, 25, 50, 75), axis=0)
        found = np.percentile(made[ours.count[ours.number] == length], (10, 25, 50, 75), axis=0)
        assert np.abs(found - expected).max() < 0.035


def test_statistics_of_made_up_annotations() -> None:
    """Digits 10×20, 15 apart, each 3 higher than the one before; three other numbers are left out."""
    rows = [[(15 * i, 30 - 3 * i, 15 * i + 10, 50 - 3 * i) for i in range(n)] for n in (1, 2, 3, 4)]
    rows[2][1] = (17, 27, 23, 47)  # a slim digit, which is a 1
    rows.append([(15, 0, 25, 20), (0, 0, 10, 20)])  # from right to left
    rows.append([(0, 0, 10, 20), (5, 30, 15, 50)])  # steep
    rows.append([(12 * i, 0, 12 * i + 10, 20) for i in range(6)])  # too long
    offset = np.cumsum([0, *map(len, rows)])
    labels = np.full(offset[-1], 4, np.uint8)
    labels[[0, 1, 4]] = 2, 3, 1
    found = svhn_layout.measure(offset, np.array([box for row in rows for box in row], np.int64), labels)
    assert found["numbers"] == 4 and found["lengths"] == [1, 1, 1, 1, 0]
    assert (found["single"], found["leading"], found["following"]) == (
        [0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 2, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 5, 0, 0, 0, 0, 0],
    )
    assert set(found["pitch"]) == {1500, 1875} and set(found["height"]) == {20_000} and set(found["offset"]) == {0}
    assert all(set(quantiles) == {-200} for quantiles in found["slope"].values())
    slim, wide = found["width"]["one"][0], found["width"]["other"][0]
    assert 1.6 < wide / slim < 1.7
    assert abs(found["aspect"]["2"][0] * wide - 500_000) < 2000  # 10 wide, 20 high


def test_labels_terminate_and_pad(digit_root: Path) -> None:
    data = opened(digit_root)
    for labels in (data.train_batch(0, 0, 0, 60)[1], data.fixed("test")[1]):
        assert labels.dtype == torch.int64 and labels.shape[1] == 6
        for row in labels.tolist():
            length = row.index(10)
            assert 1 <= length <= 5 and all(0 <= k < 10 for k in row[:length])
            assert row[length + 1 :] == [-1] * (5 - length)


def test_labels_name_the_digits_that_are_shown(tmp_path: Path) -> None:
    """Digit k is a block of grey 20 + 20 k: reading columns from left to right gives the labels."""
    kept = np.arange(50) % 10
    grey = np.tile((20 + 20 * kept)[:, None, None], (28, 28)).astype(np.uint8)
    images, labels = dict.fromkeys(prepared.SPLITS, grey), dict.fromkeys(prepared.SPLITS, kept.astype(np.uint8))
    writing.write(Prepared("digits", "flat", tuple("0123456789"), images, labels), prepared.path_of("digits", tmp_path))
    data = opened(tmp_path, height=110, width=110)
    composer = data._composers["train"]
    assert isinstance(composer, Sequences)
    numbers = layouts.draw(composer.pool, (110, 110), False, 200, "shown")
    shown, targets = composer.draw(numbers).numpy(), composer.targets(numbers)
    checked = 0
    for number, place, box in zip(numbers.number, numbers.place, numbers.box, strict=True):
        top, bottom, left, right = box / 256
        others = numbers.box[(numbers.number == number) & (numbers.place != place)] / 256
        overlapped = ((others[:, 2] < right) & (others[:, 3] > left)).any()
        middle = shown[number][round((top + bottom) / 2), round((left + right) / 2)]
        if not overlapped:
            checked += 1
            assert abs(int(middle) - 20 - 20 * targets[number, place]) <= 4
    assert checked > 150


@pytest.mark.parametrize("name", registry.SEQUENCES)
def test_every_configured_set(name: str, digit_root: Path) -> None:
    config = dataclasses.replace(config_of(name), source="digits", root=str(digit_root))
    assert (config.retina.size, config.retina.scales) == (12, 2)
    data, side = open_data(config), 110 if name.endswith("110") else 54
    info = data.info
    assert (info.name, info.channels, info.height, info.width, info.length) == (name, 1, side, side, 5)
    assert info.classes == 10 and info.class_names == tuple("0123456789")
    assert (info.train, info.validation, info.test, info.background) == (60, 20, 30, 0)
    images, labels = data.train_batch(0, 0, 0, 16)
    assert images.dtype == torch.uint8 and images.shape == (16, 1, side, side) and labels.shape == (16, 6)
    fixed, targets = data.fixed("test")
    assert fixed.shape == (30, 1, side, side) and targets.shape == (30, 6) and fixed.dtype == torch.uint8
    assert data.digest("test") == digest_of(fixed, targets) != data.digest("validation")


def test_a_batch_is_a_pure_function_of_its_arguments(digit_root: Path) -> None:
    assert_batches_are_pure(opened(digit_root), opened(digit_root))


def test_every_split_has_its_own_digits(tmp_path: Path) -> None:
    grey = {"train": 10, "validation": 60, "test": 110}
    images = {split: np.full((20, 28, 28), value, np.uint8) for split, value in grey.items()}
    labels = {split: (np.arange(20) % 10).astype(np.uint8) for split in grey}
    writing.write(Prepared("digits", "flat", tuple("0123456789"), images, labels), prepared.path_of("digits", tmp_path))
    data = opened(tmp_path)
    for split, value in grey.items():
        shown = data.train_batch(0, 0, 0, 20)[0] if split == "train" else data.fixed(split)[0]
        middle = shown[(shown > 0.9 * value)].float()
        assert value * 0.98 <= middle.median() <= value * 1.02


def test_a_class_that_never_occurs_is_not_shown(digit_root: Path) -> None:
    data = opened(digit_root, train_limit=10)  # no 7 among them
    labels = data.train_batch(0, 0, 0, 60)[1]
    assert 7 not in labels and data.info.train == 10
    assert 7 in data.fixed("test")[1] and 7 not in data.fixed("validation")[1]


def test_fixed_scenes_are_these_scenes(digit_root: Path) -> None:
    """Validation and test scenes of everybody depend on this: a change is a change of every published number."""
    tight = opened(digit_root)
    tight.train_batch(5, 5, 0, 32)
    torch.manual_seed(123)
    torch.set_num_threads(2)
    wide = opened(digit_root, height=110, width=110)
    found = [d.digest(split)[:16] for d in (tight, wide) for split in ("validation", "test")]
    assert found == ["1040f76a95f5bc53", "3f7d4c09ef2dfd61", "3d6a36cfa245efd4", "06699a6b9592bd6c"]


def test_products_are_exact_at_any_precision(digit_root: Path) -> None:
    """bf16 operands give the same images: all factors are integers of 8 bits, all sums are below 2^24."""
    data = opened(digit_root)
    expected = data.train_batch(0, 0, 0, 60)[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(data.train_batch(0, 0, 0, 60)[0], expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.real_data
def test_fixed_scenes_of_genuine_mnist(real_data: Path, tmp_path: Path) -> None:
    from attn_cli.data.prepare import prepare

    prepare("mnist", tmp_path, real_data / "mnist", log=lambda _: None)
    for name, expected in (
        ("mnist_sequence", ("89d809bef5964fb7", "3992409164d7dbae")),
        ("mnist_sequence_110", ("64911edd51047ce3", "b5a31d4fb4d2142f")),
    ):
        data = open_data(dataclasses.replace(config_of(name), root=str(tmp_path), download=False))
        assert tuple(data.digest(split)[:16] for split in ("validation", "test")) == expected


def test_info_counts_digits_and_lengths(digit_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_command(["info", "digits_sequence", "--root", str(digit_root)]) == 0
    rows = [line.replace("|", " ").split() for line in capsys.readouterr().out.splitlines()]
    labels = opened(digit_root).fixed("test")[1]
    lengths = (labels >= 0).sum(1) - 1
    (row,) = (row for row in rows if row[:1] == ["all"])
    assert row[2] == str(int(lengths.sum()))
    for k in range(1, 6):
        told = [row[4] for row in rows if row[:3] == ["images", "with", str(k)]]  # none if there are none
        assert told == [str(int((lengths == k).sum()))] or (not told and not (lengths == k).any())


def test_no_loop_over_images() -> None:
    """A batch of 128 takes about 5 ms; image by image it would take 20 times as long."""
    digits = np.pad((draws((1000, 20, 20), "digits") >> 23).astype(np.uint8), ((0, 0), (4, 4), (4, 4)))
    scenes = Sequences((54, 54), True, digits, np.arange(1000) % 10)
    times = []
    for step in range(20):
        start = time.process_time()
        scenes.compose(np.arange(128), step)
        times.append(time.process_time() - start)
    assert min(times) < 0.03


@pytest.mark.gpu
def test_same_scenes_on_a_gpu(digit_root: Path) -> None:
    for keys in ({}, dict(height=110, width=110)):
        here, there = opened(digit_root, **keys), opened(digit_root, **keys).to("cuda")
        assert here.digest("test") == there.digest("test")
        for step in range(3):
            ours, theirs = here.train_batch(0, 1, step, 16), there.train_batch(0, 1, step, 16)
            assert theirs[0].is_cuda and torch.equal(ours[0], theirs[0].cpu()) and torch.equal(ours[1], theirs[1].cpu())
