"""What a data set offers to training and evaluation, and what its classes share: orders of an epoch, fixed splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from attn_cli.data.keys import permutation
from attn_cli.devices import memory, send
from attn_cli.errors import Refused

Split = str  # "validation" or "test"
P = TypeVar("P", bound="Pictures")
AT_A_TIME = 1000  # images that are hashed


@dataclass(frozen=True)
class DataInfo:
    """Image size in pixels, `background` 0 to 255 (what is outside the image), number of images per split.

    `length` is 0 for one label per image, else the largest number of objects L in an image; `classes` counts the
    classes of objects.
    """

    name: str
    channels: int
    height: int
    width: int
    classes: int
    class_names: tuple[str, ...]
    background: int
    train: int
    validation: int
    test: int
    length: int = 0  # largest number L of objects in an image that is labelled with a sequence; 0: one label an image
    frames: int = 0  # of a video, (T, C, H, W); 0: images
    game: Any = None  # the class of what is played: `classes` are its actions, labels are what games start from


class Pictures(Protocol):
    """The images of a fixed split: a tensor, or what makes those that are asked for."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def device(self) -> torch.device: ...

    def to(self, device: torch.device | str, /) -> Self: ...

    def __len__(self) -> int: ...

    def __getitem__(self, which: slice | Tensor, /) -> Tensor:
        """A slice of them, or those with the numbers (b,) that an int64 tensor on their device has."""
        ...


class Data(Protocol):
    """What training and evaluation need of a data set. Images uint8 (B, C, H, W), labels int64 (B,); videos
    (`info.frames` T > 0) are uint8 (B, T, C, H, W).

    Labels of sequences (`info.length` L > 0) are int64 (B, L+1): the classes from left to right, then K =
    `info.classes` (the end), then -1. An image of the test split with more than L objects has L classes and then K + 1,
    a class that no model has, so that every answer to it is wrong.
    """

    info: DataInfo

    def to(self, device: torch.device | str) -> Self:
        """Moves the data set to the device, in place."""
        ...

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in an epoch; one batch of everything if there are fewer images than `batch_size`."""
        ...

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """The batch of that step, on the device."""
        ...

    def fixed(self, split: Split) -> tuple[Pictures, Tensor]:
        """All images and labels of a split, the same on every machine whatever the run's seed, on the device."""
        ...

    def digest(self, split: Split) -> str:
        """sha256 of what `fixed` returns."""
        ...


class Order:
    """The order of the current epoch of each seed, on the device and on the CPU."""

    def __init__(self, count: int):
        self.count, self.device = count, torch.device("cpu")
        self.current: dict[int, tuple[int, Tensor, np.ndarray]] = {}  # seed → epoch, its order on both

    def to(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.current.clear()

    def steps(self, batch_size: int) -> int:
        """Full batches in an epoch, at least one."""
        return max(self.count // batch_size, 1)

    def batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, np.ndarray]:
        """int64 (B,), twice: the images of that step."""
        steps = self.steps(batch_size)
        if not 0 <= step < steps:
            raise IndexError(f"step {step} of an epoch of {steps} steps")
        if self.current.get(seed, (-1,))[0] != epoch:
            made = permutation(self.count, "order", seed, epoch)
            self.current[seed] = (epoch, send(made, self.device), made)
        _, order, cpu = self.current[seed]
        part = slice(step * batch_size, (step + 1) * batch_size)
        return order[part], cpu[part]


class Fixed(Generic[P]):
    """The fixed splits, made when they are first asked for."""

    def __init__(self, make: Callable[[Split], tuple[P, Tensor]]):
        self.make = make
        self.made: dict[Split, tuple[P, Tensor]] = {}
        self.digests: dict[Split, str] = {}

    def to(self, device: torch.device | str) -> None:
        self.made = {split: (images.to(device), labels.to(device)) for split, (images, labels) in self.made.items()}

    def get(self, split: Split) -> tuple[P, Tensor]:
        if split not in self.made:
            self.made[split] = self.make(split)
        return self.made[split]

    def digest(self, split: Split) -> str:
        if split not in self.digests:
            self.digests[split] = digest_of(*self.get(split))
        return self.digests[split]


def check_room(info: DataInfo, device: torch.device) -> None:
    """Raises Refused if the images that validate and test are more than the device's memory."""
    count, room = info.validation + info.test, memory(device)
    size = count * info.channels * info.height * info.width
    if size > room:
        raise Refused(
            f"The {count:,} images of {info.height}×{info.width} that validate and test take {size / 1e9:,.1f} GB and "
            f"there are {room / 1e9:,.1f} GB of memory: make data.height and data.width smaller."
        )


def digest_of(images: Pictures, labels: Tensor) -> str:
    """sha256 over shape and bytes of uint8 (N, …, H, W) and int64 (N,)."""
    digest = hashlib.sha256(f"uint8 {tuple(images.shape)} int64 {tuple(labels.shape)}\n".encode())
    for low in range(0, len(images), AT_A_TIME):
        digest.update(images[low : low + AT_A_TIME].cpu().contiguous().numpy().data)
    digest.update(labels.cpu().numpy().astype("<i8").data)
    return digest.hexdigest()
