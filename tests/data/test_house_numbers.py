"""House numbers against a painter in real numbers; digits that differ from what is behind them; sizes and keys."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attn_cli.commands.data import config_of
from attn_cli.config import registry
from attn_cli.config.schema import HouseNumbers as Config
from attn_cli.data import house_numbers, layouts
from attn_cli.data.batches import Composed, open_data
from attn_cli.data.house_numbers import CELLS, SHIFTS, HouseNumbers, Look, stretched
from attn_cli.data.keys import draws, noise
from attn_cli.data.sequences import Sequences
from attn_cli.data.splits import digest_of
from tests.data.conftest import assert_batches_are_pure

LABELS = np.arange(40) % 10


def opened(root: Path, **keys: Any) -> Composed:
    data = open_data(Config("house_numbers", "digits", root=str(root), **keys))
    assert isinstance(data, Composed)
    return data


def blocks(grey: int = 255) -> np.ndarray:
    """Digits that are filled blocks."""
    digits = np.zeros((40, 28, 28), np.uint8)
    digits[:, 4:24, 8:20] = grey
    return digits


def oracle(scenes: HouseNumbers, numbers: layouts.Numbers, ink: np.ndarray, *parts: int | str) -> np.ndarray:
    """(B, C, H, W) in real numbers, an image after another."""
    count, height, width = ink.shape
    look = Look(draws((count, Look.NUMBERS), *parts, "look"))
    colours = look.colours(scenes.grey).astype(float)
    texture = scenes._texture(look, *parts).numpy()
    grain = noise(ink.shape, *parts, "grain").view(np.int8)
    y, x = np.meshgrid(*((np.arange(s) + 0.5) / s * 2 - 1 for s in (height, width)), indexing="ij")
    out = []
    for i in range(count):
        wall, plate, digit = (colour[i][:, None, None] for colour in colours)
        image = wall + texture[i]
        if i in look.plated:
            covers = []
            for axis, side in enumerate((height, width)):
                soft = np.clip(1.5 * numbers.pixel[i, axis] / 256, 1, 6)
                inside = look.plate_half[i, axis] - np.abs((np.arange(side) + 0.5) * 256 - numbers.middle[i, axis])
                covers.append(np.clip(0.5 + inside / 256 / soft, 0, 1))
            cover = covers[0][:, None] * covers[1]
            image = image + cover * (plate - image)
        image = np.clip(image + ink[i] / 255 * (digit - image), 0, 255)
        down, right = look.fading[i]
        dark = (abs(down) + down * y + abs(right) + right * x) / 256
        if i in look.shaded:
            into_y, into_x, edge, strength = look.shadow[i]
            dark = dark + np.clip((into_y * y + into_x * x) * 16 + edge, 0, 128) / 128 * strength / 256
        out.append(np.clip(image * (1 - np.minimum(dark, 0.5)) + grain[i] / 2.0 ** look.grain[i], 0, 255))
    return np.stack(out)


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("size", [(54, 54), (70, 110)])
def test_equal_to_the_oracle(size: tuple[int, int], grey: bool) -> None:
    scenes = HouseNumbers(size, True, blocks(200), LABELS, grey)
    numbers = layouts.draw(scenes.pool, size, True, 60, "oracle")
    ink = scenes.draw(numbers)
    made = scenes.paint(numbers, ink, "oracle").numpy()
    assert made.shape == (60, 1 if grey else 3, *size) and made.dtype == np.uint8
    difference = np.abs(made - oracle(scenes, numbers, ink.numpy(), "oracle"))
    # Steps of 1/8 at the soft edge of a plate and the steep edge of a shadow are the coarsest.
    assert np.percentile(difference, 99) < 6 and difference.mean() < 1.6


def test_texture_covers_the_whole_image() -> None:
    for cells in CELLS:
        for side, longest in ((54, 54), (110, 110), (54, 300)):
            count = longest // int(cells.min()) + 3
            table = stretched(cells, count, side)
            assert table.shape == (len(cells) * SHIFTS, side, count)
            assert (table.sum(2) - 256).abs().max() <= 2


def test_texture_is_new_in_every_image() -> None:
    scenes = HouseNumbers((54, 54), False, blocks(), LABELS)
    look = Look(draws((64, Look.NUMBERS), "texture"))
    texture = scenes._texture(look, "texture").float()
    assert texture.mean().abs() < 4 and 3 < texture.std() < 30
    other = scenes._texture(look, "another").float()
    alike = torch.corrcoef(torch.cat([texture, other]).flatten(1)).abs()
    assert alike.fill_diagonal_(0).mean() < 0.25
    assert texture.amin((1, 2)).min() >= -150 and texture.amax((1, 2)).max() <= 150


@pytest.mark.parametrize("grey", [True, False])
def test_digits_differ_from_what_is_behind_them(grey: bool) -> None:
    """By brightness, in either direction."""
    look = Look(draws((5000, Look.NUMBERS), "contrast"))
    wall, plate, digit = look.colours(grey) @ ([1] if grey else [77 / 256, 150 / 256, 29 / 256])
    behind = wall.copy()
    behind[look.plated] = plate[look.plated]
    contrast = digit - behind
    assert np.abs(contrast).min() >= (70 if grey else 60) and np.abs(contrast).max() <= 165
    assert 0.4 < (contrast > 0).mean() < 0.6
    assert min(wall.min(), plate.min(), digit.min()) >= 0 and max(wall.max(), plate.max(), digit.max()) <= 255
    assert abs(len(look.plated) / 5000 - 0.4) < 0.03 and abs(len(look.shaded) / 5000 - 1 / 3) < 0.03


def test_numbers_can_be_seen_in_the_finished_images() -> None:
    """Inside the blocks the pictures are lighter or darker than around them, in nearly all of the images."""
    scenes = HouseNumbers((54, 54), False, blocks(), LABELS)
    images = scenes.compose(np.arange(300), "seen")[0][:, 0].float()
    numbers = layouts.draw(scenes.pool, (54, 54), False, 300, "seen")
    ink = scenes.draw(numbers)
    inside, outside = (ink > 230).float(), (ink < 20).float()
    difference = (images * inside).sum((1, 2)) / inside.sum((1, 2)) - (images * outside).sum((1, 2)) / outside.sum(
        (1, 2)
    )
    # A plate that is seen only at the rim has its own contrast with the wall.
    assert (difference.abs() > 25).float().mean() > 0.9
    assert 0.35 < (difference > 0).float().mean() < 0.65


def test_sharpness_follows_the_size_of_the_photograph() -> None:
    numbers = layouts.draw(layouts.Pool(LABELS), (54, 54), False, 4000, "sharp")
    pixel = numbers.pixel / layouts.UNIT
    assert 0.4 < np.percentile(pixel[:, 0], 2) < 0.8 and 3 < np.percentile(pixel[:, 0], 98) < 5
    # One digit fills the width of several: its pixels are wider.
    assert np.median(pixel[numbers.count == 1, 1]) > 1.5 * np.median(pixel[numbers.count > 1, 1])
    assert np.median(pixel[numbers.count == 3, 1]) < np.median(pixel[numbers.count == 3, 0])
    scenes = HouseNumbers((54, 54), False, blocks(), LABELS)
    numbers = layouts.draw(scenes.pool, (54, 54), False, 200, "sharp")
    sharp = scenes.draw(numbers).float()
    blurred = scenes.draw(numbers, np.full((200, 2), 512)).float()
    assert blurred.diff(dim=2).abs().amax((1, 2)).mean() < 0.6 * sharp.diff(dim=2).abs().amax((1, 2)).mean()


def test_blurred_digits_are_not_cut_in_large_images() -> None:
    digits = blocks()
    blur = np.full((60, 2), house_numbers.BLUR)
    for kind in (HouseNumbers, Sequences):
        scenes = kind((160, 160), True, digits, LABELS)
        numbers = layouts.draw(scenes.pool, (160, 160), True, 60, "cut")
        expected_scenes = kind((160, 160), True, digits, LABELS)
        expected_scenes.drawn = 160  # type: ignore[misc]
        if kind is HouseNumbers:
            assert torch.equal(scenes.draw(numbers, blur), expected_scenes.draw(numbers, blur))
        assert torch.equal(scenes.draw(numbers), expected_scenes.draw(numbers))


def test_layouts_do_not_depend_on_what_is_painted() -> None:
    """The same digits in the same places as a plain sequence with the same key."""
    digits = blocks()
    painted, plain = HouseNumbers((54, 54), True, digits, LABELS), Sequences((54, 54), True, digits, LABELS)
    assert torch.equal(painted.compose(np.arange(50), "same")[1], plain.compose(np.arange(50), "same")[1])
    coloured = HouseNumbers((54, 54), True, digits, LABELS, grey=False)
    rgb, grey = (scenes.compose(np.arange(50), "same")[0].float() for scenes in (coloured, painted))
    brightness = (rgb * torch.tensor([77, 150, 29]).view(3, 1, 1)).sum(1) / 256
    assert (brightness - grey[:, 0]).abs().mean() < 2
    assert (rgb[:, 0] - rgb[:, 2]).abs().mean() > 5


@pytest.mark.parametrize("name", registry.HOUSE_NUMBERS)
@pytest.mark.parametrize("grey", [True, False])
def test_every_configured_set(name: str, grey: bool, digit_root: Path) -> None:
    config = config_of(name)
    assert config.source == "digits" and config.grey and (config.retina.size, config.retina.scales) == (12, 2)
    data = open_data(dataclasses.replace(config, grey=grey, root=str(digit_root)))
    info, side, channels = data.info, 110 if name.endswith("110") else 54, 1 if grey else 3
    assert (info.name, info.channels, info.height, info.width, info.length) == (name, channels, side, side, 5)
    assert info.classes == 10 and info.class_names == tuple("0123456789")
    assert (info.train, info.validation, info.test, info.background) == (60, 20, 30, 128)
    images, labels = data.train_batch(0, 0, 0, 16)
    assert images.dtype == torch.uint8 and images.shape == (16, channels, side, side) and labels.shape == (16, 6)
    fixed, targets = data.fixed("test")
    assert fixed.shape == (30, channels, side, side) and targets.shape == (30, 6) and fixed.dtype == torch.uint8
    assert data.digest("test") == digest_of(fixed, targets) != data.digest("validation")


def test_a_batch_is_a_pure_function_of_its_arguments(digit_root: Path) -> None:
    assert_batches_are_pure(opened(digit_root), opened(digit_root))


def test_a_batch_of_one_and_any_size(digit_root: Path) -> None:
    data = opened(digit_root, height=61, width=150, grey=False)
    for step in range(60):  # with a plate or a shadow, and without
        assert data.train_batch(0, 0, step, 1)[0].shape == (1, 3, 61, 150)


def test_fixed_scenes_are_these_scenes(digit_root: Path) -> None:
    """Validation and test scenes of everybody depend on this: a change is a change of every published number."""
    tight = opened(digit_root)
    tight.train_batch(5, 5, 0, 32)
    torch.manual_seed(123)
    torch.set_num_threads(2)
    wide = opened(digit_root, height=110, width=110, grey=False)
    found = [d.digest(split)[:16] for d in (tight, wide) for split in ("validation", "test")]
    assert found == ["b60d0ace85b4a15c", "dc80a512ed45ad2e", "2369d1c87d22201d", "d49b5944809d3264"]


def test_products_are_exact_at_any_precision(digit_root: Path) -> None:
    data = opened(digit_root)
    expected = data.train_batch(0, 0, 0, 60)[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(data.train_batch(0, 0, 0, 60)[0], expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_loop_over_images() -> None:
    """A batch of 128 takes about 8 ms; image by image it would take 20 times as long."""
    scenes = HouseNumbers((54, 54), True, blocks(), LABELS)
    times = []
    for step in range(20):
        start = time.process_time()
        scenes.compose(np.arange(128), step)
        times.append(time.process_time() - start)
    assert min(times) < 0.05


@pytest.mark.gpu
def test_same_scenes_on_a_gpu(digit_root: Path) -> None:
    for keys in ({}, dict(height=110, width=110, grey=False)):
        here, there = opened(digit_root, **keys), opened(digit_root, **keys).to("cuda")
        assert here.digest("test") == there.digest("test")
        for step in range(3):
            ours, theirs = here.train_batch(0, 1, step, 16), there.train_batch(0, 1, step, 16)
            assert theirs[0].is_cuda and torch.equal(ours[0], theirs[0].cpu()) and torch.equal(ours[1], theirs[1].cpu())
