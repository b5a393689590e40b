"""Pairs and sums against an image-by-image composer, and the promises about places, pools and labels."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attn_cli.commands.data import config_of
from attn_cli.config import registry
from attn_cli.config.schema import Pairs
from attn_cli.data import pair_labels, pairs, prepared, writing
from attn_cli.data.batches import Composed, open_data
from attn_cli.data.keys import draws
from attn_cli.data.pairs import PairLayout, Places, layout, render
from attn_cli.data.prepared import Prepared
from attn_cli.data.scenes import Geometry
from attn_cli.data.shapes import shape_of, usual_length
from attn_cli.data.splits import digest_of
from attn_cli.errors import Refused
from tests.data.conftest import assert_batches_are_pure

CASES = [
    (Geometry(100, 100, 8, 8, True), (28, 28), 0.0),
    (Geometry(100, 100, 0, 8, True), (28, 28), 0.0),
    (Geometry(61, 40, 3, 5, True), (28, 28), 0.3),
    (Geometry(28, 28, 2, 8, True), (28, 28), 1.0),
    (Geometry(30, 70, 1, 9, True), (9, 14), 0.1),
]


def opened(root: Path, **keys: Any) -> Composed:
    data = open_data(Pairs("digits_pairs", "digits", root=str(root), **keys))
    assert isinstance(data, Composed)
    return data


def pool(shape: tuple[int, int], count: int = 40) -> np.ndarray:
    return (draws((count, *shape), "pool") >> 23).astype(np.uint8)


def oracle(geometry: Geometry, digits: np.ndarray, own: np.ndarray, where: PairLayout) -> np.ndarray:
    """One image at a time, one block of pixels at a time, in plain NumPy."""
    h, w = digits.shape[1:]
    out = []
    for i, shown in enumerate(own):
        image = np.zeros((geometry.height, geometry.width), int)

        def add(block: np.ndarray, y: int, x: int, image: np.ndarray = image) -> None:
            assert y >= 0 and x >= 0
            image[y : y + block.shape[0], x : x + block.shape[1]] += block  # fails if it reaches outside

        first, p = where.first, geometry.piece_size
        add(digits[shown], first.y[i], first.x[i])
        add(digits[where.other[i]], where.other_y[i], where.other_x[i])
        for k in range(geometry.pieces):
            y, x = first.source_y[i, k], first.source_x[i, k]
            assert y + p <= h and x + p <= w
            add(digits[first.source[i, k]][y : y + p, x : x + p], first.piece_y[i, k], first.piece_x[i, k])
        out.append(np.minimum(image, 255).astype(np.uint8))
    return np.stack(out)


@pytest.mark.parametrize(("geometry", "shape", "overlap"), CASES)
@pytest.mark.parametrize("batch", [1, 33])
def test_equal_to_the_oracle(geometry: Geometry, shape: tuple[int, int], overlap: float, batch: int) -> None:
    digits = pool(shape)
    own = draws((batch,), "own") % len(digits)
    where = layout(geometry, Places(geometry, shape, overlap), len(digits), shape, own, "numbers")
    shown = (torch.from_numpy(digits[i]) for i in (own, where.other))
    made = render(geometry, torch.from_numpy(digits), *shown, where)
    assert made.dtype == torch.uint8 and made.shape == (batch, geometry.height, geometry.width)
    np.testing.assert_array_equal(made.numpy(), oracle(geometry, digits, own, where))


def shared_area(box: tuple[int, int], one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Pixels that both boxes cover, by painting them."""
    covered = [{(y + i, x + j) for i in range(box[0]) for j in range(box[1])} for y, x in (one, other)]
    return len(covered[0] & covered[1])


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 1.0])
def test_every_allowed_pair_of_places_is_equally_likely(overlap: float) -> None:
    """Against all pairs of places of 3×2 boxes in a 6×5 image, counted one by one."""
    geometry, box = Geometry(6, 5, 0, 1, True), (3, 2)
    spots = list(itertools.product(range(4), range(4)))
    allowed = [(*a, *b) for a in spots for b in spots if shared_area(box, a, b) <= overlap * 6]
    places = Places(geometry, box, overlap)
    assert places.pairs == len(allowed)
    count = 200 * len(allowed)
    drawn = places.at(draws((5, count), "places"))
    seen, counts = np.unique(drawn.T, axis=0, return_counts=True)
    assert {tuple(s) for s in seen.tolist()} == set(allowed)
    assert np.abs(counts - 200).max() < 6 * 200**0.5


@pytest.mark.parametrize("overlap", [0.0, 0.25])
def test_digits_overlap_no_more_than_configured(overlap: float) -> None:
    geometry = Geometry(100, 70, 0, 8, True)
    y, x, other_y, other_x = Places(geometry, (28, 28), overlap).at(draws((5, 20_000), "rule"))
    area = np.maximum(28 - np.abs(y - other_y), 0) * np.maximum(28 - np.abs(x - other_x), 0)
    most = int(overlap * 784)
    assert area.max() <= most and area.max() >= 0.9 * most and min(y.min(), x.min(), other_y.min(), other_x.min()) == 0
    assert max(y.max(), other_y.max()) == 72 and max(x.max(), other_x.max()) == 42


def test_a_large_canvas_needs_no_large_tables() -> None:
    places = Places(Geometry(4096, 4096, 0, 8, True), (28, 28), 0.0)
    drawn = places.at(draws((5, 1000), "large"))
    assert drawn.min() >= 0 and drawn.max() <= 4068 and len(places.until_y) < 10_000
    assert np.abs(drawn.mean(1) - 2034).max() < 5 * 4069 / 12**0.5 / 1000**0.5


def test_the_second_digit_and_the_pieces_are_other_images() -> None:
    geometry, own = Geometry(60, 60, 3, 8, True), np.arange(5).repeat(2000)
    where = layout(geometry, Places(geometry, (28, 28), 0.0), 5, (28, 28), own, "others")
    assert (where.other != own).all()
    for i, j in itertools.permutations(range(5), 2):
        chosen = (own == i) & (where.other == j)
        assert abs(chosen.sum() - 500) < 6 * 500**0.5
        assert set(np.unique(where.first.source[chosen])) == set(range(5)) - {i, j}


@pytest.mark.parametrize("n", [1, 2])
def test_pools_of_one_and_two(n: int) -> None:
    geometry = Geometry(60, 60, 3, 8, True)
    where = layout(geometry, Places(geometry, (28, 28), 0.0), n, (28, 28), np.arange(n), "few")
    assert where.other.tolist() == ([0] if n == 1 else [1, 0])
    assert where.first.source.max() < n


@pytest.mark.parametrize("label", ["pair", "sum"])
def test_classes_are_right(label: str) -> None:
    table, names = pair_labels.class_table(label), pair_labels.class_names(label)
    assert len(names) == {"pair": 55, "sum": 19}[label] == len(set(names)) == len(np.unique(table))
    for first, second in itertools.product(range(10), range(10)):
        expected = f"{min(first, second)} {max(first, second)}" if label == "pair" else str(first + second)
        assert names[table[first, second]] == expected


@pytest.mark.parametrize("label", ["pair", "sum"])
def test_labels_name_the_digits_that_are_shown(label: str, tmp_path: Path) -> None:
    """Digit k is a square of grey 20 + 20 k, so the image itself tells what is in it."""
    labels = {split: (np.arange(50) % 10).astype(np.uint8) for split in prepared.SPLITS}
    grey = {split: np.tile(20 + 20 * kept[:, None, None], (28, 28)).astype(np.uint8) for split, kept in labels.items()}
    writing.write(Prepared("digits", "flat", tuple("0123456789"), grey, labels), prepared.path_of("digits", tmp_path))
    data = opened(tmp_path, label=label, pieces=0)
    for images, targets in (data.train_batch(1, 2, 0, 50), data.fixed("validation"), data.fixed("test")):
        for image, target in zip(images[:, 0], targets.tolist(), strict=True):
            shades, counts = image.unique(return_counts=True)
            shown = [
                (int(s) - 20) // 20 for s, c in zip(shades, counts, strict=True) for _ in range(int(c) // 784) if s
            ]
            assert len(shown) == 2
            expected = f"{shown[0]} {shown[1]}" if label == "pair" else str(sum(shown))
            assert data.info.class_names[target] == expected


def test_sequences_are_read_from_left_to_right_then_from_top_to_bottom(tmp_path: Path) -> None:
    """Every image has a grey of its own, so where the two lie can be found in the scene."""
    labels = {split: np.arange(200).astype(np.uint8) % 10 for split in prepared.SPLITS}
    grey = {split: np.tile(np.arange(1, 201)[:, None, None], (28, 28)).astype(np.uint8) for split in prepared.SPLITS}
    writing.write(Prepared("digits", "flat", tuple("0123456789"), grey, labels), prepared.path_of("digits", tmp_path))
    data = opened(tmp_path, label="sequence", pieces=0, width=58)
    assert (data.info.classes, data.info.length, data.info.class_names) == (10, 2, tuple("0123456789"))
    shape = shape_of(config := dataclasses.replace(config_of("mnist_pairs"), label="sequence"))
    assert (shape.classes, shape.length) == (10, 2) and usual_length(config) == 2
    above = 0
    batches = [data.train_batch(0, epoch, 0, 200) for epoch in range(10)]
    for images, targets in (*batches, data.fixed("validation"), data.fixed("test")):
        assert targets.dtype == torch.int64 and targets.shape == (200, 3)
        for image, target in zip(images[:, 0].numpy(), targets.tolist(), strict=True):
            corners = []
            for shade in np.unique(image[image > 0]):
                y, x = np.nonzero(image == shade)
                corners.append((x.min(), y.min(), (shade - 1) % 10))
            above += corners[0][0] == corners[1][0]
            assert target == [*(digit for _, _, digit in sorted(corners)), 10]
    assert above > 5  # one above the other happened, too
    same = opened(tmp_path, label="pair", pieces=0, width=58)
    assert torch.equal(same.train_batch(0, 3, 0, 200)[0], data.train_batch(0, 3, 0, 200)[0])


@pytest.mark.parametrize("name", registry.PAIRS)
def test_every_configured_set(name: str, digit_root: Path) -> None:
    config = dataclasses.replace(config_of(name), source="digits", root=str(digit_root))
    assert config.overlap == 0 and config.pieces == (8 if "pairs" in name else 0)
    assert (config.retina.size, config.retina.scales) == (12, 2)
    data = open_data(config)
    info = data.info
    assert (info.name, info.channels, info.height, info.width, info.length) == (name, 1, 100, 100, 0)
    assert info.classes == len(info.class_names) == (55 if "pairs" in name else 19)
    assert (info.train, info.validation, info.test, info.background) == (60, 20, 30, 0)
    images, labels = data.train_batch(0, 0, 0, 16)
    assert images.dtype == torch.uint8 and images.shape == (16, 1, 100, 100)
    assert labels.dtype == torch.int64 and labels.shape == (16,) and labels.max() < info.classes
    fixed, targets = data.fixed("test")
    assert fixed.shape == (30, 1, 100, 100) and targets.shape == (30,) and fixed.dtype == torch.uint8
    assert data.digest("test") == digest_of(fixed, targets) != data.digest("validation")


def test_a_batch_is_a_pure_function_of_its_arguments(digit_root: Path) -> None:
    assert_batches_are_pure(opened(digit_root), opened(digit_root))


def test_an_epoch_shows_every_digit_once_as_the_first(tmp_path: Path) -> None:
    """Digit i is a square of grey i + 1; the first of scene i is own[i], so the epoch's sums hold each once."""
    images = {s: np.tile(np.arange(1, 101)[:, None, None], (28, 28)).astype(np.uint8) for s in prepared.SPLITS}
    labels = {s: np.zeros(100, np.uint8) for s in prepared.SPLITS}
    writing.write(Prepared("digits", "flat", tuple("0123456789"), images, labels), prepared.path_of("digits", tmp_path))
    data = opened(tmp_path, pieces=0)
    assert data.steps_per_epoch(25) == 4 and data.steps_per_epoch(30) == 3 and data.steps_per_epoch(1000) == 1
    shown = torch.cat([data.train_batch(0, 3, step, 25)[0] for step in range(4)]).flatten(1)
    present = torch.stack([(shown == grey).any(1) for grey in range(1, 101)])  # (100 digits, 100 scenes)
    assert (present.sum(0) == 2).all() and present.any(1).all()
    fixed = data.fixed("test")[0].flatten(1)
    assert all((fixed[i] == i + 1).any() for i in range(100))
    with pytest.raises(IndexError):
        data.train_batch(0, 0, 4, 25)


def test_every_split_has_its_own_digits_and_clutter(tmp_path: Path) -> None:
    grey = {"train": 10, "validation": 70, "test": 250}
    images = {split: np.full((20, 28, 28), value, np.uint8) for split, value in grey.items()}
    labels = {split: np.zeros(20, np.uint8) for split in grey}
    writing.write(Prepared("digits", "flat", tuple("0123456789"), images, labels), prepared.path_of("digits", tmp_path))
    data = opened(tmp_path, pieces=2)
    assert set(data.train_batch(0, 0, 0, 20)[0].unique().tolist()) <= {0, 10, 20, 30}
    assert set(data.fixed("validation")[0].unique().tolist()) <= {0, 70, 140, 210}
    assert set(data.fixed("test")[0].unique().tolist()) <= {0, 250, 255}


def test_train_limit_uses_the_first_digits_only(digit_root: Path) -> None:
    few, everything = opened(digit_root, train_limit=3), opened(digit_root)
    assert few.info.train == 3 and few.train_batch(0, 0, 0, 8)[0].shape[0] == 3
    _, labels = opened(digit_root, train_limit=2).train_batch(0, 0, 0, 8)
    assert labels.tolist() == [1, 1]  # "0 1", twice
    assert few.digest("test") == everything.digest("test")


def test_fixed_scenes_are_these_scenes(digit_root: Path) -> None:
    """Validation and test scenes of everybody depend on this: a change is a change of every published number."""
    data = opened(digit_root)
    data.train_batch(5, 5, 0, 32)
    torch.manual_seed(123)
    torch.set_num_threads(2)
    sums = opened(digit_root, label="sum", pieces=0)
    found = [d.digest(split)[:16] for d in (data, sums) for split in ("validation", "test")]
    assert found == ["f2ec8fd8c0784835", "95860ba185e34f7f", "0d284f8108b8ec4d", "ce1625f305eaf921"]


@pytest.mark.real_data
def test_fixed_scenes_of_genuine_mnist(real_data: Path, tmp_path: Path) -> None:
    from attn_cli.data.prepare import prepare

    prepare("mnist", tmp_path, real_data / "mnist", log=lambda _: None)
    for name, expected in (
        ("mnist_pairs", ("4352041cc5a3759a", "dea04896ac777848")),
        ("mnist_sum", ("9571f2af8361f94e", "d4161db621271fe5")),
    ):
        data = open_data(dataclasses.replace(config_of(name), root=str(tmp_path), download=False))
        assert tuple(data.digest(split)[:16] for split in ("validation", "test")) == expected
        assert (data.info.train, data.info.validation, data.info.test) == (50_000, 10_000, 10_000)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (dict(height=28, width=28), r"two 28×28 digits do not fit .* 28×28 with data.overlap=0:"),
        (dict(height=50, width=50, overlap=0.01), "data.overlap=0.01"),
        (dict(height=27), "27×100"),
        (dict(piece_size=29), "piece_size=29"),
    ],
)
def test_sizes_that_cannot_work_are_refused(keys: dict[str, Any], named: str, digit_root: Path) -> None:
    with pytest.raises(Refused, match=named):
        opened(digit_root, **keys)


def test_no_loop_over_images() -> None:
    """A batch of 128 takes about 2 ms; image by image it would take 20 times as long."""
    digits = pool((28, 28), 2000)
    scenes = pairs.Pairs(Geometry(100, 100, 8, 8, True), 0.0, "pair", 0.0, digits, np.zeros(2000, np.uint8))
    times = []
    for step in range(20):
        start = time.process_time()
        scenes.compose(np.arange(128), step)
        times.append(time.process_time() - start)
    assert min(times) < 0.015


@pytest.mark.gpu
def test_same_scenes_on_a_gpu(digit_root: Path) -> None:
    here, there = opened(digit_root), opened(digit_root).to("cuda")
    assert here.digest("test") == there.digest("test")
    for step in range(3):
        ours, theirs = here.train_batch(0, 1, step, 16), there.train_batch(0, 1, step, 16)
        assert theirs[0].is_cuda and torch.equal(ours[0], theirs[0].cpu()) and torch.equal(ours[1], theirs[1].cpu())
    assert here.to("cuda").fixed("test")[0].is_cuda
