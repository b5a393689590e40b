"""The embedded digits: the recorded ones, balanced, told apart, on an exactly black background."""

from __future__ import annotations

import numpy as np
import pytest

from attn_cli.data.prepared import Prepared
from attn_cli.data.sources import digits


@pytest.fixture(scope="module")
def rendered() -> Prepared:
    return digits.build()


def test_the_recorded_digest(rendered: Prepared) -> None:
    if digits.versions() != digits.RENDERED_WITH:
        pytest.skip(f"recorded with {digits.RENDERED_WITH}")
    assert rendered.content_sha256() == digits.RECORDED_SHA256


def test_shapes_and_balance(rendered: Prepared) -> None:
    for split, count in digits.COUNTS.items():
        assert rendered.images[split].shape == (count, 28, 28) and rendered.images[split].dtype == np.uint8
        assert np.bincount(rendered.labels[split]).tolist() == [count // 10] * 10


def test_rendering_again_gives_the_same(rendered: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "COUNTS", {"train": 200, "validation": 50, "test": 50})
    few = digits.build()
    for split, images in few.images.items():
        np.testing.assert_array_equal(images, rendered.images[split][: len(images)])


def test_white_on_black_like_mnist(rendered: Prepared) -> None:
    images = rendered.images["train"]
    ink = images > 0
    assert 0.08 < ink.mean() < 0.35
    assert images.reshape(len(images), -1).max(1).min() > 90  # no image is faint
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).mean() > 0.999  # no frame of noise around a digit in a scene
    inside = ink[:, 1:-1, 1:-1].reshape(len(ink), -1).sum(1) / ink.reshape(len(ink), -1).sum(1)
    assert (inside > 0.9).mean() > 0.99  # digits are not cut off


def test_images_differ(rendered: Prepared) -> None:
    everything = np.concatenate([rendered.images[split].reshape(-1, 784) for split in digits.COUNTS])
    assert len(np.unique(everything, axis=0)) == len(everything)


def test_classes_can_be_told_apart(rendered: Prepared) -> None:
    """Nearest class mean: a wrong glyph, a font without digits or shuffled labels would show."""
    train, test = rendered.images["train"].reshape(-1, 784) / 255.0, rendered.images["test"].reshape(-1, 784) / 255.0
    means = np.stack([train[rendered.labels["train"] == k].mean(0) for k in range(10)])
    nearest = ((test[:, None] - means) ** 2).sum(-1).argmin(1)
    right = nearest == rendered.labels["test"]
    assert right.mean() > 0.7
    assert min(right[rendered.labels["test"] == k].mean() for k in range(10)) > 0.4
