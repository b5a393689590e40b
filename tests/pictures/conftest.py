"""Traces of chosen paths, and images of one colour, which can be found again on a page."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from attn_cli.models.trace import Trace

INNER = (20, 40, 180)  # a blue that no picture uses itself


@pytest.fixture
def make_trace() -> Callable[..., Trace]:
    def make(locations, guesses, *, classes=4, size=4, scales=2, channels=3, height=28, width=28, chance=0.9) -> Trace:
        """locations (M, B, N, 2); guesses (B,) or (B, N): the predicted class after each glimpse, with `chance`."""
        locations = torch.as_tensor(locations, dtype=torch.float32)
        M, B, N, _ = locations.shape
        guesses = torch.as_tensor(guesses).view(B, -1).expand(B, N)
        chances = torch.full((M, B, N, classes), (1 - chance) / (classes - 1))
        for b in range(B):
            for t in range(N):
                chances[:, b, t, guesses[b, t]] = chance
        logits = chances.log()
        centres = torch.floor((locations + 1) * torch.tensor([width, height]) / 2 + 0.5).long()
        boxes = torch.stack(
            [torch.cat([centres - size * 2**j // 2, centres + size * 2**j // 2], -1) for j in range(scales)], -2
        )
        patches = torch.full((M, B, N, scales, channels, size, size), 200 / 255)
        empty = torch.zeros(M, B, N - 1)
        return Trace(locations, empty, empty, logits[:, :, -1], logits, patches, boxes)

    return make


@pytest.fixture
def blue() -> Callable[..., torch.Tensor]:
    def make(count: int, height: int, width: int) -> torch.Tensor:
        return torch.tensor(INNER, dtype=torch.uint8).view(1, 3, 1, 1).expand(count, 3, height, width)

    return make


class Finder:
    """Answers in pixels of the page."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels.astype(int)

    def panels(self) -> list[tuple[int, int, int, int]]:
        """(x0, y0, x1, y1) of the areas in the images' blue, from the top; x1 and y1 exclusive."""
        mask = (abs(self.pixels - INNER) <= 2).all(-1)
        columns, rows = np.flatnonzero(mask.max(0)), np.flatnonzero(mask.max(1))
        parts = np.split(rows, np.flatnonzero(np.diff(rows) > 20) + 1)
        return [(int(columns[0]), int(part[0]), int(columns[-1]) + 1, int(part[-1]) + 1) for part in parts]

    def at(self, panel: tuple[int, int, int, int], x: float, y: float, right: float = 0, down: float = 0) -> str:
        """Colour at location (x, y) in [-1, 1] of a panel plus an offset in pixels: green, red, blue or other."""
        x0, y0, x1, y1 = panel
        column = math.floor(x0 + (x + 1) / 2 * (x1 - x0) + right)
        row = math.floor(y0 + (y + 1) / 2 * (y1 - y0) + down)
        r, g, b = self.pixels[row, column]
        if g > r + 80 and g > b + 80:
            return "green"
        if r > g + 80 and r > b + 80:
            return "red"
        if abs(self.pixels[row, column] - INNER).max() <= 2:
            return "blue"
        return "other"

    def seen(self, panel: tuple[int, int, int, int], x: float, y: float, right: int, down: int) -> list[str]:
        """What one meets going 14 pixels from a location, each stretch once; "gap" where a colour stops and returns."""
        stretches: list[str] = []
        gap = False
        for i in range(15):
            colour = self.at(panel, x, y, right * i, down * i)
            if colour == "other":
                gap = True
                continue
            if not stretches or colour != stretches[-1]:
                stretches.append(colour)
            elif gap:
                stretches += ["gap", colour]
            gap = False
        return stretches


@pytest.fixture
def finder() -> type[Finder]:
    return Finder
