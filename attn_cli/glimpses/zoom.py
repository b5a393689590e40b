"""A retina whose magnification is any number: k patches of g × g cells, each cell the exact mean of what it covers.

Mnih et al. 2014 (arXiv 1406.6247), section 5: the network may "control the scale at which the retina samples the
image". The magnification is the side of a cell of the finest patch in pixels of the image; patch s has cells 2^s times
as wide, as in retina.py, whose patches these are at magnification 1 (of an even width, around a whole pixel).

Why it looks like this. The sum over a rectangle is a difference of four entries of a table of sums over everything
above and to the left. A pixel is one grey level all over its square, so between the table's entries that sum is
bilinear: with corners anywhere, a cell costs the same however large it or the image is, and nothing aliases. Outside
the image is background, which is taken off before and added after; there every sum is that at the edge.

Legend: B images, R rows (row m·B + b looks at image b), C channels, H × W image, k scales, g cells a side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_cli.glimpses.retina import Canvas


@dataclass(frozen=True)
class Zoom:
    """`size` is g, `scales` is k, `background` the pixel value that a data set calls empty (0…255)."""

    size: int
    scales: int
    channels: int
    background: int = 0

    @property
    def features(self) -> int:
        """Numbers that one glimpse delivers: k·C·g·g."""
        return self.scales * self.channels * self.size**2

    def frame(self, images_BCHW: Tensor) -> Canvas:
        """The table of sums, float64 (B, C, H + 1, W + 1), exact; uint8 in, once per batch."""
        height, width = images_BCHW.shape[-2:]
        edged = F.pad(images_BCHW, (1, 0, 1, 0), value=self.background)  # the first row and column sum to nothing
        sums = (edged.long() - self.background).cumsum(-1).cumsum(-2)
        return Canvas(sums.double(), height, width)

    def edges(self, location_R: Tensor, cells_Rk: Tensor, size: int) -> Tensor:
        """Where the cells begin and end along an axis of `size` pixels: float64 (R, k, g + 1)."""
        number = torch.arange(self.size + 1, device=cells_Rk.device) - self.size / 2
        return ((location_R.double() + 1) * (size / 2))[:, None, None] + cells_Rk[..., None] * number

    def cells(self, magnification_R: Tensor) -> Tensor:
        """Their side in pixels of the image, finest patch first: float64 (R, k)."""
        widths = 2.0 ** torch.arange(self.scales, device=magnification_R.device, dtype=torch.float64)
        return magnification_R.double()[:, None] * widths

    def look(self, canvas: Canvas, locations_R2: Tensor, magnification_R: Tensor) -> Tensor:
        """Glimpses at locations in [-1, 1]² → (R, k, C, g, g) in [0, 1], finest patch first."""
        B, C, high, wide = canvas.pixels.shape
        R, cells_Rk = len(locations_R2), self.cells(magnification_R)
        found = []
        for axis, size in enumerate((canvas.width, canvas.height)):
            at = self.edges(locations_R2[:, axis], cells_Rk, size).clamp(0, size)
            before = at.long().clamp(0, size - 1)  # a NaN reads no memory outside
            found.append((before, at - before))
        (x, right), (y, below) = found
        plane = (torch.arange(B * C, device=x.device) * (high * wide)).view(B, C).repeat(R // B, 1)
        first = plane[:, None, :, None, None] + y[:, :, None, :, None] * wide + x[:, :, None, None, :]
        table, right, below = canvas.pixels.view(-1), right[:, :, None, None, :], below[:, :, None, :, None]

        def entries(step: int) -> Tensor:
            return table.index_select(0, (first + step).view(-1)).view(first.shape)  # indexing is ten times slower

        upper, lower = (torch.lerp(entries(step), entries(step + 1), right).diff(dim=-1) for step in (0, wide))
        sums = torch.lerp(upper, lower, below).diff(dim=-2)  # (R, k, C, g, g)
        means = sums / cells_Rk.square()[:, :, None, None, None] + self.background
        return (means * (1 / 255)).float()

    def boxes(self, locations_R2: Tensor, magnification_R: Tensor, height: int, width: int) -> Tensor:
        """What each patch covers: float64 (R, k, 4) as x0, y0, x1, y1 in pixels of the image."""
        cells_Rk = self.cells(magnification_R)
        x, y = (self.edges(locations_R2[:, axis], cells_Rk, size) for axis, size in enumerate((width, height)))
        return torch.stack([x[..., 0], y[..., 0], x[..., -1], y[..., -1]], -1)
