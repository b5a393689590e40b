"""A person's own images and labels in one .npz or .h5 file.

Arrays `images` and `labels` (divided by the configured shares), or `train_images` and `train_labels`, with
`validation_…` (or `val_…`) and `test_…` where there are such splits. Images are uint8 (or bool) of shape (N, H, W),
(N, H, W, C) or (N, C, H, W) with C 1 or 3; where both readings fit, the last axis is the channels. Labels are
integers from 0. Nothing in the file is executed or followed elsewhere, and sizes are checked before memory is taken.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from attn_cli.config.schema import Arrays
from attn_cli.data import hdf5
from attn_cli.data.sources import own
from attn_cli.errors import Refused, nearest
from attn_cli.files import expanded, kind_of

PREFIXES = {"train_": "train", "validation_": "validation", "val_": "validation", "test_": "test"}
MAX_CLASSES = 10_000


def load(config: Arrays) -> own.Own:
    """All images and labels; raises Refused naming the file and the array."""
    path = expanded(config.path, "data.path")
    readers = {".npz": _read_npz, ".h5": _read_h5, ".hdf5": _read_h5}
    if path.suffix.lower() not in readers:
        raise Refused(f"data.path={config.path} must be an .npz or .h5 file.")
    if kind_of(path, "data.path") != "file":
        raise Refused(f"data.path={config.path} is not a file: give the .npz or .h5 with images and labels.")
    size = own.target_size(config)
    try:
        raw = readers[path.suffix.lower()](path)
    except Refused:
        raise
    except Exception as error:  # zipfile, zlib and h5py raise nearly every type for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise Refused(f"{path} cannot be used ({reason}): write it again with plain uint8 arrays.") from error
    images = {split: _images(f"{path}: {name}", array) for split, (name, array, _, _) in raw.items()}
    labels = {split: _labels(path, *four) for split, four in raw.items()}
    _check_alike(path, {raw[split][0]: array for split, array in images.items()}, config.grey is None, size is None)
    channels = images["train"].shape[-1] if config.grey is None else 1 if config.grey else 3
    final = {split: _final(str(path), array, channels, size) for split, array in images.items()}
    classes = 1 + max((int(array.max()) for array in labels.values() if array.size), default=-1)
    return own.Own(*own.complete(final, labels, config), tuple(map(str, range(classes))))


Raw = dict[str, tuple[str, np.ndarray, str, np.ndarray]]  # split → name and array of images, of labels


def _chosen(path: Path, present: list[str]) -> dict[str, str]:
    """split → prefix of its array names; raises Refused if what is there makes no data set."""
    prefixes = {"": "train"} if "images" in present else {}
    for prefix, split in PREFIXES.items():
        if f"{prefix}images" in present:
            if split in prefixes.values():
                raise Refused(f"{path} holds {split} images under two names: keep one of {', '.join(sorted(present))}.")
            prefixes[prefix] = split
    if "train" not in prefixes.values():
        raise Refused(f"{path} has no array 'images' or 'train_images'; it holds {', '.join(present) or 'nothing'}.")
    for prefix in prefixes:
        if f"{prefix}labels" not in present:
            raise Refused(f"{path} has {prefix}images but no {prefix}labels.{nearest(f'{prefix}labels', present)}")
    return {split: prefix for prefix, split in prefixes.items()}


def _collect(path: Path, present: list[str], read: Callable[[str, tuple[int, ...], int], np.ndarray]) -> Raw:
    raw: Raw = {}
    left = own.MAX_BYTES
    for split, prefix in _chosen(path, present).items():
        labels = read(f"{prefix}labels", (1,), left)
        images = read(f"{prefix}images", (3, 4), left)
        left -= labels.nbytes + images.nbytes
        raw[split] = (f"{prefix}images", images, f"{prefix}labels", labels)
    return raw


def _read_h5(path: Path) -> Raw:
    with hdf5.open_hdf5(path) as file:

        def read(name: str, dims: tuple[int, ...], limit: int) -> np.ndarray:
            return hdf5.read_plain(file, name, dims=dims, limit=limit)

        return _collect(path, list(file), read)


def _read_npz(path: Path) -> Raw:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

        def read(name: str, dims: tuple[int, ...], limit: int) -> np.ndarray:
            return _read_npy(archive, members[name], name, dims, limit)

        return _collect(path, list(members), read)


def _read_npy(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, dims: tuple[int, ...], limit: int
) -> np.ndarray:
    """One .npy member; its header and sizes are checked before its bytes are unpacked. Raises ValueError."""
    if member.file_size > limit:
        raise ValueError(f"{name} unpacks to {member.file_size:,} bytes, more than the limit of {limit:,}")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} has the unknown .npy version {version}")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if dtype.hasobject or dtype.kind not in "uifb":
            raise ValueError(f"{name} has type {dtype}, expected uint8")
        if len(shape) not in dims or any(not isinstance(n, int) or n < 0 for n in shape):
            raise ValueError(f"{name} has shape {shape}, expected {' or '.join(map(str, dims))} dimensions")
        claimed, stored = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if claimed != stored:
            raise ValueError(f"{name} claims shape {shape} = {claimed:,} bytes and stores {stored:,}")
        payload, done = np.empty(stored, np.uint8), 0
        while done < stored:
            got = cast(io.BufferedIOBase, file).readinto(payload[done:].data)
            if not got:
                raise ValueError(f"{name} is cut: {done:,} of {stored:,} bytes")
            done += got
    return payload.view(dtype).reshape(shape, order="F" if fortran else "C")


def _images(name: str, array: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, C), channels last."""
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    if array.dtype != np.uint8:
        raise Refused(f"{name} has type {array.dtype}: convert it to uint8, 0 to 255.")
    if array.ndim == 3:
        array = array[..., None]
    elif array.shape[-1] not in (1, 3):
        if array.shape[1] not in (1, 3):
            raise Refused(f"{name} has shape {array.shape}: one of the axes 1 and 3 must be 1 or 3 channels.")
        array = array.transpose(0, 2, 3, 1)
    own.check_size(name, *array.shape[1:3])
    return array


def _check_alike(path: Path, images: dict[str, np.ndarray], same_channels: bool, same_size: bool) -> None:
    """Raises Refused, naming both, if the splits differ in what must be the same."""
    (first, reference), *others = images.items()
    for name, array in others:
        if same_channels and array.shape[-1] != reference.shape[-1]:
            raise Refused(
                f"{path}: {name} has {array.shape[-1]} channel(s) and {first} {reference.shape[-1]}: "
                "set data.grey to true or false to make them alike."
            )
        if same_size and array.shape[1:3] != reference.shape[1:3]:
            here, there = ("×".join(map(str, a.shape[1:3])) for a in (array, reference))
            raise Refused(
                f"{path}: {name} are {here} pixels and {first} {there}: "
                "set data.height and data.width to resize all images."
            )


def _labels(path: Path, images_name: str, images: np.ndarray, name: str, labels: np.ndarray) -> np.ndarray:
    """int64 (N,) in [0, MAX_CLASSES)."""
    if len(images) != len(labels):
        raise Refused(f"{path} has {len(images):,} {images_name} and {len(labels):,} {name}: they must be as many.")
    if labels.dtype.kind not in "ui":
        raise Refused(f"{path}: {name} has type {labels.dtype}: labels must be integers from 0.")
    wrong = np.flatnonzero((labels < 0) | (labels >= MAX_CLASSES))
    if len(wrong):
        raise Refused(
            f"{path}: {name}[{wrong[0]}] is {labels[wrong[0]]}, labels must lie between 0 and {MAX_CLASSES - 1}."
        )
    return labels.astype(np.int64)


def _final(path: str, array: np.ndarray, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """uint8 (N, C, H, W), contiguous."""
    count, height, width = array.shape[:3]
    if size is not None and size != (height, width):
        height, width = size
        own.check_bytes(path, count, height, width, channels)
        empty = np.empty((0, height, width, array.shape[-1]), np.uint8)
        array = np.stack([own.resized(image, size) for image in array]) if count else empty
    own.check_bytes(path, count, height, width, channels)
    return np.ascontiguousarray(own.with_channels(array, channels).transpose(0, 3, 1, 2))
