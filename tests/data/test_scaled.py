"""Digits of many sizes: against F.interpolate and means over areas, digit by digit; where they lie; bad sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attn_cli.commands.data import config_of
from attn_cli.config import registry
from attn_cli.data.batches import ScaledDigits, open_data
from attn_cli.data.keys import draws
from attn_cli.data.scaled import Scaled, resampling
from attn_cli.data.shapes import shape_of
from attn_cli.errors import Refused
from tests.data.conftest import assert_batches_are_pure


def pool(count: int = 40, side: int = 28, edge: int = 0) -> np.ndarray:
    """Noise in place of digits, with a black edge."""
    digits = (draws((count, side, side), "pool") >> 23).astype(np.uint8)
    inner = np.zeros_like(digits)
    inner[:, edge : side - edge, edge : side - edge] = digits[:, edge : side - edge, edge : side - edge]
    return inner


def averaged(digit: np.ndarray, side: int) -> np.ndarray:
    """The mean of what each pixel covers, pixel by pixel; float64 (side, side)."""
    K, out = len(digit), np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            y, x = (
                np.array([max(0.0, min((at + 1) * K / side, p + 1) - max(at * K / side, p)) for p in range(K)])
                for at in (i, j)
            )
            out[i, j] = y @ digit @ x / (K / side) ** 2
    return out


def opened(root: Path, **keys: Any) -> ScaledDigits:
    data = open_data(dataclasses.replace(config_of("digits_scales"), root=str(root), **keys))
    assert isinstance(data, ScaledDigits)
    return data


@pytest.mark.parametrize("side", [14, 17, 27, 28, 35, 42, 56])
def test_equal_to_the_oracle(side: int) -> None:
    """Each scene against one digit, resized alone and put at its place; up to two roundings of greys and weights."""
    digits, own = pool(edge=4), np.arange(30)
    made, labels = Scaled((80, 100), (side, side), digits, np.arange(40) % 10).compose(own, "oracle")
    squares = Scaled((80, 100), (side, side), digits, np.arange(40)).where(30, "oracle")
    assert made.shape == (30, 1, 80, 100) and made.dtype == torch.uint8 and labels.tolist() == (own % 10).tolist()
    for b in own:
        if side > 28:  # with four black pixels more on each side, so that nothing is repeated at the edge
            wide = F.pad(torch.from_numpy(digits[b]), (4, 4, 4, 4)).double()[None, None]
            resized = F.interpolate(wide, scale_factor=side / 28, mode="bilinear", align_corners=False)[0, 0]
            margin = 4 * side // 28
            alone = resized[margin : margin + side, margin : margin + side].numpy()
        else:
            alone = averaged(digits[b].astype(float), side)
        scene = np.zeros((80, 100))
        y, x = squares.y[b], squares.x[b]
        scene[y : y + side, x : x + side] = alone
        assert np.abs(made[b, 0].numpy() - scene).max() < 2.5, b


def test_a_digit_at_its_own_size_is_left_as_it_is() -> None:
    digits = pool()
    made, _ = Scaled((28, 28), (28, 28), digits, np.zeros(40)).compose(np.arange(40), "same")
    np.testing.assert_array_equal(made[:, 0].numpy(), digits)


def test_weights_give_every_pixel_its_whole() -> None:
    """Rows within the side sum to 1 up to rounding, but for the edge of an enlarged digit; rows beyond are empty."""
    table = resampling(5, 60, 28)
    for side, rows in zip(range(5, 61), table.sum(2), strict=True):
        inner = rows[2 : side - 2] if side > 28 else rows[:side]
        assert (inner - 256).abs().max() <= (3 if side < 28 else 1) and not rows[side:].any()


def test_sides_and_places_are_equally_likely() -> None:
    squares = Scaled((20, 22), (3, 6), pool(), np.zeros(40)).where(80_000, "places")
    assert np.abs(np.bincount(squares.side)[3:] - 20_000).max() < 5 * 142
    for side in range(3, 7):
        places = (squares.y * 20 + squares.x)[squares.side == side]
        counts = np.bincount(places % 20, minlength=20)
        assert squares.y[squares.side == side].max() == 20 - side and (counts > 0).sum() == 23 - side
        assert counts[: 23 - side].min() > 0.85 * len(places) / (23 - side)
    assert (squares.boxes()[:, 2:] - squares.boxes()[:, :2] == squares.side[:, None]).all()


def test_boxes_are_where_the_digits_of_fixed_scenes_lie(digit_root: Path) -> None:
    """White squares in place of digits: all that is white and nothing else is in the box, up to a grey edge."""
    data = opened(digit_root, height=70)
    for composer in data._composers.values():
        composer.digits.fill_(255)
    boxes = data.boxes("test")
    assert boxes.shape == (30, 4) and boxes.dtype == torch.int64
    for scene, box in zip(data.fixed("test")[0][:, 0], boxes.tolist(), strict=True):
        (y0, x0), (y1, x1) = scene.nonzero().amin(0).tolist(), scene.nonzero().amax(0).tolist()
        assert box == [x0, y0, x1 + 1, y1 + 1]
    assert len((boxes[:, 2] - boxes[:, 0]).unique()) > 10


@pytest.mark.parametrize("name", registry.SCALED)
def test_every_configured_set(name: str, digit_root: Path) -> None:
    config = dataclasses.replace(config_of(name), source="digits", root=str(digit_root))
    data = open_data(config)
    info = data.info
    assert (info.name, info.channels, info.height, info.width, info.classes) == (name, 1, 100, 100, 10)
    assert (info.train, info.validation, info.test, info.background) == (60, 20, 30, 0)
    assert dataclasses.replace(info, train=0, validation=0, test=0) == shape_of(config)
    images, labels = data.train_batch(0, 0, 0, 16)
    assert images.shape == (16, 1, 100, 100) and images.dtype == torch.uint8 and labels.shape == (16,)
    assert opened(digit_root, train_limit=7).info.train == 7


def test_a_batch_is_a_pure_function_of_its_arguments(digit_root: Path) -> None:
    assert_batches_are_pure(opened(digit_root), opened(digit_root))


def test_fixed_scenes_are_these_scenes(digit_root: Path) -> None:
    """Validation and test scenes of everybody depend on this: a change is a change of every measured number."""
    data = opened(digit_root)
    assert [data.digest(split)[:16] for split in ("validation", "test")] == ["dd7bc40187d096d7", "55a0e0420cdf0209"]


@pytest.mark.real_data
def test_fixed_scenes_of_genuine_mnist(real_data: Path, tmp_path: Path) -> None:
    from attn_cli.data.prepare import prepare

    prepare("mnist", tmp_path, real_data / "mnist", log=lambda _: None)
    data = open_data(dataclasses.replace(config_of("mnist_scales"), root=str(tmp_path), download=False))
    assert [data.digest(split)[:16] for split in ("validation", "test")] == ["db39fcc4902cf552", "bd391a70b881f93e"]
    assert (data.info.train, data.info.validation, data.info.test) == (50_000, 10_000, 10_000)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (dict(smallest=30, largest=20), "data.smallest=30 is above data.largest=20"),
        (dict(largest=56, height=50), "data.largest=56 does not fit .* 50×100: set data.largest to at most 50"),
    ],
)
def test_sizes_that_cannot_work_are_refused(keys: dict[str, Any], named: str, digit_root: Path) -> None:
    with pytest.raises(Refused, match=named):
        opened(digit_root, **keys)


@pytest.mark.gpu
def test_same_scenes_on_a_gpu(digit_root: Path) -> None:
    here, there = opened(digit_root), opened(digit_root).to("cuda")
    for one, other in zip(here.train_batch(0, 0, 0, 60), there.train_batch(0, 0, 0, 60), strict=True):
        assert other.is_cuda and torch.equal(one, other.cpu())
