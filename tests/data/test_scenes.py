"""Scenes against an image-by-image oracle with the same random numbers, and the promises about places and pools."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
import torch

from attn_cli.data.keys import draws
from attn_cli.data.scenes import Geometry, Layout, fixed_boxes, fixed_scenes, layout, misfit, render, scenes

GEOMETRIES = [
    (Geometry(28, 28, 0, 8, True), (28, 28)),
    (Geometry(60, 60, 0, 8, True), (28, 28)),
    (Geometry(60, 60, 4, 8, True), (28, 28)),
    (Geometry(100, 100, 8, 8, True), (28, 28)),
    (Geometry(31, 77, 5, 8, True), (28, 28)),
    (Geometry(40, 29, 3, 6, True), (9, 14)),
    (Geometry(9, 14, 2, 9, True), (9, 14)),
    (Geometry(41, 50, 2, 1, False), (28, 28)),
    (Geometry(30, 30, 140, 8, True), (28, 28)),
]


def oracle(geometry: Geometry, digits: np.ndarray, own: np.ndarray, where: Layout) -> np.ndarray:
    """One image at a time, one pixel block at a time, in plain NumPy."""
    p = geometry.piece_size
    out = []
    for i, shown in enumerate(own):
        image = np.zeros((geometry.height, geometry.width), int)
        h, w = digits.shape[1:]
        image[where.y[i] : where.y[i] + h, where.x[i] : where.x[i] + w] = digits[shown]
        for k in range(geometry.pieces):
            sy, sx = where.source_y[i, k], where.source_x[i, k]
            piece = digits[where.source[i, k], sy : sy + p, sx : sx + p]
            assert piece.shape == (p, p)
            image[where.piece_y[i, k] : where.piece_y[i, k] + p, where.piece_x[i, k] : where.piece_x[i, k] + p] += piece
        out.append(np.minimum(image, 255).astype(np.uint8))
    return np.stack(out)


def pool(shape: tuple[int, int], count: int = 40) -> np.ndarray:
    return (draws((count, *shape), "pool") >> 23).astype(np.uint8)


@pytest.mark.parametrize(("geometry", "shape"), GEOMETRIES)
@pytest.mark.parametrize("batch", [1, 33])
def test_equal_to_the_oracle(geometry: Geometry, shape: tuple[int, int], batch: int) -> None:
    digits = pool(shape)
    own = draws((batch,), "own") % len(digits)
    where = layout(geometry, digits.shape, own, "numbers")  # type: ignore[arg-type]
    tensor = torch.from_numpy(digits)
    made = render(geometry, tensor, tensor[own], where)
    assert made.dtype == torch.uint8 and made.shape == (batch, geometry.height, geometry.width)
    np.testing.assert_array_equal(made.numpy(), oracle(geometry, digits, own, where))


def test_the_pool_is_left_alone() -> None:
    digits = torch.from_numpy(pool((28, 28)))
    before = digits.clone()
    scenes(Geometry(40, 40, 4, 8, True), digits, torch.arange(40), np.arange(40), 0.0, "x")
    assert torch.equal(digits, before)


def test_every_place_is_reached_and_equally_likely() -> None:
    g = Geometry(31, 33, 2, 8, True)
    where = layout(g, (50, 28, 28), np.zeros(60_000, np.int64), "places")
    counts = np.bincount(where.y * 6 + where.x, minlength=24)  # 4 × 6 places
    assert len(counts) == 24 and np.abs(counts - 2500).max() < 5 * 50
    for values, most in ((where.piece_y, 23), (where.piece_x, 25), (where.source_y, 20), (where.source_x, 20)):
        assert values.min() == 0 and values.max() == most


def test_clutter_comes_from_other_images() -> None:
    own = np.arange(5).repeat(2000)
    where = layout(Geometry(60, 60, 3, 8, True), (5, 28, 28), own, "others")
    assert (where.source != own[:, None]).all()
    for k in range(5):
        assert set(np.unique(where.source[own == k])) == set(range(5)) - {k}


def test_a_single_image_is_its_own_clutter() -> None:
    where = layout(Geometry(60, 60, 3, 8, True), (1, 28, 28), np.zeros(4, np.int64), "one")
    assert (where.source == 0).all()


def test_without_translation_the_digit_is_centred() -> None:
    digits = torch.full((1, 28, 28), 255, dtype=torch.uint8)
    image = scenes(
        Geometry(60, 50, 0, 8, False), digits, torch.zeros(1, dtype=torch.int64), np.zeros(1, int), 0.0, "c"
    )[0]
    rows, columns = torch.nonzero(image, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 43, 11, 38)


def test_sums_are_clamped_not_wrapped() -> None:
    digits = torch.full((3, 28, 28), 200, dtype=torch.uint8)
    g = Geometry(28, 28, 30, 8, True)
    image = scenes(g, digits, torch.zeros(1, dtype=torch.int64), np.zeros(1, np.int64), 0.0, "clamp")
    assert set(image.unique().tolist()) == {200, 255}


def test_fixed_scenes_are_these_scenes() -> None:
    """Validation and test scenes of everybody depend on this: a change is a change of every published number."""
    digits = torch.from_numpy(pool((28, 28), 2300))  # more than two chunks
    for geometry, expected in (
        (Geometry(60, 60, 0, 8, True), "663ae54e170f30f9"),
        (Geometry(60, 60, 4, 8, True), "e2cf9058ed584ea4"),
        (Geometry(100, 100, 8, 8, True), "0acadeeec3287d7a"),
        (Geometry(40, 70, 2, 5, True), "bd7d9d45e68c3813"),
    ):
        made = fixed_scenes(geometry, digits, "fixed", "test")
        assert hashlib.sha256(made.numpy().tobytes()).hexdigest()[:16] == expected
        assert torch.equal(made, fixed_scenes(geometry, digits, "fixed", "test"))


@pytest.mark.parametrize("translate", [True, False])
def test_boxes_are_where_the_digits_of_fixed_scenes_lie(translate: bool) -> None:
    """A digit whose corners are inked fills its box exactly."""
    digits = torch.zeros(1100, 28, 20, dtype=torch.uint8)  # more than one chunk
    digits[:, 0, 0] = digits[:, -1, -1] = 255
    geometry = Geometry(60, 50, 0, 8, translate)
    boxes = fixed_boxes(geometry, tuple(digits.shape), "fixed", "test")
    for scene, box in zip(fixed_scenes(geometry, digits, "fixed", "test"), boxes.tolist(), strict=True):
        (y0, x0), (y1, x1) = scene.nonzero().tolist()
        assert box == [x0, y0, x1 + 1, y1 + 1]
    assert (len(boxes.unique(dim=0)) > 500) == translate


def test_misfits_are_named() -> None:
    assert "27×60" in str(misfit(Geometry(27, 60, 0, 8, True), (28, 28)))
    assert "60×27" in str(misfit(Geometry(60, 27, 0, 8, True), (28, 28)))
    assert "piece_size=9" in str(misfit(Geometry(60, 60, 1, 9, True), (28, 8)))
    assert misfit(Geometry(60, 60, 0, 9, True), (28, 8)) is None
    assert misfit(Geometry(28, 28, 4, 8, True), (28, 28)) is None


def test_no_loop_over_images() -> None:
    """A batch of 128 at 100×100 with 8 pieces takes about 1 ms; image by image it would take 20 times as long."""
    digits = torch.from_numpy(pool((28, 28), 2000))
    own = torch.arange(128)
    times = []
    for step in range(20):
        start = time.perf_counter()
        scenes(Geometry(100, 100, 8, 8, True), digits, own, own.numpy(), 0.0, step)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.010


@pytest.mark.gpu
def test_same_scenes_on_a_gpu() -> None:
    for geometry, shape in GEOMETRIES:
        digits = torch.from_numpy(pool(shape))
        own = torch.from_numpy(draws((33,), "own") % len(digits))
        here = scenes(geometry, digits, own, own.numpy(), 0.0, "gpu")
        there = scenes(geometry, digits.cuda(), own.cuda(), own.numpy(), 0.0, "gpu")
        assert there.is_cuda and torch.equal(here, there.cpu())
