"""Games as a data set: fresh ones in every batch of training, fixed ones to validate and test on.

A batch is (first screens uint8 (B, 1, H, W), starts int64 (B, …)): what other data sets call labels is all that a game
depends on besides the player, see attn_cli/games.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from attn_cli.config import schema
from attn_cli.data.splits import DataInfo, Fixed, Split
from attn_cli.devices import send
from attn_cli.games.catch import Catch, draw_starts

VALIDATION, TEST = 2_000, 10_000  # games


class Games:
    """Games of Catch. An epoch has a fixed number of them, none of which is ever played again."""

    def __init__(self, config: schema.Catch):
        counts = {"train": config.games, "validation": VALIDATION, "test": TEST}
        names = Catch.actions
        self.info = DataInfo(
            config.name, 1, Catch.side, Catch.side, len(names), names, background=0, **counts, game=Catch
        )
        self._device = torch.device("cpu")
        self._fixed = Fixed(self._fixed_split)

    def to(self, device: torch.device | str) -> Self:
        self._device = torch.device(device)
        self._fixed.to(device)
        return self

    def steps_per_epoch(self, batch_size: int) -> int:
        return max(self.info.train // batch_size, 1)

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        return self._batch(draw_starts(min(batch_size, self.info.train), "catch", seed, epoch, step))

    def fixed(self, split: Split) -> tuple[Tensor, Tensor]:
        return self._fixed.get(split)

    def digest(self, split: Split) -> str:
        return self._fixed.digest(split)

    def _fixed_split(self, split: Split) -> tuple[Tensor, Tensor]:
        return self._batch(draw_starts(VALIDATION if split == "validation" else TEST, "catch", "fixed", split))

    def _batch(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        starts = send(starts, self._device)
        return Catch.begin(starts).screens(), starts
