"""Batches: whole data sets as uint8 tensors on one device, every batch a pure function of (seed, epoch, step).

`open_data` turns the data section of a configuration into a `Data`. No worker processes, no per-image Python; the
order of an epoch and the random numbers of a scene come from `keys`, so a resumed run sees the same batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from attn_cli.config import registry, schema
from attn_cli.data import house_numbers, pairs, prepared, sequences
from attn_cli.data.keys import below, key, permutation
from attn_cli.data.layouts import LONGEST
from attn_cli.data.prepare import Log, prepare
from attn_cli.data.scenes import CHUNK, Geometry, fixed_scenes, misfit, scenes
from attn_cli.errors import Refused

Split = str  # "validation" or "test"
AnyPrepared = schema.Scenes | schema.Pairs | schema.Sequences | schema.Svhn


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


class Data(Protocol):
    """What training and evaluation need of a data set. Images uint8 (B, C, H, W), labels int64 (B,).

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

    def fixed(self, split: Split) -> tuple[Tensor, Tensor]:
        """All images and labels of a split, the same on every machine whatever the run's seed, on the device."""
        ...

    def digest(self, split: Split) -> str:
        """sha256 of what `fixed` returns."""
        ...


class Digits:
    """Scenes made from prepared digits: placed and cluttered on the fly for training, fixed for the other splits."""

    def __init__(self, config: schema.Scenes, source: prepared.Prepared):
        """Raises Refused if the configured sizes cannot work with these digits."""
        self.geometry = Geometry(config.height, config.width, config.pieces, config.piece_size, config.translate)
        limit = config.train_limit
        self.images = {split: torch.from_numpy(array) for split, array in source.images.items()}
        self.labels = {split: torch.from_numpy(array).long() for split, array in source.labels.items()}
        self.images["train"], self.labels["train"] = self.images["train"][:limit], self.labels["train"][:limit]
        problem = misfit(self.geometry, source.images["train"].shape[1:])
        if problem:
            raise Refused(f"{problem}.")
        counts = {split: len(labels) for split, labels in self.labels.items()}
        classes = len(source.class_names)
        self.info = DataInfo(
            config.name, 1, config.height, config.width, classes, source.class_names, background=0, **counts
        )
        self._source = source.name
        self._fixed = _Fixed(self._fixed_split)
        self._order = _Order(counts["train"])

    def to(self, device: torch.device | str) -> Self:
        for tensors in (self.images, self.labels):
            for split in tensors:
                tensors[split] = tensors[split].to(device)
        self._fixed.to(device)
        self._order.to(device)
        return self

    def steps_per_epoch(self, batch_size: int) -> int:
        return self._order.steps(batch_size)

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        own, own_cpu = self._order.batch(seed, epoch, step, batch_size)
        images = scenes(self.geometry, self.images["train"], own, own_cpu, "scene", seed, epoch, step)
        return images[:, None], self.labels["train"].index_select(0, own)

    def fixed(self, split: Split) -> tuple[Tensor, Tensor]:
        return self._fixed.get(split)

    def digest(self, split: Split) -> str:
        return self._fixed.digest(split)

    def _fixed_split(self, split: Split) -> tuple[Tensor, Tensor]:
        # The pool is the split itself: test clutter comes from test digits only.
        g = self.geometry
        name = ("fixed", self._source, split, g.height, g.width, g.pieces, g.piece_size)
        return fixed_scenes(g, self.images[split], *name)[:, None], self.labels[split]


class Composer(Protocol):
    """Makes scenes, a batch at a time, from the digits of one split."""

    def to(self, device: torch.device | str) -> Self:
        """Moves the digits to the device, in place."""
        ...

    def compose(self, own: np.ndarray, *parts: int | str) -> tuple[Tensor, Tensor]:
        """Images and labels on the device, the same on every device; `own` int64 (B,) are numbers of scenes."""
        ...


class Composed:
    """Scenes of several digits, as many as digits: made on the fly for training, fixed for the other splits."""

    def __init__(self, info: DataInfo, composers: Mapping[str, Composer], identity: tuple[int | str, ...]):
        """`identity` names what fixed scenes depend on; it keys their random numbers."""
        self.info, self._identity = info, identity
        self._composers = dict(composers)
        self._fixed = _Fixed(self._fixed_split)
        self._order = _Order(info.train)

    def to(self, device: torch.device | str) -> Self:
        for composer in self._composers.values():
            composer.to(device)
        self._fixed.to(device)
        return self

    def steps_per_epoch(self, batch_size: int) -> int:
        return self._order.steps(batch_size)

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        _, own = self._order.batch(seed, epoch, step, batch_size)
        return self._composers["train"].compose(own, "scene", seed, epoch, step)

    def fixed(self, split: Split) -> tuple[Tensor, Tensor]:
        return self._fixed.get(split)

    def digest(self, split: Split) -> str:
        return self._fixed.digest(split)

    def _fixed_split(self, split: Split) -> tuple[Tensor, Tensor]:
        count = self.info.validation if split == "validation" else self.info.test
        name = ("fixed", *self._identity, split)
        starts = range(0, count, CHUNK)
        made = [self._composers[split].compose(np.arange(s, min(s + CHUNK, count)), *name, s) for s in starts]
        return torch.cat([images for images, _ in made]), torch.cat([labels for _, labels in made])


class Images:
    """Images as they are (a person's own data): uint8 (N, C, H, W) and int64 (N,) for train, validation and test."""

    def __init__(
        self,
        name: str,
        images: Mapping[str, np.ndarray],
        labels: Mapping[str, np.ndarray],
        class_names: tuple[str, ...],
        background: int,
    ):
        """The arrays must be writable memory of nobody else, train must not be empty."""
        counts = {split: len(labels[split]) for split in prepared.SPLITS}
        self.images = {split: torch.from_numpy(images[split]) for split in prepared.SPLITS}
        self.labels = {split: torch.from_numpy(labels[split].astype(np.int64)) for split in prepared.SPLITS}
        channels, height, width = images["train"].shape[1:]
        self.info = DataInfo(name, channels, height, width, len(class_names), class_names, background, **counts)
        self._order = _Order(counts["train"])

    def to(self, device: torch.device | str) -> Self:
        for tensors in (self.images, self.labels):
            for split in tensors:
                tensors[split] = tensors[split].to(device)
        self._order.to(device)
        return self

    def steps_per_epoch(self, batch_size: int) -> int:
        return self._order.steps(batch_size)

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        own, _ = self._order.batch(seed, epoch, step, batch_size)
        return self.images["train"].index_select(0, own), self.labels["train"].index_select(0, own)

    def fixed(self, split: Split) -> tuple[Tensor, Tensor]:
        return self.images[split], self.labels[split]

    def digest(self, split: Split) -> str:
        return digest_of(*self.fixed(split))


class Svhn:
    """Photos of house numbers: random crops of them for training, crops from the centre for the other splits.

    The images that validate are drawn from those that train, the same ones whatever the crop and the run's seed.
    """

    def __init__(self, config: schema.Svhn, source: prepared.Prepared):
        """Raises Refused if the configured sizes cannot work with these images."""
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
        count = max(min(config.validation, len(pool) // 10), 1)
        drawn = permutation(len(pool), "svhn", "validation")
        self._rows = {"validation": np.sort(drawn[:count]), "train": np.sort(drawn[count:])[: config.train_limit]}
        rows = {**self._rows, "test": np.arange(len(test))}
        of = {"train": source.labels["train"], "validation": source.labels["train"], "test": source.labels["test"]}
        self.labels = {split: _label_rows(of[split][rows[split]]) for split in prepared.SPLITS}
        self._device_rows = torch.from_numpy(self._rows["train"])
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
            length=source.labels["train"].shape[1] - 1,
        )
        self._order = _Order(counts["train"])
        self._fixed = _Fixed(self._fixed_split)

    def to(self, device: torch.device | str) -> Self:
        for split, images in self.images.items():
            if _fits(images, torch.device(device)):
                self.images[split] = images.to(device)
        for split in self.labels:
            self.labels[split] = self.labels[split].to(device)
        self._device_rows = self._device_rows.to(device)
        self._order.to(device)
        self._fixed.to(device)
        return self

    def steps_per_epoch(self, batch_size: int) -> int:
        return self._order.steps(batch_size)

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        own, _ = self._order.batch(seed, epoch, step, batch_size)
        height, width = self.images["train"].shape[-2:]
        bounds = np.array([height - self.height + 1, width - self.width + 1])
        corners = below(bounds, (len(own), 2), "crop", seed, epoch, step)
        rows = self._device_rows.index_select(0, own).to(self.images["train"].device)
        images = crops(self.images["train"], rows, corners, self.height, self.width)
        return images.to(own.device), self.labels["train"].index_select(0, own)

    def fixed(self, split: Split) -> tuple[Tensor, Tensor]:
        return self._fixed.get(split)

    def digest(self, split: Split) -> str:
        return self._fixed.digest(split)

    def _fixed_split(self, split: Split) -> tuple[Tensor, Tensor]:
        pool = self.images["test" if split == "test" else "train"]
        rows = torch.from_numpy(self._rows[split]).to(pool.device) if split != "test" else None
        top, left = (pool.shape[-2] - self.height) // 2, (pool.shape[-1] - self.width) // 2
        images = pool if rows is None else pool.index_select(0, rows)
        images = images[..., top : top + self.height, left : left + self.width].contiguous()
        return images.to(self.labels[split].device), self.labels[split]


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the images may take room on the device; else they stay where they are and batches are copied."""
    return device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2


def crops(pool: Tensor, rows: Tensor, corners: np.ndarray, height: int, width: int) -> Tensor:
    """uint8 (B, C, height, width) out of the pool (N, C, H, W): of image rows[b] the part from corners[b] = (y, x).

    A part lies within a contiguous run of the flat pool, which is copied as such and then read with the pool's row
    pitch: no loop over images and no index per pixel.
    """
    channels, h, w = pool.shape[1:]
    span = (height - 1) * w + width
    runs = pool.view(-1).as_strided((pool.numel() - span + 1, span), (1, 1))
    start = torch.from_numpy(corners[:, 0] * w + corners[:, 1]).to(pool.device) + rows * (channels * h * w)
    start = start[:, None] + torch.arange(channels, device=pool.device) * (h * w)
    cut = runs.index_select(0, start.view(-1))
    strides = (channels * span, span, w, 1)
    return cut.as_strided((len(rows), channels, height, width), strides).contiguous()


def _label_rows(labels: np.ndarray) -> Tensor:
    """int64 (N, L+1) with -1 after the end, of uint8 with EMPTY there."""
    wide = labels.astype(np.int64)
    wide[labels == prepared.EMPTY] = -1
    return torch.from_numpy(wide)


class _Order:
    """The order of the current epoch, on the device and on the CPU."""

    def __init__(self, count: int):
        self.count, self.key = count, -1
        self.cpu = np.empty(0, np.int64)
        self.order = torch.from_numpy(self.cpu)

    def to(self, device: torch.device | str) -> None:
        self.order = self.order.to(device)

    def steps(self, batch_size: int) -> int:
        """Full batches in an epoch, at least one."""
        return max(self.count // batch_size, 1)

    def batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, np.ndarray]:
        """int64 (B,), twice: the images of that step."""
        steps = self.steps(batch_size)
        if not 0 <= step < steps:
            raise IndexError(f"step {step} of an epoch of {steps} steps")
        wanted = key("order", seed, epoch)
        if wanted != self.key:
            self.cpu = permutation(self.count, "order", seed, epoch)
            self.order = torch.from_numpy(self.cpu).to(self.order.device)
            self.key = wanted
        part = slice(step * batch_size, (step + 1) * batch_size)
        return self.order[part], self.cpu[part]


class _Fixed:
    """The fixed splits, made when they are first asked for."""

    def __init__(self, make: Callable[[Split], tuple[Tensor, Tensor]]):
        self.make = make
        self.made: dict[Split, tuple[Tensor, Tensor]] = {}
        self.digests: dict[Split, str] = {}

    def to(self, device: torch.device | str) -> None:
        self.made = {split: (images.to(device), labels.to(device)) for split, (images, labels) in self.made.items()}

    def get(self, split: Split) -> tuple[Tensor, Tensor]:
        if split not in self.made:
            self.made[split] = self.make(split)
        return self.made[split]

    def digest(self, split: Split) -> str:
        if split not in self.digests:
            self.digests[split] = digest_of(*self.get(split))
        return self.digests[split]


def digest_of(images: Tensor, labels: Tensor) -> str:
    """sha256 over shape and bytes of uint8 (N, C, H, W) and int64 (N,)."""
    digest = hashlib.sha256(f"uint8 {tuple(images.shape)} int64 {tuple(labels.shape)}\n".encode())
    digest.update(images.cpu().contiguous().numpy().data)
    digest.update(labels.cpu().numpy().astype("<i8").data)
    return digest.hexdigest()


def open_data(config: Any, *, log: Log = print) -> Data:
    """The data set of a configuration's data section, on the CPU; prepares what is missing first.

    Raises Refused, among others if something must be downloaded and `config.download` is false.
    """
    if isinstance(config, schema.Scenes):
        return Digits(config, _source(config, log))
    if isinstance(config, schema.Pairs):
        return _pairs(config, _source(config, log))
    if isinstance(config, schema.Sequences):
        return _sequences(config, _source(config, log))
    if isinstance(config, schema.Svhn):
        return Svhn(config, _source(config, log))
    if isinstance(config, schema.Arrays):
        from attn_cli.data.sources import arrays

        own = arrays.load(config)
        return Images(config.name, own.images, own.labels, own.class_names, config.background)
    if isinstance(config, schema.Folder):
        from attn_cli.data.sources import folder

        own = folder.load(config, log)
        return Images(config.name, own.images, own.labels, own.class_names, config.background)
    return registry.load("data", config.name)(config, log=log)


def _pairs(config: schema.Pairs, source: prepared.Prepared) -> Composed:
    """Raises Refused if the configured sizes cannot work with these digits."""
    geometry = Geometry(config.height, config.width, config.pieces, config.piece_size, translate=True)
    problem = pairs.misfit(geometry, source.images["train"].shape[1:], config.overlap)
    if problem:
        raise Refused(f"{problem}.")
    pools = _pools(config, source)
    composers = {split: pairs.Pairs(geometry, config.overlap, config.label, *pool) for split, pool in pools.items()}
    names = pairs.class_names(config.label)
    counts = {split: len(labels) for split, (_, labels) in pools.items()}
    info = DataInfo(config.name, 1, config.height, config.width, len(names), names, background=0, **counts)
    # The label is not part of the name: sums are the pairs' scenes without pieces.
    sizes = (config.height, config.width, config.pieces, config.piece_size, repr(config.overlap))
    return Composed(info, composers, ("pairs", source.name, *sizes))


def _sequences(config: schema.Sequences, source: prepared.Prepared) -> Composed:
    size, names, pools = (config.height, config.width), source.class_names, _pools(config, source)
    counts = {split: len(labels) for split, (_, labels) in pools.items()}
    composers: dict[Split, Composer]
    if isinstance(config, schema.HouseNumbers):
        composers = {s: house_numbers.HouseNumbers(size, s == "train", *p, config.grey) for s, p in pools.items()}
        channels, background, kind = 1 if config.grey else 3, house_numbers.BACKGROUND, "house number"
    else:
        composers = {s: sequences.Sequences(size, s == "train", *p) for s, p in pools.items()}
        channels, background, kind = 1, 0, "sequence"
    info = DataInfo(config.name, channels, *size, len(names), names, background, **counts, length=LONGEST)
    return Composed(info, composers, (kind, source.name, *size))


def _pools(
    config: schema.Pairs | schema.Sequences, source: prepared.Prepared
) -> dict[Split, tuple[np.ndarray, np.ndarray]]:
    """Digits and labels of each split."""
    limits = {split: config.train_limit if split == "train" else None for split in prepared.SPLITS}
    return {split: (source.images[split][:limit], source.labels[split][:limit]) for split, limit in limits.items()}


def source_name(config: AnyPrepared) -> str:
    """The name of the prepared file that the configured data set is made from."""
    return config.source + ("_rgb" if isinstance(config, schema.Svhn) and not config.grey else "")


def _source(config: AnyPrepared, log: Log) -> prepared.Prepared:
    root, name = prepared.data_root(config.root), source_name(config)
    try:
        return prepared.read(name, root)
    except FileNotFoundError:
        if name != "digits" and not config.download:
            command = prepared.rebuild_command(name, root)
            raise Refused(
                f"data={config.name} is not prepared in {root} and data.download is false: run `{command}`."
            ) from None
    prepare(name, root, log=log)
    return prepared.read(name, root)
