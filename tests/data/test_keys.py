from __future__ import annotations

import numpy as np

from attn_cli.data.keys import below, draws, key, noise, permutation


def test_stored_values() -> None:
    """Every prepared scene and every resumed run depends on these numbers: they must never change."""
    assert key("scene", 0, 1, 2) == 1190880897074575003
    assert draws((3,), "scene", 0).tolist() == [1066868159, 1006884134, 102364473]
    assert permutation(8, "order", 0, 0).tolist() == [2, 1, 7, 0, 4, 5, 6, 3]
    assert noise((2, 5), "grain", 0).tolist() == [[10, 63, 191, 124, 227], [208, 31, 155, 214, 16]]


def test_keys_differ_for_different_parts() -> None:
    parts = [("a", 1), ("a", 2), ("a1",), ("a", "1"), ("a", 1, 0), (1, "a"), ("a", -1), ("a", 11), ("a", 1, 1)]
    assert len({key(*p) for p in parts}) == len(parts)
    assert all(0 <= key(*p) < 2**63 for p in parts)


def test_below_is_uniform_and_within_bounds() -> None:
    values = below(7, (70_000,), "uniform")
    counts = np.bincount(values, minlength=7)
    assert values.min() == 0 and values.max() == 6
    assert np.abs(counts - 10_000).max() < 400  # four standard deviations
    bounds = np.array([1, 5, 1000])
    table = below(bounds, (5000, 3), "bounds")
    assert (table.max(0) < bounds).all() and (table[:, 0] == 0).all() and table[:, 2].max() > 990


def test_permutation_holds_every_number_once() -> None:
    order = permutation(1000, "p", 1)
    assert sorted(order) == list(range(1000))
    assert (order != permutation(1000, "p", 2)).any()
    assert permutation(0, "p").shape == (0,) and permutation(1, "p").tolist() == [0]


def test_noise_is_uniform() -> None:
    values = noise((3, 70_001), "uniform")
    assert values.shape == (3, 70_001) and values.dtype == np.uint8
    expected = values.size / 256
    assert np.abs(np.bincount(values.ravel(), minlength=256) - expected).max() < 5 * expected**0.5
    assert noise((0, 4), "none").shape == (0, 4)
