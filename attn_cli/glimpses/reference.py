"""The retina as it is usually written: image by image, patch by patch. An oracle for tests and the yardstick of
`attn bench`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_cli.glimpses.retina import Canvas, Retina


class LoopRetina(Retina):
    """The same numbers as `Retina`, one row at a time."""

    def look(self, canvas: Canvas, locations_R2: Tensor) -> Tensor:
        x, y = self.centres(locations_R2, canvas.height, canvas.width)
        B, g, s = canvas.pixels.shape[0], self.size, self.reach
        rows = []
        for row in range(locations_R2.shape[0]):
            left, top = int(x[row]), int(y[row])
            window = canvas.pixels[row % B, :, top : top + s, left : left + s].float() / 255
            patches = []
            for scale in range(self.scales):
                wide = g * 2**scale
                edge = s // 2 - wide // 2
                patches.append(F.avg_pool2d(window[:, edge : edge + wide, edge : edge + wide], 2**scale))
            rows.append(torch.stack(patches))
        return torch.stack(rows)
