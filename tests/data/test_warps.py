"""Warped digits against exact fractions, pixel by pixel; they are of training alone, and the same on every device."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attn_cli.config.schema import Pairs, Scenes
from attn_cli.data.batches import open_data
from attn_cli.data.keys import draws
from attn_cli.data.splits import Data
from attn_cli.data.warps import ONE, resample, warped
from tests.data.conftest import assert_batches_are_pure

SCENES: dict[str, Any] = dict(height=60, width=60, pieces=4, translate=True)


def pool(*shape: int) -> torch.Tensor:
    return torch.from_numpy((draws(shape, "pool") >> 23).astype(np.uint8))


def opened(kind: type, root: Path, **keys: Any) -> Data:
    return open_data(kind("own", "digits", root=str(root), **keys))


def oracle(digit: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """One pixel at a time, in exact fractions."""
    h, w = digit.shape
    out = np.zeros((h, w), np.uint8)
    for r in range(h):
        for c in range(w):
            off = (Fraction(2 * r - h + 1, 2), Fraction(2 * c - w + 1, 2))
            y, x = (
                Fraction(int(row[0]), ONE) * off[0] + Fraction(int(row[1]), ONE) * off[1] + Fraction(side - 1, 2)
                for row, side in zip(entries, (h, w), strict=True)
            )
            y, x = (Fraction(int(place * 256 // 1), 256) for place in (y, x))
            grey = Fraction(0)
            for i in (y // 1, y // 1 + 1):
                for j in (x // 1, x // 1 + 1):
                    if 0 <= i < h and 0 <= j < w:
                        grey += (1 - abs(y - i)) * (1 - abs(x - j)) * int(digit[i, j])
            out[r, c] = (grey + Fraction(1, 2)) // 1
    return out


@pytest.mark.parametrize("shape", [(28, 28), (9, 14), (1, 1)])
@pytest.mark.parametrize("reach", [0.1, 0.5, 3.0])
def test_equal_to_the_oracle(shape: tuple[int, int], reach: float) -> None:
    digits, bound = pool(5, *shape), round(2 * reach * ONE)
    maps = (draws((5, 2, 2), "maps", bound) * bound >> 31) - bound // 2 + ONE * np.eye(2, dtype=np.int64)
    made = resample(digits, maps)
    assert made.dtype == torch.uint8
    np.testing.assert_array_equal(
        made.numpy(), np.stack([oracle(*one) for one in zip(digits.numpy(), maps, strict=True)])
    )


def test_by_hand() -> None:
    digits, same = pool(3, 28, 28), np.tile(ONE * np.eye(2, dtype=np.int64), (3, 1, 1))
    assert torch.equal(resample(digits, same), digits)
    assert torch.equal(resample(digits, -same), digits.flip(1, 2))
    assert torch.equal(resample(digits, same[:, ::-1].copy()), digits.transpose(1, 2))
    quarter = resample(torch.tensor([[[0, 100, 200]]], dtype=torch.uint8), same[:1] // 4)  # four times as wide
    assert quarter.tolist() == [[[75, 100, 125]]]


def test_each_entry_is_uniform_and_each_digit_has_its_own_map(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr("attn_cli.data.warps.resample", lambda digits, maps: seen.append(maps))
    warped(pool(20_000, 1, 1), 0.2, "key")
    entries = (seen[0] / ONE - np.eye(2)).reshape(-1, 4)
    assert abs(entries).max() <= 0.2 + 1 / ONE and (entries.max(0) > 0.199).all() and (entries.min(0) < -0.199).all()
    np.testing.assert_allclose(entries.mean(0), 0, atol=0.004)
    np.testing.assert_allclose(np.cov(entries.T), np.eye(4) * 0.2**2 / 3, atol=0.0004)
    warped(pool(20_000, 1, 1), 0.2, "another")
    assert (seen[0] != seen[1]).mean() > 0.99


@pytest.mark.parametrize(("kind", "keys"), [(Scenes, SCENES), (Scenes, {}), (Pairs, {})])
def test_training_digits_alone_are_warped(kind: type, keys: dict[str, Any], digit_root: Path) -> None:
    plain, bent = (opened(kind, digit_root, warp=warp, **keys) for warp in (0.0, 0.2))
    for split in ("validation", "test"):
        assert plain.digest(split) == bent.digest(split)
    images, labels = plain.train_batch(1, 2, 0, 16)
    others, same = bent.train_batch(1, 2, 0, 16)
    assert torch.equal(labels, same)
    assert (images != others).flatten(1).any(1).all()
    assert_batches_are_pure(bent, opened(kind, digit_root, warp=0.2, **keys))


@pytest.mark.parametrize("pieces", [0, 4])
def test_digits_stay_where_they_are_placed_and_clutter_is_as_it_was(pieces: int, digit_root: Path) -> None:
    keys = SCENES | {"pieces": pieces}
    (before, _), (after, _) = (opened(Scenes, digit_root, warp=w, **keys).train_batch(1, 2, 0, 16) for w in (0.0, 0.3))
    for changed in (before != after)[:, 0]:
        for axis in (0, 1):
            places = changed.any(axis).nonzero()
            assert 20 < places.max() - places.min() + 1 <= 28  # within the digit's box


def test_no_loop_over_images() -> None:
    """A batch of 128 takes about 3 ms on one thread; digit by digit it would take 20 times as long."""
    digits, times = pool(128, 28, 28), []
    for step in range(20):
        start = time.process_time()
        warped(digits, 0.2, step)
        times.append(time.process_time() - start)
    assert min(times) < 0.03


@pytest.mark.gpu
def test_same_digits_on_a_gpu() -> None:
    digits = pool(128, 28, 28)
    assert torch.equal(warped(digits, 0.3, "gpu"), warped(digits.cuda(), 0.3, "gpu").cpu())
