"""Batches: whole data sets as uint8 tensors on one device, every batch a pure function of (seed, epoch, step).

`open_data` turns the data section of a configuration into a `Data`. No worker processes, no per-image Python; the
order of an epoch and the random numbers of a scene come from `keys`, so a resumed run sees the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from attn_cli.config import registry, schema
from attn_cli.data import house_numbers, pair_labels, pairs, prepared, scaled, sequences, tracks
from attn_cli.data.games import Games
from attn_cli.data.layouts import LONGEST
from attn_cli.data.photos import Birds, Svhn, mirrored, shifted
from attn_cli.data.prepare import Log, prepare
from attn_cli.data.scenes import CHUNK, Geometry, fixed_boxes, fixed_layout, fixed_scenes, layout, misfit, scenes
from attn_cli.data.splits import Data, DataInfo, Fixed, Order, Pictures, Split, check_room, digest_of
from attn_cli.errors import Refused
from attn_cli.files import expanded

AnyPrepared = (
    schema.Scenes
    | schema.Tracks
    | schema.Pairs
    | schema.Scaled
    | schema.Sequences
    | schema.Svhn
    | schema.Cifar10
    | schema.Cub200
)


class Digits:
    """Scenes made from prepared digits: placed and cluttered on the fly for training, fixed for the other splits."""

    def __init__(self, config: schema.Scenes | schema.Tracks, source: prepared.Prepared):
        """Raises Refused if the configured sizes cannot work with these digits."""
        self.geometry = Geometry(config.height, config.width, config.pieces, config.piece_size, config.translate)
        self.warp, limit = config.warp, config.train_limit
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
        self._fixed = Fixed(self._fixed_split)
        self._order = Order(counts["train"])

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
        images = scenes(self.geometry, self.images["train"], own, own_cpu, self.warp, "scene", seed, epoch, step)
        return images[:, None], self.labels["train"].index_select(0, own)

    def fixed(self, split: Split) -> tuple[Pictures, Tensor]:
        return self._fixed.get(split)

    def digest(self, split: Split) -> str:
        return self._fixed.digest(split)

    def boxes(self, split: Split) -> Tensor:
        """Where the digits of `fixed` lie: int64 (n, 4), x0, y0, x1, y1 in pixels, x1 and y1 exclusive, on the CPU."""
        return fixed_boxes(self.geometry, tuple(self.images[split].shape), *self._name(split))

    def _name(self, split: Split) -> tuple[int | str, ...]:
        g = self.geometry
        return ("fixed", self._source, split, g.height, g.width, g.pieces, g.piece_size)

    def _fixed_split(self, split: Split) -> tuple[Pictures, Tensor]:
        check_room(self.info, self.images[split].device)
        # The pool is the split itself: test clutter comes from test digits only.
        return fixed_scenes(self.geometry, self.images[split], *self._name(split))[:, None], self.labels[split]


class Tracks(Digits):
    """Videos in whose first frames the digit lies as in such scenes. `boxes` has those of all frames, (n, T, 4)."""

    def __init__(self, config: schema.Tracks, source: prepared.Prepared):
        super().__init__(config, source)
        self.frames, self.speed = config.frames, config.speed
        self.info = replace(self.info, frames=config.frames)

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        own, own_cpu = self._order.batch(seed, epoch, step, batch_size)
        pool, parts = self.images["train"], ("scene", seed, epoch, step)
        n, h, w = pool.shape
        track = tracks.in_motion(layout(self.geometry, (n, h, w), own_cpu, *parts), self.speed, *parts)
        videos = tracks.render(self.geometry, pool, pool.index_select(0, own), track, self.frames)
        return videos[:, :, None], self.labels["train"].index_select(0, own)

    def boxes(self, split: Split) -> Tensor:
        n, h, w = self.images[split].shape
        return tracks.boxes(self.geometry, (h, w), self._fixed_track(split), self.frames)

    def _fixed_track(self, split: Split) -> tracks.Track:
        name = self._name(split)
        first = fixed_layout(self.geometry, tuple(self.images[split].shape), *name)
        return tracks.in_motion(first, self.speed, *name)

    def _fixed_split(self, split: Split) -> tuple[Pictures, Tensor]:
        videos = tracks.Videos(self.geometry, self.images[split], self._fixed_track(split), self.frames)
        return videos, self.labels[split]


class Composer(Protocol):
    """Makes scenes, a batch at a time, from the digits of one split."""

    def to(self, device: torch.device | str) -> Self:
        """Moves the digits to the device, in place."""
        ...

    def compose(self, own: np.ndarray, *parts: int | str) -> tuple[Tensor, Tensor]:
        """Images and labels on the device, the same on every device; `own` int64 (B,) are numbers of scenes."""
        ...


class Composed:
    """Scenes that a composer makes, as many as digits: on the fly for training, fixed for the other splits."""

    _composers: Mapping[str, Composer]

    def __init__(self, info: DataInfo, composers: Mapping[str, Composer], identity: tuple[int | str, ...]):
        """`identity` names what fixed scenes depend on; it keys their random numbers."""
        self.info, self._identity, self._device = info, identity, torch.device("cpu")
        self._composers = dict(composers)
        self._fixed = Fixed(self._fixed_split)
        self._order = Order(info.train)

    def to(self, device: torch.device | str) -> Self:
        self._device = torch.device(device)
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

    def _chunks(self, split: Split) -> list[tuple[Any, ...]]:
        """What the composer makes the fixed scenes of, in order: arguments for it."""
        count = self.info.validation if split == "validation" else self.info.test
        name = ("fixed", *self._identity, split)
        return [(np.arange(s, min(s + CHUNK, count)), *name, s) for s in range(0, count, CHUNK)]

    def _fixed_split(self, split: Split) -> tuple[Tensor, Tensor]:
        check_room(self.info, self._device)
        made = [self._composers[split].compose(*chunk) for chunk in self._chunks(split)]
        return torch.cat([images for images, _ in made]), torch.cat([labels for _, labels in made])


class ScaledDigits(Composed):
    """Scenes of one digit of a random size."""

    _composers: Mapping[str, scaled.Scaled]

    def boxes(self, split: Split) -> Tensor:
        """Where the digits of `fixed` lie: int64 (n, 4), x0, y0, x1, y1 in pixels, x1 and y1 exclusive, on the CPU."""
        return torch.cat([self._composers[split].boxes(*chunk) for chunk in self._chunks(split)])


class Images:
    """Whole images (a person's own, CIFAR-10): uint8 (N, C, H, W), int64 (N,) for train, validation and test. Those
    for training are moved by up to `shift` pixels, and with `mirror` mirrored with probability 1/2.
    """

    def __init__(
        self,
        name: str,
        images: Mapping[str, np.ndarray],
        labels: Mapping[str, np.ndarray],
        class_names: tuple[str, ...],
        background: int,
        shift: int = 0,
        mirror: bool = False,
    ):
        """The arrays must be writable memory of nobody else, train must not be empty. Raises Refused for a shift out of
        the image.
        """
        counts = {split: len(labels[split]) for split in prepared.SPLITS}
        self.images = {split: torch.from_numpy(images[split]) for split in prepared.SPLITS}
        self.labels = {split: torch.from_numpy(labels[split].astype(np.int64)) for split in prepared.SPLITS}
        channels, height, width = images["train"].shape[1:]
        if shift >= min(height, width):
            raise Refused(
                f"data.shift={shift} moves images of {height}×{width} out of sight: at most {min(height, width) - 1}."
            )
        self.shift, self.mirror = shift, mirror
        self.info = DataInfo(name, channels, height, width, len(class_names), class_names, background, **counts)
        self._order = Order(counts["train"])

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
        images = self.images["train"].index_select(0, own)
        if self.shift:
            images = shifted(images, self.shift, self.info.background, seed, epoch, step)
        if self.mirror:
            images = mirrored(images, seed, epoch, step)
        return images, self.labels["train"].index_select(0, own)

    def fixed(self, split: Split) -> tuple[Tensor, Tensor]:
        return self.images[split], self.labels[split]

    def digest(self, split: Split) -> str:
        return digest_of(*self.fixed(split))


def open_data(config: Any, *, log: Log = print) -> Data:
    """The data set of a configuration's data section, on the CPU; prepares what is missing first.

    Raises Refused, among others if something must be downloaded and `config.download` is false.
    """
    if isinstance(config, schema.Scenes):
        return Digits(config, _source(config, log))
    if isinstance(config, schema.Tracks):
        return Tracks(config, _source(config, log))
    if isinstance(config, schema.Pairs):
        return _pairs(config, _source(config, log))
    if isinstance(config, schema.Scaled):
        return _scaled(config, _source(config, log))
    if isinstance(config, schema.Sequences):
        return _sequences(config, _source(config, log))
    if isinstance(config, schema.Svhn):
        return Svhn(config, _source(config, log))
    if isinstance(config, schema.Cub200):
        if config.path is None:
            return Birds(config, _source(config, log))
        path = expanded(config.path, "data.path")
        if path.suffix == ".h5":
            return Birds(config, prepared.read_file("cub200", path))
        from attn_cli.data.sources import cub200

        return Birds(config, cub200.load(path, log))
    if isinstance(config, schema.Catch):
        return Games(config)
    if isinstance(config, schema.Cifar10):
        source = _source(config, log)
        pools = _pools(config, source)
        images, labels = ({split: pool[i] for split, pool in pools.items()} for i in (0, 1))
        return _images(config, images, labels, source.class_names)
    if isinstance(config, schema.Arrays):
        from attn_cli.data.sources import arrays

        own = arrays.load(config)
        return _images(config, own.images, own.labels, own.class_names)
    if isinstance(config, schema.Folder):
        from attn_cli.data.sources import folder

        own = folder.load(config, log)
        return _images(config, own.images, own.labels, own.class_names)
    return registry.load("data", config.name)(config, log=log)


def _images(
    config: schema.Cifar10 | schema.Folder,
    images: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    class_names: tuple[str, ...],
) -> Images:
    return Images(config.name, images, labels, class_names, config.background, config.shift, config.mirror)


def _pairs(config: schema.Pairs, source: prepared.Prepared) -> Composed:
    """Raises Refused if the configured sizes cannot work with these digits."""
    geometry = Geometry(config.height, config.width, config.pieces, config.piece_size, translate=True)
    problem = pairs.misfit(geometry, source.images["train"].shape[1:], config.overlap)
    if problem:
        raise Refused(f"{problem}.")
    pools = _pools(config, source)
    composers = {
        split: pairs.Pairs(geometry, config.overlap, config.label, config.warp if split == "train" else 0.0, *pool)
        for split, pool in pools.items()
    }
    names = pair_labels.class_names(config.label)
    counts = {split: len(labels) for split, (_, labels) in pools.items()}
    size, length = (config.height, config.width), pair_labels.length(config.label)
    info = DataInfo(config.name, 1, *size, len(names), names, background=0, **counts, length=length)
    # The label is not part of the name: sums are the pairs' scenes without pieces.
    sizes = (*size, config.pieces, config.piece_size, repr(config.overlap))
    return Composed(info, composers, ("pairs", source.name, *sizes))


def _scaled(config: schema.Scaled, source: prepared.Prepared) -> ScaledDigits:
    """Raises Refused if the configured sizes cannot work."""
    size, sides = (config.height, config.width), (config.smallest, config.largest)
    problem = scaled.misfit(size, sides)
    if problem:
        raise Refused(f"{problem}.")
    pools, names = _pools(config, source), source.class_names
    composers = {split: scaled.Scaled(size, sides, *pool) for split, pool in pools.items()}
    counts = {split: len(labels) for split, (_, labels) in pools.items()}
    info = DataInfo(config.name, 1, *size, len(names), names, background=0, **counts)
    return ScaledDigits(info, composers, ("scaled", source.name, *size, *sides))


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
    config: schema.Pairs | schema.Scaled | schema.Sequences | schema.Cifar10, source: prepared.Prepared
) -> dict[Split, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each split."""
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
