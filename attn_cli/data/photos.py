"""Photos of house numbers and birds as batches: random crops train, crops from the centre validate and test; and what
else makes a photo another one of the same thing, for training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attn_cli.config import schema
from attn_cli.data import prepared
from attn_cli.data.keys import below, permutation
from attn_cli.data.splits import DataInfo, Fixed, Order, Split
from attn_cli.devices import send
from attn_cli.errors import Refused


class Photos:
    """Photos of one size: random crops of them for training, crops from the centre for the other splits.

    The images that validate are drawn from those that train, the same ones whatever the crop and the run's seed: a
    tenth of them.
    """

    def __init__(
        self, config: schema.Svhn | schema.Cub200, source: prepared.Prepared, key: str, most: int | None = None
    ):
        """`key` names the draw of the images that validate, `most` says how many at most.

        Raises Refused if the configured sizes cannot work with these images.
        """
        pool, test = source.images["train"], source.images["test"]
        height, width = pool.shape[-2:]
        if config.height > height or config.width > width:
            raise Refused(
                f"data.height × data.width is {config.height}×{config.width}, larger than the {height}×{width} images "
                f"of {config.source}: set data.height to at most {height} and data.width to at most {width}."
            )
        if len(pool) < 2:
            raise Refused(f"{config.name} has {len(pool)} training image, and one of them must validate: add images.")
        # Viewed as (N, C, H, W); what is mapped from the file is read when it is touched.
        self.images = {
            "train": torch.from_numpy(pool).view(len(pool), -1, height, width),
            "test": torch.from_numpy(test).view(len(test), -1, height, width),
        }
        self.height, self.width = config.height, config.width
        count = max(min(len(pool) // 10, most or len(pool)), 1)
        drawn = permutation(len(pool), key, "validation")
        self._rows = {"validation": np.sort(drawn[:count]), "train": np.sort(drawn[count:][: config.train_limit])}
        rows = {**self._rows, "test": np.arange(len(test))}
        of = {"train": source.labels["train"], "validation": source.labels["train"], "test": source.labels["test"]}
        self.labels = {split: _label_rows(of[split][rows[split]]) for split in prepared.SPLITS}
        counts = {split: len(rows[split]) for split in prepared.SPLITS}
        self.info = DataInfo(
            config.name,
            self.images["train"].shape[1],
            config.height,
            config.width,
            len(source.class_names),
            source.class_names,
            config.background,
            **counts,
            length=source.labels["train"].shape[1] - 1 if source.labels["train"].ndim > 1 else 0,
        )
        self._order = Order(counts["train"])
        self._fixed = Fixed(self._fixed_split)

    def to(self, device: torch.device | str) -> Self:
        for split, images in self.images.items():
            if _fits(images, torch.device(device)):
                self.images[split] = images.to(device)
        for split in self.labels:
            self.labels[split] = self.labels[split].to(device)
        self._order.to(device)
        self._fixed.to(device)
        return self

    def steps_per_epoch(self, batch_size: int) -> int:
        return self._order.steps(batch_size)

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        own, numbers = self._order.batch(seed, epoch, step, batch_size)
        height, width = self.images["train"].shape[-2:]
        bounds = np.array([height - self.height + 1, width - self.width + 1])
        corners = below(bounds, (len(own), 2), "crop", seed, epoch, step)
        rows = send(self._rows["train"][numbers], self.images["train"].device)
        images = crops(self.images["train"], rows, corners, self.height, self.width)
        return send(images, own.device), self.labels["train"].index_select(0, own)

    def fixed(self, split: Split) -> tuple[Tensor, Tensor]:
        return self._fixed.get(split)

    def digest(self, split: Split) -> str:
        return self._fixed.digest(split)

    def _fixed_split(self, split: Split) -> tuple[Tensor, Tensor]:
        return self.part(split, *self.centre()), self.labels[split]

    def centre(self) -> tuple[int, int]:
        """Top row and left column of the crop from the centre."""
        height, width = self.images["train"].shape[-2:]
        return (height - self.height) // 2, (width - self.width) // 2

    def part(self, split: Split, top: int, left: int) -> Tensor:
        """uint8 (N, C, height, width): the same part of every image of the split, in the order of its labels."""
        images = self.images["test" if split == "test" else "train"]
        images = images[..., top : top + self.height, left : left + self.width]
        if split != "test":
            images = images.index_select(0, send(self._rows[split], images.device))
        return images.contiguous().to(self.labels[split].device)


class Svhn(Photos):
    """Photos of house numbers; labels are sequences."""

    def __init__(self, config: schema.Svhn, source: prepared.Prepared):
        super().__init__(config, source, "svhn", config.validation)


class Birds(Photos):
    """Photos of birds: a crop for training is mirrored with probability 1/2; there is a box around each bird."""

    def __init__(self, config: schema.Cub200, source: prepared.Prepared):
        super().__init__(config, source, "cub200")
        self.source = source
        self._boxes = {
            split: source.boxes["test" if split == "test" else "train"][self._rows.get(split, slice(None))]
            for split in prepared.SPLITS
        }

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        images, labels = super().train_batch(seed, epoch, step, batch_size)
        return mirrored(images, seed, epoch, step), labels

    def ten_crops(self, split: Split) -> Iterator[Tensor]:
        """Ten times uint8 (N, C, height, width): corners and centre, then their mirrors (Krizhevsky et al. 2012).

        The images of each are in the order of the split's labels; each is made when it is asked for.
        """
        height, width = self.images["train"].shape[-2:]
        bottom, right = height - self.height, width - self.width
        corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), self.centre())
        for mirrored in (False, True):
            for top, left in corners:
                images = self.part(split, top, left)
                yield images.flip(-1) if mirrored else images

    def boxes(self, split: Split) -> Tensor:
        """int64 (N, 4) left, top, right, bottom edge of the bird in the fixed images, in pixels from their corner.

        A bird that lies outside the fixed image has a box without area.
        """
        top, left = self.centre()
        boxes = edges(self._boxes[split]) - torch.tensor([left, top, left, top])
        return boxes.clamp(min=0).minimum(torch.tensor([self.width, self.height] * 2)).to(self.labels[split].device)


def edges(boxes: np.ndarray) -> Tensor:
    """int64 (N, 4) edges, right and bottom exclusive, of boxes that a prepared file keeps as first and last column and
    row.
    """
    return torch.from_numpy(boxes).long() + torch.tensor([0, 0, 1, 1])


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the images may take room on the device; else they stay where they are and batches are copied."""
    return device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2


def mirrored(images_BCHW: Tensor, *parts: int | str) -> Tensor:
    """Each image left for right with probability 1/2, drawn for the parts."""
    drawn = send(below(2, (len(images_BCHW),), "mirror", *parts), images_BCHW.device)
    return torch.where(drawn.bool()[:, None, None, None], images_BCHW.flip(-1), images_BCHW)


def shifted(images_BCHW: Tensor, most: int, background: int, *parts: int | str) -> Tensor:
    """Each image moved by −most to most pixels in y and in x, drawn for the parts, in front of the background."""
    height, width = images_BCHW.shape[-2:]
    wide = F.pad(images_BCHW, (most, most, most, most), value=background)
    corners = below(2 * most + 1, (len(wide), 2), "shift", *parts)
    return crops(wide, torch.arange(len(wide), device=wide.device), corners, height, width)


def crops(pool: Tensor, rows: Tensor, corners: np.ndarray, height: int, width: int) -> Tensor:
    """uint8 (B, C, height, width) out of the pool (N, C, H, W): of image rows[b] the part from corners[b] = (y, x).

    A part lies within a contiguous run of the flat pool, which is copied as such and then read with the pool's row
    pitch: no loop over images and no index per pixel.
    """
    channels, h, w = pool.shape[1:]
    span = (height - 1) * w + width
    runs = pool.view(-1).as_strided((pool.numel() - span + 1, span), (1, 1))
    start = send(corners[:, 0] * w + corners[:, 1], pool.device) + rows * (channels * h * w)
    start = start[:, None] + torch.arange(channels, device=pool.device) * (h * w)
    cut = runs.index_select(0, start.view(-1))
    strides = (channels * span, span, w, 1)
    return cut.as_strided((len(rows), channels, height, width), strides).contiguous()


def _label_rows(labels: np.ndarray) -> Tensor:
    """int64 (N,), or (N, L+1) with -1 after the end, of uint8 with EMPTY there."""
    wide = labels.astype(np.int64)
    if labels.ndim > 1:
        wide[labels == prepared.EMPTY] = -1
    return torch.from_numpy(wide)
