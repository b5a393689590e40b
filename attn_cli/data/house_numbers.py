"""House numbers: sequences of digits in one colour on a painted front, a stand-in for SVHN that needs no download.

The layouts are those of real house numbers (`layouts`). What is painted, each drawn for every image on its own:

1. A wall of one colour with two layers of texture, a coarse and a fine one: noise stretched to cells of 3 pixels up to
   the whole image, differently in both directions, so there are stains, boards, courses of bricks and plain plaster.
2. In two of five images a plate around the number, in a colour of its own.
3. The digits in one colour, lighter or darker than what is behind them by 70 to 160 grey levels: as often the one as
   the other where both are possible.
4. Light that fades to one side, the edge of a shadow in one of three images, and noise of the camera.

As in a photograph that is enlarged, digits and plates are blurred, by as many pixels as the height of real digits in
their photographs tells. Grey images are painted with the brightness (ITU-R 601) of the colours. All pixels are integers
of 16 bits, or of 24 bits in the matrix products, so every device makes the same images.

Legend as in `sequences`; C channels, S height or width, G side of the noise.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from attn_cli.data import layouts
from attn_cli.data.keys import draws, noise
from attn_cli.data.sequences import Sequences, weights
from attn_cli.devices import send

BACKGROUND = 128  # what is outside of an image
RED, GREEN, BLUE = 77, 150, 29  # parts of 256 of the brightness
CELLS = (np.array([10, 14, 20, 28, 40, 60]), np.array([3, 4, 6, 9, 14, 60]))  # pixels; coarse and fine texture
SHIFTS = 8  # places of the noise within a cell
BLUR = 6 * layouts.UNIT  # at most


class Look:
    """How B images are painted, int64 on the CPU, from (B, NUMBERS) integers below 2^31; lengths in 1/256 pixel."""

    NUMBERS = 40

    def __init__(self, numbers: np.ndarray):
        columns = iter(numbers.T)

        def between(low: int, high: int) -> np.ndarray:
            return low + (next(columns) * (high - low + 1) >> 31)

        def several(count: int, low: int, high: int) -> np.ndarray:
            return np.stack([between(low, high) for _ in range(count)], 1)

        wall = between(30, 235)
        plated = between(0, 4) < 2
        plate = np.clip(wall + between(20, 120) * (2 * between(0, 1) - 1), 15, 240)
        behind = np.where(plated, plate, wall)
        above, below = 245 - behind, behind - 10  # how much lighter and darker digits can be
        lighter = np.where(np.minimum(above, below) < 70, above > below, between(0, 1) > 0)
        contrast = np.minimum(between(70, 160), np.where(lighter, above, below))
        digit = behind + np.where(lighter, contrast, -contrast)
        self.brightness = np.stack([wall, plate, digit], 1)  # (B, 3)
        self.tint = several(9, -30, 30).reshape(-1, 3, 3)  # red, green, blue of each
        self.plated = np.nonzero(plated)[0]  # which images have a plate
        self.plate_half = (25 + several(2, 1, 10)) * layouts.UNIT  # (B, 2) of its sides
        # For the coarse and the fine layer: (B, 2) which of the `CELLS`, (B, 2) shift, (B,) strength of 256.
        self.texture = [
            (several(2, 0, len(cells) - 1), several(2, 0, SHIFTS - 1), strongest * between(0, 255) >> 8)
            for cells, strongest in zip(CELLS, (2 * contrast // 3, contrast // 3), strict=True)
        ]
        self.fading = several(2, -30, 30)  # (B, 2) light that is lost from the middle down and right, of 256
        self.shaded = np.nonzero(between(0, 2) == 0)[0]  # which images have a shadow
        # (B, 4) y and x of the direction into the shadow, how far its edge is from the middle, light lost of 256
        self.shadow = np.concatenate([several(2, -128, 128), several(1, -1500, 1500), several(1, 30, 90)], 1)
        self.grain = 8 - between(1, 4)  # (B,) how many of the noise's 8 bits are not used

    def colours(self, grey: bool) -> np.ndarray:
        """(3, B, C): wall, plate, digits."""
        if grey:
            return self.brightness.T[:, :, None]
        tint = self.tint - (self.tint @ [RED, GREEN, BLUE] >> 8)[:, :, None]  # of the same brightness
        return np.clip(self.brightness[:, :, None] + tint, 0, 255).swapaxes(0, 1)


class HouseNumbers(Sequences):
    """House numbers from the digits of one split: `compose` makes a batch of them, with labels."""

    drawn = 72  # pixels: blur adds up to 12 on each side

    def __init__(
        self, size: tuple[int, int], random_crop: bool, digits: np.ndarray, labels: np.ndarray, grey: bool = True
    ):
        super().__init__(size, random_crop, digits, labels)
        self.grey = grey
        # For each layer and direction: weights that stretch noise to every cell, at every shift.
        counts = [max(size) // int(cells.min()) + 3 for cells in CELLS]  # the smallest cells cover the image
        self.stretch = [[stretched(cells, c, side) for side in size] for cells, c in zip(CELLS, counts, strict=True)]

    def to(self, device: torch.device | str) -> Self:
        self.stretch = [[table.to(device) for table in layer] for layer in self.stretch]
        return super().to(device)

    def compose(self, own: np.ndarray, *parts: int | str) -> tuple[Tensor, Tensor]:
        """uint8 (B, C, H, W) and int64 (B, L+1) on the device; of `own` only the number of images counts."""
        numbers = layouts.draw(self.pool, self.size, self.random_crop, len(own), *parts)
        # A pixel of the photograph, enlarged by linear interpolation, reaches about half its size into its neighbours.
        blur = np.clip((3 * numbers.pixel // 2 - layouts.UNIT) // 2, 0, BLUR)
        ink = self.draw(numbers, blur)
        return self.paint(numbers, ink, *parts), send(self.targets(numbers), ink.device)

    def paint(self, numbers: layouts.Numbers, ink: Tensor, *parts: int | str) -> Tensor:
        """uint8 (B, C, H, W) around the digits' `ink` (B, H, W)."""
        look = Look(draws((len(ink), Look.NUMBERS), *parts, "look"))
        wall, plate, digit = self._table(look.colours(self.grey))[..., None, None]  # (B, C, 1, 1) each
        image = wall + self._texture(look, *parts)[:, None]
        if len(look.plated):
            some = send(look.plated, ink.device)
            behind = image.index_select(0, some)
            behind += (plate[some] - behind).mul_(self._plate(numbers, look)[:, None]) >> 6
            image.index_copy_(0, some, behind)
        cover = (ink.to(torch.int16) + 1 >> 2)[:, None]  # 0 to 64
        image += (digit - image).mul_(cover) >> 6
        image.clamp_(0, 255)
        image -= (image * self._darkness(look)[:, None]) >> 8
        grain = send(noise(tuple(ink.shape), *parts, "grain").view(np.int8), ink.device)
        image += (grain >> self._table(look.grain).to(torch.int8)[:, None, None])[:, None]
        return image.clamp_(0, 255).to(torch.uint8)

    def _texture(self, look: Look, *parts: int | str) -> Tensor:
        """int16 (B, H, W) around 0: two layers of noise."""
        noises, columns = [], []
        for layer, (cell, shift, strength) in enumerate(look.texture):
            which = send((cell * SHIFTS + shift).T.copy(), self.ink.device)
            rows, column = (table.index_select(0, k) for table, k in zip(self.stretch[layer], which, strict=True))
            grid = noise((len(cell), column.shape[2], column.shape[2]), *parts, "texture", layer)
            down = rows @ send(grid, self.ink.device).float()  # (B, H, G)
            noises.append(down.mul_(1 / 256).round_().sub_(128).mul_(self._table(strength).float()[:, None, None]))
            columns.append(column)
        texture = torch.cat(noises, 2).mul_(1 / 256).floor_() @ torch.cat(columns, 2).transpose(1, 2)
        return texture.mul_(1 / 256).round_().to(torch.int16)

    def _plate(self, numbers: layouts.Numbers, look: Look) -> Tensor:
        """int16 (plates, H, W), 0 to 64: how much of a pixel the plate covers."""
        sides = []
        for axis, side in enumerate(self.size):
            at = np.arange(side) * layouts.UNIT + layouts.UNIT // 2
            inside = look.plate_half[look.plated, axis, None] - np.abs(at - numbers.middle[look.plated, axis, None])
            soft = np.clip(3 * numbers.pixel[look.plated, axis, None] // 2, layouts.UNIT, BLUR)
            sides.append(self._table(np.clip(4 + 8 * inside // soft, 0, 8)))
        return sides[0][:, :, None] * sides[1][:, None, :]

    def _darkness(self, look: Look) -> Tensor:
        """int16 (B, H, W), 0 to 127: light that is lost, of 256."""
        y, x = (np.arange(side) * 256 // side - 128 for side in self.size)  # -128 to 127
        down, right = ((np.abs(f) * 128 + f * at) >> 7 for f, at in zip(look.fading.T[:, :, None], (y, x), strict=True))
        dark = self._table(down)[:, :, None] + self._table(right)[:, None, :]
        if len(look.shaded):
            into_y, into_x, edge, strength = look.shadow[look.shaded].T[:, :, None]
            down, right = (into_y * y >> 3) + edge, into_x * x >> 3
            shadow = (self._table(down)[:, :, None] + self._table(right)[:, None, :]).clamp_(0, 128)
            some = send(look.shaded, self.ink.device)
            dark.index_add_(0, some, shadow.mul_(self._table(strength)[:, :, None]) >> 7)
        return dark.clamp_(max=127)

    def _table(self, values: np.ndarray) -> Tensor:
        """int16 on the device."""
        return send(values.astype(np.int16), self.ink.device)


def stretched(cells: np.ndarray, count: int, side: int) -> Tensor:
    """float32 (cells * SHIFTS, S, G): `weights` that stretch a row of `count` grey levels to cells of so many pixels.

    One cell and up to one more lie before the image.
    """
    cell, shift = (part.reshape(-1) for part in np.meshgrid(cells * layouts.UNIT, np.arange(SHIFTS), indexing="ij"))
    start = -cell - cell * shift // SHIFTS
    edges = np.stack([start, start + count * cell], 1)
    return weights(edges, np.full(len(cell), count), side, torch.empty(0, count), np.zeros(len(cell), np.int64))
