"""What Lightning iterates over: batches as pure functions of (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from attn_cli.errors import Refused


class TrainingData(Protocol):
    """What `EpochBatches` needs of a data set; see attn_cli/data/splits.py."""

    def steps_per_epoch(self, batch_size: int) -> int: ...

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]: ...


class EpochBatches:
    """Training batches (images, labels, epoch, global step), from wherever training stands.

    Its only state is `position`, the number of batches it has given out since training began; one batch is one
    optimiser step, so at a step boundary it equals Lightning's global_step. `len` is given, so Lightning fetches no
    batch ahead. The fourth item counts on over epochs; `Data.train_batch` gets the step within its epoch.

    With `world_size` > 1 each process makes the whole batch and takes every world_size-th image of it, from `rank` on:
    the run is that of one process with the same batch size. `limit` shortens an epoch to so many steps.
    """

    def __init__(
        self,
        data: TrainingData,
        seed: int,
        batch_size: int,
        limit: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.data, self.seed, self.batch_size = data, seed, batch_size
        steps = data.steps_per_epoch(batch_size)
        self.steps = steps if limit is None else min(steps, limit)
        self.rank, self.world_size = rank, world_size
        self.position = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int, int]]:
        """The rest of the epoch in which `position` lies when the first batch is asked for."""
        epoch, first = divmod(self.position, self.steps)
        for step in range(first, self.steps):
            images, labels = self.data.train_batch(self.seed, epoch, step, self.batch_size)
            if self.world_size > 1:
                images, labels = images[self.rank :: self.world_size], labels[self.rank :: self.world_size]
            self.position = epoch * self.steps + step + 1
            yield images, labels, epoch, epoch * self.steps + step

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "seed": self.seed, "batch_size": self.batch_size, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where a checkpoint stood; raises Refused if it counted other batches than these."""
        own = self.state_dict()
        names = {"seed": "seed", "batch_size": "trainer.batch_size", "steps": "the number of steps an epoch"}
        for key, name in names.items():
            if state.get(key) != own[key]:
                raise Refused(
                    f"The checkpoint was made with {name} {state.get(key)} and this run has {own[key]}: "
                    "continue with the configuration of the run, or start a new one."
                )
        position = state.get("position")
        if type(position) is not int or position < 0:
            raise Refused(f"The checkpoint has the impossible position {position!r} in the training batches.")
        self.position = position
