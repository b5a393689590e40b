"""Sequences: the digits of a house number, drawn into an image for a whole batch at once, on the device of the digits.

A digit's ink, resized to its box in the layout, on black; digits that overlap are added, and the sum clamped at 255.
Decisions:

1. What is resized is the smallest box around the ink, but at least half as wide as high, so that a 1 stays slim.
2. Resizing averages what of the digit falls on a pixel of the image, but never less than the width of one of the
   digit's own pixels, so that enlarging is linear interpolation. Both directions are a matrix product per digit, with
   weights in steps of 1/256 and grey levels rounded in between: sums of integers that fp32, TF32 and bf16 operands hold
   exactly, so every device makes the same image.

Legend: B images, D digits in all of them together, n digits in the pool, K side of the largest ink, S side of the part
of the image that is drawn, H, W height and width.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from attn_cli.data import layouts
from attn_cli.data.scenes import Geometry, place
from attn_cli.devices import send

FINE = 4096  # of these a pixel of a digit
NOTHING = -1  # label behind the terminal class


class Sequences:
    """Numbers from the digits of one split: `compose` makes a batch of them, with labels."""

    drawn = 60  # pixels: the box around the digits is 49, a smooth edge of a large single digit adds 3 on each side

    def __init__(self, size: tuple[int, int], random_crop: bool, digits: np.ndarray, labels: np.ndarray):
        """`digits` uint8 (n, h, w), `labels` (n,) with classes 0 to 9; `size` in pixels, at least 54 each."""
        self.size, self.random_crop = size, random_crop
        self.pool = layouts.Pool(labels)
        ink, self.extent = cut_to_ink(digits)
        self.ink = torch.from_numpy(ink)

    def to(self, device: torch.device | str) -> Self:
        self.ink = self.ink.to(device)
        return self

    def compose(self, own: np.ndarray, *parts: int | str) -> tuple[Tensor, Tensor]:
        """uint8 (B, 1, H, W) and int64 (B, L+1) on the device; of `own` only the number of images counts."""
        numbers = layouts.draw(self.pool, self.size, self.random_crop, len(own), *parts)
        return self.draw(numbers)[:, None], send(self.targets(numbers), self.ink.device)

    def targets(self, numbers: layouts.Numbers) -> np.ndarray:
        """int64 (B, L+1): classes from left to right, 10 for the end, -1 behind it."""
        labels = np.full((len(numbers.count), layouts.LONGEST + 1), NOTHING)
        labels[np.arange(len(labels)), numbers.count] = 10
        labels[numbers.number, numbers.place] = self.pool.labels[numbers.digit]
        return labels

    def draw(self, numbers: layouts.Numbers, blur: np.ndarray | None = None) -> Tensor:
        """uint8 (B, H, W): the ink of the digits; `blur` int64 (B, 2) as `weights` takes it, along y and x."""
        height, width = self.size
        shape = min(height, self.drawn), min(width, self.drawn)
        # Only a part of a large image has digits in it: that part is drawn, then moved to its place.
        corner = numbers.middle // layouts.UNIT - np.array(shape) // 2
        corner = np.clip(corner, 0, np.array(self.size) - shape)
        box = numbers.box - (corner * layouts.UNIT).repeat(2, 1)[numbers.number]
        chosen = self.ink.index_select(0, send(numbers.digit, self.ink.device)).float()
        blur = np.zeros_like(numbers.middle) if blur is None else blur
        rows, columns = (
            weights(box[:, 2 * k : 2 * k + 2], self.extent[numbers.digit, k], shape[k], chosen, blur[numbers.number, k])
            for k in (0, 1)
        )
        drawn = (rows @ chosen).mul_(1 / 256).round_() @ columns.transpose(1, 2)
        sums = drawn.new_zeros(len(numbers.count), shape[0] * shape[1])
        sums.index_add_(0, send(numbers.number, drawn.device), drawn.flatten(1))
        part = sums.mul_(1 / 256).round_().clamp_(max=255).to(torch.uint8).view(-1, *shape)
        if shape == self.size:
            return part
        return place(Geometry(height, width, 0, 0, True), part, corner[:, 0], corner[:, 1])


def weights(edges: np.ndarray, extent: np.ndarray, size: int, like: Tensor, blur: np.ndarray) -> Tensor:
    """float32 (D, S, K), integers: how much of pixel k of a digit is in pixel s of the image, in 1/256.

    `edges` int64 (D, 2) are where the first `extent` (D,) pixels of a digit begin and end in the image; each pixel of
    the image takes in `blur` int64 (D,) more on either side; both in 1/256 pixel. K and the device are those of `like`.
    All rows that lie inside the digit sum to 256, up to rounding.
    """
    step = extent * (FINE * layouts.UNIT) // (edges[:, 1] - edges[:, 0])  # pixels of the digit per pixel of the image
    middle = -edges[:, 0] * step // layouts.UNIT + step // 2  # of the image's first pixel
    half = np.maximum(step + 2 * blur * step // layouts.UNIT, FINE) // 2  # of what a pixel of the image takes in
    gain = np.float32(128) / half.astype(np.float32)
    table = send(np.stack([step, middle, half + FINE // 2, gain]).astype(np.float32), like.device)
    step_D, middle_D, reach_D, gain_D = table[:, :, None]
    # Up to the last product everything is an integer below 2^24.
    middles_DS = torch.arange(size, device=like.device) * step_D + middle_D
    centres_K = torch.arange(like.shape[-1], device=like.device) * FINE + FINE // 2
    overlap = (middles_DS[:, :, None] - centres_K).abs_().neg_().add_(reach_D[:, :, None]).clamp_(0, FINE)
    return overlap.mul_(gain_D[:, :, None]).round_()


def cut_to_ink(digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, K, K), each digit with its box of ink in the top left corner, and int64 (n, 2), height and width of it.

    The box is at least half as wide as high, with the ink in its middle.
    """
    n, h, w = digits.shape
    found = []
    for size, axis in ((h, 2), (w, 1)):
        inked = (digits > 0).max(axis)
        first, behind = inked.argmax(1), size - inked[:, ::-1].argmax(1)
        empty = ~inked.any(1)
        found.append((np.where(empty, 0, first), np.where(empty, size, behind - first)))
    (top, height), (left, wide) = found
    width = np.maximum(wide, (height + 1) // 2)
    left = left - (width - wide) // 2
    side = int(max(height.max(), width.max()))
    padded = np.pad(digits, ((0, 0), (side, side), (side, side)))
    rows = np.take_along_axis(padded, (side + top[:, None] + np.arange(side))[:, :, None], 1)
    return np.take_along_axis(rows, (side + left[:, None] + np.arange(side))[:, None], 2), np.stack([height, width], 1)
