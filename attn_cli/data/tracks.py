"""Videos of one digit that moves through clutter, for a whole batch at once, on the device where the digits are.

Both Mnih et al. 2014 (section 4.2) and Semeniuta & Barth 2016 (section V) say that their models suit video, and neither
names data for it. So this is a scene of cluttered MNIST in motion, as Moving MNIST has it (Srivastava, Mansimov,
Salakhutdinov 2015, arXiv 1502.04681). Decisions:

1. The first frame is a scene of cluttered MNIST: in the fixed splits, and in each step of training, the one that the
   still data set of this size has there. The digit moves with a constant velocity: its direction is any tenth of a
   degree, its speed lies between half of `fastest` and all of it. At the walls it is mirrored.
2. The clutter stands still and the digit passes over it, with sums clamped at 255. So every frame is a scene of the
   still data set, and a model that was trained on those sees nothing new but motion.
3. Positions are kept in 1/1024 of a pixel and drawn at whole pixels, so that every device shows the same videos; a
   frame is a closed form of the first one and its number.
4. Frames are rendered when they are asked for. A batch for training is a tensor; `Videos`, a fixed split, holds where
   everything goes and renders what is indexed: 10,000 videos of 20 frames with 100×100 pixels would be 2 GB.

Legend: B videos, T frames, P pieces, n digits in the pool, h, w digit height and width, H, W frame height and width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from attn_cli.data.keys import below
from attn_cli.data.scenes import Geometry, Layout, clutter, place

UNIT = 1024  # of these a pixel
TURN = 3600  # directions


@dataclass(frozen=True)
class Track:
    """Everything random in B videos, on the CPU."""

    first: Layout  # of the first frame
    velocity: np.ndarray  # int64 (B, 2): down and to the right, in 1/1024 pixel per frame

    def __getitem__(self, which: Any) -> Track:
        """Those videos alone, by a slice or numbers."""
        first = Layout(*(getattr(self.first, field.name)[which] for field in fields(Layout)))
        return Track(first, self.velocity[which])


def in_motion(first: Layout, fastest: float, *parts: int | str) -> Track:
    """These scenes as first frames of videos, a pure function of the arguments; `fastest` in pixels per frame, `parts`
    key the random numbers.
    """
    count, most = len(first.y), round(fastest * UNIT)
    speed = most - below(most // 2 + 1, (count,), *parts, "speed")
    angle = below(TURN, (count,), *parts, "direction") * (2 * np.pi / TURN)
    velocity = np.round(speed[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)).astype(np.int64)
    return Track(first, velocity)


def positions(geometry: Geometry, digit: tuple[int, int], track: Track, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Top row and left column of the digit (h, w) in each frame, int64 (B, T) in pixels."""
    found = []
    sides = zip((geometry.height, geometry.width), digit, (track.first.y, track.first.x), strict=True)
    for axis, (side, own, first) in enumerate(sides):
        places = (side - own + 1) * UNIT
        # From the middle of the first pixel; mirrors fold a line that comes back after twice the way.
        line = (first * UNIT + UNIT // 2)[:, None] + track.velocity[:, axis, None] * np.arange(frames)
        line %= 2 * places
        found.append(np.minimum(line, 2 * places - 1 - line) // UNIT)
    return found[0], found[1]


def render(geometry: Geometry, digits: Tensor, shown: Tensor, track: Track, frames: int) -> Tensor:
    """uint8 (B, T, H, W) on the device of the pool `digits` (n, h, w); `shown` uint8 (B, h, w) are the videos' own
    digits. No loop over videos.
    """
    b, h, w = shown.shape
    videos = place(geometry, shown, *positions(geometry, (h, w), track, frames))
    if geometry.pieces:
        still = clutter(geometry, videos.new_zeros(b, geometry.height, geometry.width), digits, track.first)
        for t in range(frames):  # a frame of all videos stays in the processor's cache
            videos[:, t] += torch.minimum(still, 255 - videos[:, t])
    return videos


def boxes(geometry: Geometry, digit: tuple[int, int], track: Track, frames: int) -> Tensor:
    """int64 (B, T, 4): where the digits lie, x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""
    y, x = positions(geometry, digit, track, frames)
    return torch.from_numpy(np.stack([x, y, x + digit[1], y + digit[0]], -1))


class Videos:
    """The videos of a fixed split, one per digit of the pool in order: what `Pictures` asks of a uint8 tensor
    (n, T, 1, H, W), which is never there as a whole.
    """

    def __init__(self, geometry: Geometry, digits: Tensor, track: Track, frames: int):
        self.geometry, self.digits, self.track, self.frames = geometry, digits, track, frames

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.digits), self.frames, 1, self.geometry.height, self.geometry.width))

    @property
    def device(self) -> torch.device:
        return self.digits.device

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.geometry, self.digits.to(device), self.track, self.frames)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """A slice of the videos, or those with the numbers (b,)."""
        track = self.track[which if isinstance(which, slice) else which.cpu().numpy()]
        return render(self.geometry, self.digits, self.digits[which], track, self.frames)[:, :, None]
