"""What a person's own images and labels have in common, whether they come as a folder or as arrays.

Legend: N images, H, W height and width, C channels (1 grey, 3 RGB).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from attn_cli.config.schema import WIDEST, Folder
from attn_cli.data.keys import permutation
from attn_cli.errors import Refused

MAX_BYTES = 4 << 30  # of all images together, as uint8 in memory
BLOCK = 1 << 20  # values that are made grey at a time
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Own:
    """images uint8 (N, C, H, W), labels int64 (N,) in [0, K), per split."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    class_names: tuple[str, ...]


def target_size(config: Folder) -> tuple[int, int] | None:
    """(H, W) that every image is resized to; None to leave them. Raises Refused if only one of the two is given."""
    if (config.height is None) != (config.width is None):
        given, missing = ("height", "width") if config.width is None else ("width", "height")
        raise Refused(f"data.{given} is set and data.{missing} is not: set both or neither.")
    return None if config.height is None or config.width is None else (config.height, config.width)


def check_size(where: str, height: int, width: int) -> None:
    if not (0 < height <= WIDEST and 0 < width <= WIDEST):
        raise Refused(f"{where} is {height}×{width} pixels, images must have 1 to {WIDEST} pixels a side.")


def check_bytes(where: str, count: int, height: int, width: int, channels: int) -> None:
    """Raises Refused if that many images do not fit the limit; call it before memory is taken."""
    size = count * height * width * channels
    if size > MAX_BYTES:
        raise Refused(
            f"{where} has {count:,} images of {height}×{width}×{channels} = {size:,} bytes, more than the limit of "
            f"{MAX_BYTES:,}: use fewer or smaller images (data.height and data.width resize a folder's images)."
        )


def grey(rgb: np.ndarray) -> np.ndarray:
    """uint8 (N, ..., 3) to (N, ..., 1): the luma of ITU-R 601, with Pillow's integer weights."""
    weights = np.array([19595, 38470, 7471], np.int64)
    out = np.empty((*rgb.shape[:-1], 1), np.uint8)
    step = max(BLOCK // max(rgb[:1].size, 1), 1)  # a few at a time: int64 takes eight times the room
    for low in range(0, len(rgb), step):
        out[low : low + step, ..., 0] = (rgb[low : low + step] @ weights + 0x8000) >> 16
    return out


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 (N, ..., 1 or 3) to (N, ..., channels)."""
    if image.shape[-1] == channels:
        return image
    return grey(image) if channels == 1 else np.repeat(image, 3, -1)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (h, w, C) to (H, W, C): linear interpolation, with averaging where the image shrinks."""
    if image.shape[:2] == size:
        return image
    pillow = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    array = np.asarray(pillow.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return array.reshape(*size, image.shape[-1])


def complete(
    images: dict[str, np.ndarray], labels: dict[str, np.ndarray], config: Folder
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All three splits; those that the data does not name are taken out of train, by the configured shares.

    Raises Refused if a split is empty.
    """
    missing = [split for split in SPLITS if split not in images]
    if missing:
        parts = divide(
            labels["train"],
            config.validation_share if "validation" in missing else 0.0,
            config.test_share if "test" in missing else 0.0,
            config.seed,
        )
        new = ("train", *missing)
        images = {**images, **{split: images["train"][parts[split]] for split in new}}
        labels = {**labels, **{split: labels["train"][parts[split]] for split in new}}
    if not all(len(labels[split]) for split in SPLITS):
        sizes = ", ".join(f"{split} {len(labels[split]):,}" for split in SPLITS)
        remedy = "add images"
        if missing:
            change = "raise" if len(labels["train"]) else "lower"
            remedy += f", or {change} data.validation_share or data.test_share"
        raise Refused(f"{config.path} gives an empty split ({sizes} images): {remedy}.")
    return images, labels


def divide(labels: np.ndarray, validation_share: float, test_share: float, seed: int) -> dict[str, np.ndarray]:
    """Indices (sorted) of train, validation and test: the shares of the whole, spread evenly over the classes.

    The images are put in a seeded random order within their class, class after class, and at equal distances one
    goes to the other split.
    """
    shuffled = permutation(len(labels), "split", seed)
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    test = _evenly(len(order), test_share)
    rest = order[~test]
    validation = _evenly(len(rest), validation_share / (1 - test_share))
    return {
        "train": np.sort(rest[~validation]),
        "validation": np.sort(rest[validation]),
        "test": np.sort(order[test]),
    }


def _evenly(count: int, share: float) -> np.ndarray:
    """bool (count,): that share of the places, at equal distances; the total is rounded to the nearest."""
    return np.diff(np.floor(np.arange(count + 1) * share + 0.5)) > 0
