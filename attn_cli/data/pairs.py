"""Two digits in one scene, for a whole batch at once, on the device where the digits are.

Ba, Mnih, Kavukcuoglu 2015 (arXiv 1412.7755): 4.1, the pair of digits as one of 55 classes, with "distraction noise";
4.2, the sum of the two on an empty background, 19 classes. Decisions where the text is silent:

1. The first digit of scene i is digit i, so an epoch shows every training digit once; the second is any *other image*
   of the same split (its class may be the same). The classes follow: 0 0 is half as likely as 0 1.
2. The boxes of the two digits (28×28, not only their ink) overlap by at most `overlap` of a box's area, 0 by default;
   every pair of places that keeps to this is equally likely. Places are drawn from tables, nothing is tried again.
3. The noise is pieces of other images than these two, cut and added as in `scenes`; the sum of everything is clamped
   at 255.
4. As a sequence the digits are read from left to right by their boxes' places, and from top to bottom where those are
   alike: the strongest of the three labels, for lessons.

Legend: B batch, P pieces, n digits in the pool, h, w digit height and width, H, W scene height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from attn_cli.data.keys import draws
from attn_cli.data.pair_labels import class_table, length
from attn_cli.data.scenes import Geometry, Layout, clutter, piece_bounds, place
from attn_cli.data.scenes import misfit as single_misfit
from attn_cli.data.warps import warped
from attn_cli.devices import send


class Places:
    """Draws the places of two h×w boxes in an H×W scene, every allowed pair of places equally likely.

    The boxes lie wholly inside, and where they are (dy, dx) apart, (h - |dy|)(w - |dx|) ≤ overlap h w (a negative
    factor counts as 0). So for every |dy| all |dx| from some `nearest` on are allowed, and a pair of offsets leaves
    (rows - |dy|)(columns - |dx|) places for the first box: dy is drawn by its share of all pairs of places, then dx by
    its share at that dy, then the place. All arithmetic is on integers.
    """

    def __init__(self, geometry: Geometry, box: tuple[int, int], overlap: float):
        h, w = box
        self.rows, self.columns = geometry.height - h + 1, geometry.width - w + 1  # places of one box
        shared = np.maximum(h - np.arange(self.rows), 0)  # rows that both boxes have, for every |dy|
        widest = np.where(shared > 0, int(overlap * h * w + 1e-9) // np.maximum(shared, 1), w)
        self.nearest = np.clip(w - widest, 0, self.columns)
        # Offsets from the farthest to the nearest, so that the allowed ones come first: their places are the first
        # `allowed[|dy|]` of all.
        self.dx = np.stack([-np.arange(self.columns), np.arange(self.columns)], 1)[::-1].reshape(-1)[:-1]
        self.until_x = (self.columns - np.abs(self.dx)).cumsum()
        far = self.columns - self.nearest
        self.allowed = np.where(self.nearest > 0, far * (far + 1), self.columns**2)
        self.dy = np.arange(1 - self.rows, self.rows)
        self.until_y = ((self.rows - np.abs(self.dy)) * self.allowed[np.abs(self.dy)]).cumsum()

    @property
    def pairs(self) -> int:
        """How many pairs of places are allowed."""
        return int(self.until_y[-1])

    def at(self, numbers: np.ndarray) -> np.ndarray:
        """int64 (4, B): y, x of the first and y, x of the second box, from (5, B) integers below 2^31."""
        dy = self.dy[np.searchsorted(self.until_y, (numbers[0] << 31 | numbers[1]) % self.pairs, "right")]
        allowed = self.allowed[np.abs(dy)]
        dx = self.dx[np.searchsorted(self.until_x, numbers[2] * allowed >> 31, "right")]
        y = np.maximum(-dy, 0) + ((self.rows - np.abs(dy)) * numbers[3] >> 31)
        x = np.maximum(-dx, 0) + ((self.columns - np.abs(dx)) * numbers[4] >> 31)
        return np.stack([y, x, y + dy, x + dx])


@dataclass(frozen=True)
class PairLayout:
    """Everything random in B scenes, int64 on the CPU, in pixels from the top left corner."""

    other: np.ndarray  # (B,) which digit of the pool is the second
    other_y: np.ndarray  # (B,)
    other_x: np.ndarray  # (B,)
    first: Layout  # the first digit, and the pieces


def layout(
    geometry: Geometry, places: Places, n: int, box: tuple[int, int], own: np.ndarray, *parts: int | str
) -> PairLayout:
    """Where everything goes in B scenes from a pool of n digits (h, w), a pure function of its arguments."""
    count, pieces = len(own), geometry.pieces
    # A pool that is too small for other images gives the same ones again.
    bounds = np.array(piece_bounds(geometry, (n - 2 if n > 2 else n, *box)), np.int64)
    numbers = draws((count, 6 + len(bounds)), *parts)
    other = numbers[:, 0] * max(n - 1, 1) >> 31
    if n > 1:
        other = other + (other >= own)
    y, x, other_y, other_x = places.at(numbers[:, 1:6].T)
    source, *rest = (numbers[:, 6:] * bounds >> 31).reshape(count, 5, pieces).swapaxes(0, 1)
    if n > 2:
        low, high = np.minimum(own, other)[:, None], np.maximum(own, other)[:, None]
        source = source + (source >= low)
        source = source + (source >= high)
    return PairLayout(other, other_y, other_x, Layout(y, x, source, *rest))


def render(geometry: Geometry, digits: Tensor, first: Tensor, other: Tensor, where: PairLayout) -> Tensor:
    """uint8 (B, H, W) on the device of the pool `digits` (n, h, w); first and other uint8 (B, h, w) there."""
    scenes = place(geometry, first, where.first.y, where.first.x)
    second = place(geometry, other, where.other_y, where.other_x)
    scenes += torch.minimum(second, 255 - scenes)
    return clutter(geometry, scenes, digits, where.first) if geometry.pieces else scenes


class Pairs:
    """Scenes of two digits of one split: `compose` makes a batch of them, with labels."""

    def __init__(
        self, geometry: Geometry, overlap: float, label: str, warp: float, digits: np.ndarray, labels: np.ndarray
    ):
        """`digits` uint8 (n, h, w), `labels` (n,) with classes 0 to K-1; `label` is "pair", "sum" or "sequence"; `warp`
        as in `warps`.
        """
        self.geometry, self.places, self.warp = geometry, Places(geometry, digits.shape[1:], overlap), warp
        self.digits, self.labels = torch.from_numpy(digits), torch.from_numpy(labels).long()
        self.classes = None if length(label) else torch.from_numpy(class_table(label))  # int64 (10, 10)

    def to(self, device: torch.device | str) -> Self:
        self.digits, self.labels = self.digits.to(device), self.labels.to(device)
        self.classes = None if self.classes is None else self.classes.to(device)
        return self

    def compose(self, own: np.ndarray, *parts: int | str) -> tuple[Tensor, Tensor]:
        """uint8 (B, 1, H, W) and int64 (B,), of sequences (B, 3), on the device; `own` int64 (B,) are first digits."""
        n, h, w = self.digits.shape
        where = layout(self.geometry, self.places, n, (h, w), own, *parts)
        both = send(np.concatenate([own, where.other]), self.digits.device)
        first, other = warped(self.digits.index_select(0, both), self.warp, *parts, "warp").chunk(2)
        images = render(self.geometry, self.digits, first, other, where)
        first, other = self.labels.index_select(0, both).chunk(2)
        if self.classes is None:
            return images[:, None], from_left_to_right(first, other, where)
        return images[:, None], self.classes[first, other]


def from_left_to_right(first: Tensor, other: Tensor, where: PairLayout) -> Tensor:
    """int64 (B, 3): the two classes (B,) as one reads them, and 10 for the end."""
    ahead = (where.other_x < where.first.x) | ((where.other_x == where.first.x) & (where.other_y < where.first.y))
    swapped = send(ahead, first.device)
    left, right = torch.where(swapped, other, first), torch.where(swapped, first, other)
    return torch.stack([left, right, torch.full_like(left, 10)], 1)


def misfit(geometry: Geometry, digit: Sequence[int], overlap: float) -> str | None:
    """Which configured size cannot work with digits of (h, w) pixels, in words; None if all fit."""
    h, w = digit
    problem = single_misfit(geometry, digit)
    if problem is None and not Places(geometry, (h, w), overlap).pairs:
        return (
            f"two {h}×{w} digits do not fit into data.height × data.width of {geometry.height}×{geometry.width} with "
            f"data.overlap={overlap:g}: enlarge one of the three"
        )
    return problem
