"""Catch, the game of Recurrent Models of Visual Attention, section 4.2 (arXiv 1406.6247), thousands of games at once.

The rules; those marked * are choices that the paper leaves open:

1. The screen has 24×24 binary pixels: a ball of one pixel, a paddle of two in the bottom row, all else black.
2. The ball starts in the top row, in a random column*, at a random angle* of up to 45° to either side of straight down.
3. Each frame it falls by one row*, moves sideways by the tangent of its angle, and is mirrored at the sides.
4. The paddle starts in the middle*. Each frame it moves by one pixel to the left, stays, or moves to the right; at the
   side it stays.
5. After 23 frames the ball is in the bottom row and the game is over: the reward is 1 if the paddle overlaps it,
   else 0.

Horizontal positions of the ball are integers, in 1/1024 of a pixel, so every device plays the same game. As nothing
but the paddle can be influenced, the ball's column is a closed form of its start and the frame.

Legend: R games.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from attn_cli.data.keys import below

SIDE = 24  # pixels of the screen
PADDLE = 2  # pixels
STEEPEST = 450  # tenths of a degree from straight down
UNIT = 1024  # of these a pixel

LEFT, STAY, RIGHT = 0, 1, 2


@dataclass(frozen=True)
class Catch:
    """R games at the same frame."""

    starts: Tensor  # int64 (R, 2): where the ball starts, and its speed to the right per frame, in 1/1024 pixel
    paddle: Tensor  # int64 (R,) its left column
    frame: int  # from 0; also the row of the ball

    side = SIDE
    frames = SIDE - 1  # that a player sees and acts upon
    actions = ("left", "stay", "right")

    @staticmethod
    def begin(starts_R2: Tensor) -> Catch:
        return Catch(starts_R2, torch.full_like(starts_R2[:, 0], (SIDE - PADDLE) // 2), 0)

    @property
    def over(self) -> bool:
        return self.frame == self.frames

    def ball(self, frame: int | None = None) -> Tensor:
        """Its column (R,) in this frame or another: mirrors fold a line that comes back every two screens."""
        start, speed = self.starts.unbind(-1)
        line = torch.remainder(start + speed * (self.frame if frame is None else frame), 2 * SIDE * UNIT)
        return torch.minimum(line, 2 * SIDE * UNIT - 1 - line) // UNIT

    def screens(self) -> Tensor:
        """uint8 (R, 1, 24, 24), 0 or 255."""
        bottom = (SIDE - 1) * SIDE + self.paddle
        lit = torch.stack([self.frame * SIDE + self.ball(), bottom, bottom + 1], 1)
        dark = torch.zeros(len(lit), SIDE * SIDE, dtype=torch.uint8, device=lit.device)
        return dark.scatter(1, lit, 255).view(-1, 1, SIDE, SIDE)

    def step(self, actions_R: Tensor) -> Catch:
        """The next frame, after int64 actions: 0 left, 1 stay, 2 right."""
        return replace(self, paddle=(self.paddle + actions_R - STAY).clamp(0, SIDE - PADDLE), frame=self.frame + 1)

    def rewards(self) -> Tensor:
        """Of games that are over: float (R,), 1 where the ball was caught."""
        distance = self.ball() - self.paddle
        return ((distance >= 0) & (distance < PADDLE)).float()


def draw_starts(count: int, *parts: int | str) -> Tensor:
    """int64 (n, 2) starts of n games as `Catch` has them, a pure function of the parts, the same on every machine."""
    columns = below(SIDE * UNIT, (count,), *parts, "column")
    return as_starts(columns, below(2 * STEEPEST + 1, (count,), *parts, "angle") - STEEPEST)


def as_starts(columns: np.ndarray, angles: np.ndarray) -> Tensor:
    """int64 (n, 2) from columns in 1/1024 pixel and angles in tenths of a degree."""
    speeds = np.round(np.tan(np.radians(angles / 10)) * UNIT).astype(np.int64)
    return torch.from_numpy(np.stack([columns, speeds], 1))
