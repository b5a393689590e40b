"""The retina: k square patches around a location, each twice as wide as the one before, all delivered at g × g.

Mnih et al. 2014 (arXiv 1406.6247), section 4, "Retina and location encodings".

Legend: B images, R rows (one path of one image; R = M·B, row m·B + b looks at image b), C channels, H × W image,
k scales, g width of the finest patch in pixels, s = g·2^(k−1) width of the coarsest.

Why it looks like this. The coarsest patch contains all others and their pixel grids are aligned, so one s × s window is
copied per row and halved k − 1 times; the centre of each halving is the next patch. The cost of a glimpse therefore
depends on s and never on the image. The copy is an `index_select` on an overlapping view (row i of the view is the
window that starts at pixel i), which copies contiguous runs; gathering pixel by pixel is thirty times slower on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_cli.config.model_sections import WIDEST
from attn_cli.errors import Refused

# Operators of their own, so that a compiled step calls them as they are: as loops over pixels they would be far slower.
# Defined by hand: a call of `torch.library.custom_op` costs more than the copy.
library = torch.library.Library("attn", "FRAGMENT")
library.define("windows(Tensor images, Tensor first, int size) -> Tensor")
library.define("frame(Tensor images, int low, int high, int value) -> Tensor")


def windows(images: Tensor, first: Tensor, size: int) -> Tensor:
    """Copy size × size windows out of contiguous planes (…, H, W); `first`: flat offsets of their top left pixels."""
    width = images.shape[-1]
    count = images.numel() - (size - 1) * (width + 1)  # windows that lie wholly inside the buffer
    return images.as_strided((count, size, size), (1, width, 1)).index_select(0, first)


def frame(images: Tensor, low: int, high: int, value: int) -> Tensor:
    """Images (…, H, W) with a margin: `low` pixels above and to the left, `high` below and to the right."""
    return F.pad(images, (low, high, low, high), value=value)


library.impl("windows", windows, "CompositeExplicitAutograd")
library.impl("frame", frame, "CompositeExplicitAutograd")


@torch.library.register_fake("attn::windows", lib=library)
def _(images: Tensor, first: Tensor, size: int) -> Tensor:
    return images.new_empty(first.shape[0], size, size)


@torch.library.register_fake("attn::frame", lib=library)
def _(images: Tensor, low: int, high: int, value: int) -> Tensor:
    *outer, height, width = images.shape
    return images.new_empty(*outer, height + low + high, width + low + high)


# Under `torch.vmap`, for several models at once, each with its own images (P, …): one call for all of them.
def _windows_of_all(info: Any, dims: tuple[int, int, None], images: Tensor, first: Tensor, size: int) -> Any:
    planes, first = images.movedim(dims[0], 0).contiguous(), first.movedim(dims[1], 0)
    start = torch.arange(info.batch_size, device=first.device)[:, None] * planes[0].numel()
    found = torch.ops.attn.windows(planes.flatten(0, 1), (first + start).view(-1), size)
    return found.view(info.batch_size, -1, size, size), 0


def _frame_of_all(info: Any, dims: tuple[int, ...], images: Tensor, low: int, high: int, value: int) -> Any:
    return torch.ops.attn.frame(images.movedim(dims[0], 0), low, high, value), 0


torch.library.register_vmap("attn::windows", _windows_of_all, lib=library)
torch.library.register_vmap("attn::frame", _frame_of_all, lib=library)


def halve(sums: Tensor) -> Tensor:
    """Sums of 2 × 2 pixels: (R, w, w) → (R, w/2, w/2), exact; uint8 becomes int16, and that int32.

    Neighbours in a row are added as the parts of a wider number, which a CPU does for a whole vector at a time; taking
    every second element is several times slower.
    """
    if sums.dtype == torch.uint8:
        four, mask = sums.view(torch.int32), 0x00FF00FF
        pairs = (four & mask) + ((four >> 8) & mask)
        return (pairs[:, 0::2] + pairs[:, 1::2]).view(torch.int16)
    if sums.dtype == torch.int16:
        two = sums.view(torch.int32)
        pairs = (two & 0xFFFF) + (two >> 16)
        return pairs[:, 0::2] + pairs[:, 1::2]
    pairs = sums[:, :, 0::2] + sums[:, :, 1::2]
    return pairs[:, 0::2] + pairs[:, 1::2]


@dataclass(frozen=True)
class Canvas:
    """A batch of images with a margin of background, so that a window may reach outside; of `Zoom` their sums."""

    pixels: Tensor  # (B, C, H + s, W + s) uint8, contiguous; of `Zoom` as its `frame` has it
    height: int
    width: int


@dataclass(frozen=True)
class Retina:
    """`size` is g, `scales` is k, `background` the pixel value that a data set calls empty (0…255)."""

    size: int
    scales: int
    channels: int
    background: int = 0

    def __post_init__(self) -> None:
        if self.scales > 1 and self.size % 2:
            raise Refused(
                f"glimpses.size={self.size} is odd: {self.scales} scales need an even width to share a centre."
            )
        if self.reach > 2 * WIDEST:
            raise Refused(
                f"glimpses.size={self.size} with scales={self.scales} reaches over {self.reach} pixels, and images are "
                f"at most {WIDEST} wide: choose fewer scales."
            )

    @property
    def reach(self) -> int:
        """Width of the coarsest patch in pixels."""
        return self.size * 2 ** (self.scales - 1)

    @property
    def features(self) -> int:
        """Numbers that one glimpse delivers: k·C·g·g."""
        return self.scales * self.channels * self.size**2

    def frame(self, images_BCHW: Tensor) -> Canvas:
        """Add the margin; uint8 in, once per batch."""
        height, width = images_BCHW.shape[-2:]
        low, high = self.reach // 2, self.reach - self.reach // 2
        return Canvas(torch.ops.attn.frame(images_BCHW, low, high, self.background), height, width)

    def centres(self, locations_R2: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Integer pixel centres (x, y) in 0…W and 0…H of locations in [-1, 1]; pixel i covers [i, i + 1).

        NaN gives some centre in that range: whoever sums the loss finds the NaN there, and no memory is read outside.
        """
        x = torch.floor((locations_R2[:, 0] + 1) * (width / 2) + 0.5).long().clamp(0, width)
        y = torch.floor((locations_R2[:, 1] + 1) * (height / 2) + 0.5).long().clamp(0, height)
        return x, y

    def look(self, canvas: Canvas, locations_R2: Tensor) -> Tensor:
        """Glimpses at locations in [-1, 1]² → (R, k, C, g, g) in [0, 1], finest patch first."""
        B, C, high, wide = canvas.pixels.shape
        R, g, s = locations_R2.shape[0], self.size, self.reach
        x, y = self.centres(locations_R2, canvas.height, canvas.width)
        plane = torch.arange(B * C, device=x.device).view(B, C) * (high * wide)  # offset of each image's channels
        first = (plane.repeat(R // B, 1) + (y * wide + x)[:, None]).view(-1)
        sums = torch.ops.attn.windows(canvas.pixels, first, s)  # (R·C, s, s) uint8
        patches = []
        for scale in range(self.scales):
            if scale:
                sums = halve(sums)
            edge = (sums.shape[-1] - g) // 2
            patch = sums[:, edge : edge + g, edge : edge + g]
            patches.append(patch.float() * (1 / (255 * 4**scale)))
        return torch.stack([p.view(R, C, g, g) for p in patches], 1)

    def boxes(self, locations_R2: Tensor, height: int, width: int) -> Tensor:
        """What each patch covers: (R, k, 4) as x0, y0, x1, y1 in pixels of the image, x1 and y1 exclusive."""
        x, y = self.centres(locations_R2, height, width)
        rows = []
        for scale in range(self.scales):
            w = self.size * 2**scale
            rows.append(torch.stack([x - w // 2, y - w // 2, x - w // 2 + w, y - w // 2 + w], -1))
        return torch.stack(rows, 1)
