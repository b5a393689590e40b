"""Every experiment composes, builds its model at full size and takes two training steps, on images of noise in the
shape of its data set, so that nothing is downloaded.

What the configurations say is compared with the papers in tests/config/test_conf.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attn_cli.commands import entry
from attn_cli.commands.reproducing import composed
from attn_cli.config import schema
from attn_cli.config.hydra_errors import choices
from attn_cli.data.games import Games
from attn_cli.data.pair_labels import class_names
from attn_cli.data.splits import DataInfo
from attn_cli.learning.training import make_learner

EXPERIMENTS = choices(entry.conf_folder(), "experiment")
GIVEN = {  # what a person must give
    "birds/trunk": ["data.path=IMAGES"],
    "birds/attention": ["model.trunk_from=TRUNK"],
}


def info(data: Any) -> DataInfo:
    """Shape and classes of a data set as its configuration has them."""
    classes, length, channels = 10, 0, 1
    if isinstance(data, schema.Pairs):
        classes = len(class_names(data.label))
    elif isinstance(data, schema.Sequences | schema.Svhn):
        length = 5
    elif isinstance(data, schema.Cifar10 | schema.Cub200 | schema.Folder):
        classes, channels = 200 if isinstance(data, schema.Cub200) else 10, 3
    names = tuple(map(str, range(classes)))
    frames = data.frames if isinstance(data, schema.Tracks) else 0
    return DataInfo(data.name, channels, data.height, data.width, classes, names, 0, 8, 8, 8, length, frames)


class Noise:
    """As many images as a batch has, each with a label or, of sequences, five of them and the end."""

    def __init__(self, shape: DataInfo):
        self.info = shape

    def steps_per_epoch(self, batch_size: int) -> int:
        return 2

    def batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape, random = self.info, torch.Generator().manual_seed(1)
        size = [shape.frames] * (shape.frames > 0) + [shape.channels, shape.height, shape.width]
        images = torch.randint(256, (count, *size), generator=random)
        if not shape.length:
            return images.to(torch.uint8), torch.randint(shape.classes, (count,), generator=random)
        labels = torch.randint(shape.classes, (count, shape.length + 1), generator=random)
        labels[:, -1] = shape.classes
        return images.to(torch.uint8), labels


class Play(Games):
    """As many games as a batch has."""

    def batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.train_batch(1, 0, 0, count)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps(name: str) -> None:
    """Both losses are numbers, and the optimiser has moved what it should: what the losses depend on."""
    config = composed("train", [f"experiment={name}", "trainer.compile=off", *GIVEN.get(name, [])])
    data: Any = Play(config.data) if isinstance(config.data, schema.Catch) else Noise(info(config.data))
    learner = make_learner(config, data)
    biases = {name: value for name, value in learner.named_parameters() if value.dim() == 1 and value.requires_grad}
    before = {name: value.detach().clone() for name, value in biases.items()}
    optimiser = learner.configure_optimizers()["optimizer"]
    for step in range(2):
        loss = learner.loss((*data.batch(count=2), 0, step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert loss.isfinite()
    learned = {name for name, value in biases.items() if value.grad is not None and value.grad.any()}
    assert learned and not any(torch.equal(biases[name], before[name]) for name in learned)
