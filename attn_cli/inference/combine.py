"""A forward and a backward reader together (DRAM, section 4.3), and the box that a path of glimpses covers ("focus").

Both readers tend to say more digits than there are. k is the shorter of the two lengths that they predict; k = 0 is the
empty number. Two rules, for position i = 0 … k − 1 from the left:

- `flip`: the backward reader's first k predictions, flipped. The paper's own words; the forward reader gives k only.
- `average`: the label whose log-probability is highest in the mean of the forward reader's at i and the backward
  reader's at k − 1 − i. So both speak of the same digit (Semeniuta & Barth 2016; the other reading of "combined").

Legend: B images, S answers, K labels and the terminal class K; L = S − 1 is the longest number.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lengths(labels_BS: Tensor, terminal: int) -> Tensor:
    """Labels before the terminal class, int64 (B,); of a reader that never ended, all but one of its answers."""
    said = ((labels_BS >= 0) & (labels_BS != terminal)).sum(1)
    return said.clamp(max=labels_BS.shape[1] - 1)


def combine(
    forward_BS: Tensor, backward_BS: Tensor, forward_BSK: Tensor, backward_BSK: Tensor, rule: str = "flip"
) -> Tensor:
    """Labels from left to right (B, S), then the terminal class and -1, from what both readers said and their
    log-probabilities (B, S, K + 1). The backward reader's come from right to left.
    """
    B, S = forward_BS.shape
    terminal = forward_BSK.shape[-1] - 1
    k = torch.minimum(lengths(forward_BS, terminal), lengths(backward_BS, terminal))[:, None]  # (B, 1)
    place = torch.arange(S, device=k.device).expand(B, S)
    mirrored = (k - 1 - place).clamp(min=0)
    if rule == "flip":
        labels = backward_BS.gather(1, mirrored)
    else:
        other = backward_BSK.gather(1, mirrored[..., None].expand_as(backward_BSK))
        labels = (forward_BSK + other)[..., :terminal].argmax(-1)
    labels = torch.where(place < k, labels, -1)
    return torch.where(place == k, terminal, labels)


def looked_at_labels(used_BT: Tensor, labels_BS: Tensor, terminal: int) -> Tensor:
    """Of the glimpses that were used those that a label was read from, bool (B, T): while it decides that nothing more
    follows, a reader looks beyond the last object. Of an empty number all that were used.
    """
    said = (labels_BS >= 0) & (labels_BS != terminal)
    of_labels = used_BT & said.repeat_interleave(used_BT.shape[1] // labels_BS.shape[1], 1)
    return torch.where(of_labels.any(1, keepdim=True), of_labels, used_BT)


def focus_box(locations_BT2: Tensor, used_BT: Tensor, height: int, width: int, size: int) -> Tensor:
    """Top left corner (B, 2) as y, x in whole pixels of the size × size box for a second look.

    The box is centred on the centre of the bounding box of the path's glimpse centres, then moved as little as needed
    to lie inside the image. Only glimpses in `used` count, see `looked_at_labels`. Locations: (B, T, 2) as x, y in
    [-1, 1].
    """
    far = torch.where(used_BT[..., None], locations_BT2, torch.nan)
    low, high = far.nan_to_num(nan=2.0).amin(1), far.nan_to_num(nan=-2.0).amax(1)
    centre = (low + high) / 2  # (B, 2) as x, y
    span = torch.tensor([width, height], device=centre.device)
    corner = torch.floor((centre + 1) * span / 2 - size / 2 + 0.5)
    corner = torch.minimum(corner.clamp(min=0), (span - size).clamp(min=0).to(corner.dtype))
    return corner.long().flip(1)


def crop(images_BCHW: Tensor, corner_B2: Tensor, size: int) -> Tensor:
    """size × size crops (B, C, size, size) with top left corners (B, 2) as y, x."""
    steps = torch.arange(size, device=images_BCHW.device)
    rows = (corner_B2[:, :1] + steps)[:, None, :, None]
    columns = (corner_B2[:, 1:] + steps)[:, None, None, :]
    image = torch.arange(images_BCHW.shape[0], device=steps.device)[:, None, None, None]
    channel = torch.arange(images_BCHW.shape[1], device=steps.device)[None, :, None, None]
    return images_BCHW[image, channel, rows, columns]
