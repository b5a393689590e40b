"""Digits of many sizes: each resized to a square of a random side, somewhere in a black image; for a whole batch at
once, on the device where the digits are. For the "objects of different size" of Mnih et al. 2014 (arXiv 1406.6247),
section 5.

Decisions where the text is silent:

1. Every whole side from the smallest to the largest is equally likely, and every position at which the square lies
   wholly inside the image.
2. A pixel of the resized digit is the mean of what it covers of the original; enlarged, of what one pixel of the
   original around its middle covers, which is linear interpolation between pixels, black beyond the edge.
3. Both directions are a matrix product, with weights in steps of 1/256 and grey levels rounded in between: sums of
   integers that fp32, TF32 and bf16 operands hold exactly, so every device makes the same image.

Legend: B batch, n digits in the pool, K side of a digit in the pool, S largest side, H, W scene height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from attn_cli.data.keys import draws
from attn_cli.data.scenes import Geometry, place
from attn_cli.devices import send


@dataclass(frozen=True)
class Squares:
    """Where B digits lie, int64 (B,) on the CPU, in pixels from the top left corner."""

    side: np.ndarray
    y: np.ndarray
    x: np.ndarray

    def boxes(self) -> np.ndarray:
        """int64 (B, 4): x0, y0, x1, y1, the last two exclusive."""
        return np.stack([self.x, self.y, self.x + self.side, self.y + self.side], 1)


class Scaled:
    """Scenes of one digit each, from the digits of one split: `compose` makes a batch of them, with labels."""

    def __init__(self, size: tuple[int, int], sides: tuple[int, int], digits: np.ndarray, labels: np.ndarray):
        """`size` is (H, W), `sides` the smallest and the largest; `digits` uint8 (n, K, K), `labels` (n,)."""
        self.geometry, self.sides = Geometry(*size, pieces=0, piece_size=0, translate=True), sides
        self.digits, self.labels = torch.from_numpy(digits), torch.from_numpy(labels).long()
        self.weights = resampling(*sides, digits.shape[1])

    def to(self, device: torch.device | str) -> Self:
        self.digits, self.labels = self.digits.to(device), self.labels.to(device)
        self.weights = self.weights.to(device)
        return self

    def where(self, count: int, *parts: int | str) -> Squares:
        """The squares of `count` digits, a pure function of the arguments."""
        smallest, largest = self.sides
        numbers = draws((count, 3), *parts).T
        side = smallest + (numbers[0] * (largest - smallest + 1) >> 31)
        sizes = (self.geometry.height, self.geometry.width)
        y, x = (n * (size - side + 1) >> 31 for n, size in zip(numbers[1:], sizes, strict=True))
        return Squares(side, y, x)

    def compose(self, own: np.ndarray, *parts: int | str) -> tuple[Tensor, Tensor]:
        """uint8 (B, 1, H, W) and int64 (B,) on the device; `own` int64 (B,) are the digits."""
        squares = self.where(len(own), *parts)
        shown, size = send(np.stack([own, squares.side - self.sides[0]]), self.digits.device)
        weights_BSK = self.weights.index_select(0, size)
        rows = (weights_BSK @ self.digits.index_select(0, shown).float()).mul_(1 / 256).round_()
        resized = (rows @ weights_BSK.transpose(1, 2)).mul_(1 / 256).round_().clamp_(max=255).to(torch.uint8)
        scenes = place(self.geometry, resized, squares.y, squares.x)
        return scenes[:, None], self.labels.index_select(0, shown)

    def boxes(self, own: np.ndarray, *parts: int | str) -> Tensor:
        """int64 (B, 4) on the CPU: the squares of the digits that `compose` shows for these arguments."""
        return torch.from_numpy(self.where(len(own), *parts).boxes())


def resampling(smallest: int, largest: int, digit: int) -> Tensor:
    """float32 (sides, S, K), integers: how much of pixel k of a digit is in pixel s of it at each side, in 1/256;
    nothing is in those beyond the side.
    """
    sides = np.arange(smallest, largest + 1)[:, None, None]
    pixel, k = np.arange(largest)[:, None], np.arange(digit)
    # In units of 1/(2 side) of a digit's pixel: the middle of what a pixel takes in, and half of its width.
    middle, half = (2 * pixel + 1) * digit, np.maximum(digit, sides)
    common = np.minimum(middle + half, 2 * sides * (k + 1)) - np.maximum(middle - half, 2 * sides * k)
    table = np.round(256 * common.clip(0) / (2 * half)) * (pixel < sides)
    return torch.from_numpy(table.astype(np.float32))


def misfit(size: tuple[int, int], sides: tuple[int, int]) -> str | None:
    """Which configured size cannot work, in words; None if all fit."""
    (height, width), (smallest, largest) = size, sides
    if smallest > largest:
        return f"data.smallest={smallest} is above data.largest={largest}: exchange them"
    if largest > min(height, width):
        return (
            f"data.largest={largest} does not fit into data.height × data.width of {height}×{width}: "
            f"set data.largest to at most {min(height, width)}"
        )
    return None
