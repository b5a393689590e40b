"""The region that a model chose last: how well it fits the object, and the image cut out there.

Semeniuta & Barth 2016, section IV.C: the region of the last step is cut out of the image and enlarged, for a network
that sees nothing else.

Regions and boxes are x0, y0, x1, y1 in pixels, x1 and y1 exclusive. Legend: B images, C channels, H × W, side S of what
is cut out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_cli.models.trace import Trace

LEAST = 1.0  # pixels a side of what is cut out


def last_regions(trace: Trace) -> Tensor:
    """What the last glimpse that the first path uses covers with its coarsest patch, (B, 4); it may reach beyond the
    image.
    """
    assert trace.boxes is not None
    boxes_BN4 = trace.boxes[0, :, :, -1]
    if trace.glimpses is None:
        return boxes_BN4[:, -1]
    return boxes_BN4[torch.arange(len(boxes_BN4), device=boxes_BN4.device), trace.glimpses[0] - 1]


def clipped(regions_B4: Tensor, height: int, width: int) -> Tensor:
    """The part within the image, fp32."""
    edge = torch.tensor([width, height, width, height], dtype=torch.float32, device=regions_B4.device)
    return regions_B4.float().clamp(min=0).minimum(edge)


def overlap(ours_B4: Tensor, theirs_B4: Tensor) -> Tensor:
    """Intersection over union (B,), from 0 to 1; 0 where both are without area."""
    ours, theirs = ours_B4.double(), theirs_B4.double()

    def area(region: Tensor) -> Tensor:
        return (region[:, 2:] - region[:, :2]).clamp(min=0).prod(1)

    common = area(torch.cat([torch.maximum(ours[:, :2], theirs[:, :2]), torch.minimum(ours[:, 2:], theirs[:, 2:])], 1))
    union = area(ours) + area(theirs) - common
    return torch.where(union > 0, common / union.clamp(min=1e-12), 0)


def widened(regions_B4: Tensor, height: int, width: int) -> Tensor:
    """Within the image, and on no side smaller than LEAST."""
    regions = clipped(regions_B4, height, width)
    edge = regions.new_tensor([width, height])
    first = regions[:, :2].minimum(edge - LEAST)
    return torch.cat([first, regions[:, 2:].maximum(first + LEAST)], 1)


def cut(images_BCHW: Tensor, regions_B4: Tensor, side: int) -> Tensor:
    """uint8 (B, C, S, S): each image's region, which lies within it, by bilinear interpolation between the middles of
    pixels. Beside the region its neighbours are read, at the edge of the image the last pixel. The filter does not
    average, so a region should not be larger than S.
    """
    height, width = images_BCHW.shape[-2:]
    regions = regions_B4.to(images_BCHW.device, torch.float32)
    along = (torch.arange(side, device=regions.device) + 0.5) / side
    x = regions[:, :1] + (regions[:, 2:3] - regions[:, :1]) * along  # (B, S)
    y = regions[:, 1:2] + (regions[:, 3:] - regions[:, 1:2]) * along
    x, y = x * (2 / width) - 1, y * (2 / height) - 1
    grid = torch.stack([x[:, None].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], -1)
    seen = F.grid_sample(images_BCHW.float(), grid, "bilinear", "border", align_corners=False)
    return seen.round_().clamp_(0, 255).to(torch.uint8)


def boxes_within(boxes_B4: Tensor, regions_B4: Tensor, side: int) -> Tensor:
    """int64 (B, 4): the boxes in what `cut` makes, edges rounded to the nearest pixel, ended at its edge and never
    without area. The last two are the last column and row that are covered, as prepared files have it.
    """
    boxes, regions = boxes_B4.double(), regions_B4.double()
    first, last = regions[:, :2].repeat(1, 2), regions[:, 2:].repeat(1, 2)
    edges = ((boxes - first) / (last - first) * side).round().clamp(0, side).long()
    low = edges[:, :2].clamp(max=side - 1)
    return torch.cat([low, (edges[:, 2:] - 1).maximum(low)], 1)
