"""Digits that are turned, sheared and resized a little in training, for a whole batch at once, on their device.

No paper does this; with `data.warp=0`, the default, training digits stay as they are. Validation and test digits always
do.

1. A digit is seen through a random linear map around its middle: each of the map's four entries is that of the identity
   plus a number that is uniform within ±warp. With 0.2 turns reach about 11 degrees, sides change by a fifth.
2. Linear interpolation between pixels, black beyond the edge. Places are in 1/256 pixel, grey levels are rounded; fp32
   holds all numbers on the way exactly, so every device makes the same image.

Legend: B batch, h, w digit height and width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attn_cli.data.keys import below
from attn_cli.devices import send

ONE = 1 << 12  # an entry of 1 of a map
FINE = 256  # steps between two pixels
EDGE = 2  # black pixels around a digit: as many as two neighbours need


def warped(digits: Tensor, warp: float, *parts: int | str) -> Tensor:
    """uint8 (B, h, w) like `digits`, each through its own map, or with no warp `digits` as they are; a pure function of
    its arguments.
    """
    if not warp:
        return digits
    reach = round(warp * ONE)
    return resample(digits, below(2 * reach + 1, (len(digits), 2, 2), *parts) - reach + ONE * np.eye(2, dtype=np.int64))


def resample(digits: Tensor, maps: np.ndarray) -> Tensor:
    """uint8 (B, h, w): a pixel of the result shows what lies at its place from the middle, times the map; `maps` int64
    (B, 2, 2) on the CPU are of (y, x), in 1/4096.
    """
    b, h, w = digits.shape
    width = w + 2 * EDGE
    padded = F.pad(digits, (EDGE, EDGE + 1, EDGE, EDGE + 1)).to(torch.int32)
    both = padded[:, :, :-1] | padded[:, :, 1:] << 8
    four = both[:, :-1] | both[:, 1:] << 16  # a pixel, the one beside it, and the two below, in one number
    y, x = (torch.arange(1 - side, side, 2, device=digits.device).float() for side in (h, w))  # in half pixels
    entries = send(maps.astype(np.float32), digits.device)[..., None, None]
    pixels, shares = [], []
    for axis, side in enumerate((h, w)):
        place = entries[:, axis, 0] * y[:, None] + entries[:, axis, 1] * x + (side - 1) * ONE
        place = place.mul_(FINE / (2 * ONE)).floor_()
        pixel = (place * (1 / FINE)).floor_()
        shares.append(place.sub_(pixel * FINE))
        pixels.append(pixel.clamp_(-EDGE, side).add_(EDGE))
    index = pixels[0].mul_(width).add_(pixels[1]).long().flatten(1)
    seen = four.flatten(1).gather(1, index).view(torch.uint8).view(b, h, w, 4)  # the lowest byte first
    here, beside, under, across = seen.permute(3, 0, 1, 2).float()
    upper = beside.sub_(here).mul_(shares[1]).add_(here, alpha=FINE)
    lower = across.sub_(under).mul_(shares[1]).add_(under, alpha=FINE)
    grey = lower.sub_(upper).mul_(shares[0]).add_(upper, alpha=FINE)
    return grey.mul_(1 / FINE**2).add_(0.5).floor_().to(torch.uint8)
