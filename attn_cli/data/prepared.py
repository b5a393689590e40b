"""One verified .h5 per source: fixed layout, a sha256 over everything in it, checked before anything is used.

Layout: for each split of train, validation, test the data sets `<split>_images` uint8 (N, H, W) or (N, C, H, W) and
`<split>_labels` uint8 (N,) or (N, L+1), of some sources also `<split>_boxes` uint8 (N, 4), stored contiguously and
uncompressed, and one attribute `about`: JSON bytes with format, name, origin, class_names and sha256. Which of these a
source has is its `Form`. Nothing else is read, and nothing is read before its type, shape and storage are checked. What
is large is mapped when it is read, so no data set needs memory for all its images; `attn_cli.data.writing` makes such
files.

Some sources have no split of their own for validation: it is drawn from train when the data is opened. Labels of
sequences (N, L+1) are the classes from left to right, then K (the end), then EMPTY; see `DataInfo.length`. Boxes are
the first and last column and row that an object covers: left, top, right, bottom, all within the image.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from attn_cli.data.hdf5 import open_hdf5, plain
from attn_cli.errors import Refused
from attn_cli.files import expanded, kind_of

FORMAT = 1
SPLITS = ("train", "validation", "test")
EMPTY = 255  # in labels of sequences: nothing more follows
MAPPED = 256 << 20  # bytes; larger files are mapped into memory instead of read
BLOCK = 16 << 20  # bytes read at a time

SEQUENCES = ("svhn", "svhn_110", "svhn_128", "svhn_rgb", "svhn_110_rgb", "svhn_128_rgb")  # sources with such labels


@dataclass(frozen=True)
class Form:
    """Which arrays a prepared file has: for each split those of `dims`, kind → how many dimensions it may have."""

    splits: tuple[str, ...]
    dims: Mapping[str, tuple[int, ...]]


NUMBERS = Form(("train", "test"), {"images": (3, 4), "labels": (2,)})
FORMS = {
    "mnist": Form(SPLITS, {"images": (3,), "labels": (1,)}),
    "digits": Form(SPLITS, {"images": (3,), "labels": (1,)}),
    "cifar10": Form(SPLITS, {"images": (4,), "labels": (1,)}),
    "cub200": Form(("train", "test"), {"images": (4,), "labels": (1,), "boxes": (2,)}),
    **dict.fromkeys(SEQUENCES, NUMBERS),
}

_verified: set[tuple[str, int, int, int]] = set()  # files whose hash was checked by this process


@dataclass(frozen=True)
class Prepared:
    """Images, labels and boxes of one source, per split, all uint8 and shaped as the module's head says."""

    name: str
    origin: str  # what the arrays were made from, and with what
    class_names: tuple[str, ...]
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    boxes: dict[str, np.ndarray] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """Under the names that they have in the file, in its order."""
        kinds = {"images": self.images, "labels": self.labels, "boxes": self.boxes}
        return {f"{split}_{kind}": kinds[kind][split] for split in SPLITS for kind in kinds if split in kinds[kind]}

    def content_sha256(self) -> str:
        """Over name, dtype, shape and bytes of every array, and nothing else."""
        blocks = {name: (array.shape, [array]) for name, array in self.arrays().items()}
        return content_sha256_of(blocks)

    def sha256(self) -> str:
        """Over everything in the file: format, name, origin, class names and the arrays."""
        return sha256_of(self.name, self.origin, self.class_names, self.content_sha256())


@dataclass(frozen=True)
class Stored:
    """One array in a prepared file, unread."""

    path: Path
    offset: int  # bytes
    shape: tuple[int, ...]

    def blocks(self) -> Iterator[np.ndarray]:
        """All its bytes in order, flat, without holding more than one block."""
        with open(self.path, "rb") as file:
            yield from blocks_of(file, self.offset, math.prod(self.shape))

    def rows(self) -> Iterator[np.ndarray]:
        """All its rows in order, some at a time."""
        row = math.prod(self.shape[1:])
        step = max(BLOCK // row, 1)
        with open(self.path, "rb") as file:
            for first in range(0, self.shape[0], step):
                count = min(step, self.shape[0] - first)
                block = np.empty(count * row, np.uint8)
                file.seek(self.offset + first * row)
                if file.readinto(block.data) < len(block):
                    raise ValueError("it ends too early")
                yield block.reshape(count, *self.shape[1:])

    def array(self, mapped: bool) -> np.ndarray:
        """The whole array; `mapped`: pages are read when they are touched, and what is written stays in memory."""
        if mapped:
            return np.memmap(self.path, np.uint8, "c", self.offset, self.shape)
        whole = np.fromfile(self.path, np.uint8, math.prod(self.shape), offset=self.offset)
        return whole.reshape(self.shape)


@dataclass(frozen=True)
class Contents:
    """What a prepared file says of itself, checked for form but not for its hash."""

    name: str
    origin: str
    class_names: tuple[str, ...]
    sha256: str
    stored: dict[str, Stored]

    def verify(self) -> None:
        """Reads the file; raises ValueError if its hash is another."""
        content = content_sha256_of({name: (stored.shape, stored.blocks()) for name, stored in self.stored.items()})
        actual = sha256_of(self.name, self.origin, self.class_names, content)
        if actual != self.sha256:
            raise ValueError(f"its sha256 is {actual}, recorded was {self.sha256}")


def sha256_of(name: str, origin: str, class_names: Sequence[str], content: str) -> str:
    return hashlib.sha256(json.dumps([FORMAT, name, origin, list(class_names), content]).encode()).hexdigest()


def content_sha256_of(arrays: Mapping[str, tuple[Sequence[int], Any]]) -> str:
    """`arrays`: name → shape, and the bytes as uint8 arrays in order."""
    digest = hashlib.sha256()
    for name, (shape, blocks) in arrays.items():
        digest.update(f"{name} uint8 {tuple(shape)}\n".encode())
        for block in blocks:
            digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def blocks_of(file: BinaryIO, offset: int, size: int) -> Iterator[np.ndarray]:
    file.seek(offset)
    buffer = np.empty(min(size, BLOCK), np.uint8)
    while size:
        got = file.readinto(buffer[: min(size, BLOCK)].data)  # type: ignore[attr-defined]
        if not got:
            raise ValueError(f"it ends {size:,} bytes too early")
        size -= got
        yield buffer[:got]


def data_root(root: str | None) -> Path:
    """Where prepared data lies: the config value, else $ATTN_DATA, else the user cache folder of `attn`."""
    if root or os.environ.get("ATTN_DATA"):
        given = (root, "data.root") if root else (os.environ["ATTN_DATA"], "ATTN_DATA")
        return expanded(*given).absolute()
    import pooch

    return Path(pooch.os_cache("attn"))


def path_of(name: str, root: Path) -> Path:
    return root / f"{name}.h5"


def rebuild_command(name: str, root: Path) -> str:
    what = name.removesuffix("_rgb") + " --rgb" if name.endswith("_rgb") else name
    return f"attn data prepare {what}" + ("" if root == data_root(None) else f" --root {shlex.quote(str(root))}")


def read(name: str, root: Path, *, verify: bool = True) -> Prepared:
    """The verified arrays. Needs no lock and no right to write; the hash is checked once per process and file.

    Without `verify` everything but the hash is checked. Raises Refused, naming the file and the command that rebuilds
    it, for a file that is damaged, was forged, or holds something else; FileNotFoundError if there is none.
    """
    path = path_of(name, root)
    check_file(path)
    with _damage_named(path, "data.root", lambda: f"run `{rebuild_command(name, root)}` to rebuild it"):
        return _read(name, path, verify)


def check_file(path: Path) -> None:
    """Refuse a folder in the place of a prepared file."""
    if kind_of(path, "data.root") == "folder":
        raise Refused(f"{path} is a folder in the place of a prepared file: move it away.")


def read_file(name: str, path: Path) -> Prepared:
    """Likewise from a file with any name, which `attn attend` made. Raises Refused, also if there is none."""
    try:
        with _damage_named(path, "data.path", lambda: "make it again with `attn attend`"):
            return _read(name, path, True)
    except FileNotFoundError as error:
        raise Refused(f"There is no file {path}: make it with `attn attend`.") from error


def _read(name: str, path: Path, verify: bool) -> Prepared:
    state = path.stat()
    identity = (str(path), state.st_ino, state.st_size, state.st_mtime_ns)
    contents = contents_of(path, FORMS[name])
    if contents.name != name:
        raise ValueError(f"it holds {contents.name!r}")
    verify = verify and identity not in _verified
    if verify and state.st_size > MAPPED:
        contents.verify()
    arrays = {array: stored.array(state.st_size > MAPPED) for array, stored in contents.stored.items()}
    kinds = {kind: {split: arrays[f"{split}_{kind}"] for split in FORMS[name].splits} for kind in FORMS[name].dims}
    prepared = Prepared(name, contents.origin, contents.class_names, **kinds)
    for split, labels in prepared.labels.items():
        _check_labels(split, labels, len(contents.class_names))
    for split, boxes in prepared.boxes.items():
        _check_boxes(split, boxes, *prepared.images[split].shape[-2:])
    if verify and state.st_size <= MAPPED:
        actual = prepared.sha256()
        if actual != contents.sha256:
            raise ValueError(f"its sha256 is {actual}, recorded was {contents.sha256}")
    if verify:
        _verified.add(identity)
    return prepared


@contextmanager
def _damage_named(path: Path, setting: str, remedy: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except PermissionError as error:
        raise Refused(
            f"{path} cannot be read ({error.strerror}): change its rights or choose another {setting}."
        ) from error
    except Exception as error:  # h5py raises nearly every type for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(f"{path} is damaged ({reason.rstrip('.')}): {remedy()}.") from error


def contents_of(path: Path, form: Form) -> Contents:
    """What the file holds, without reading its arrays; raises ValueError, OSError or what else h5py has."""
    with open_hdf5(path) as file:
        # Text of a fixed length: what has a variable length lies in HDF5's heap, which no checksum guards and where
        # one wrong byte makes the library loop for ever.
        if "about" not in file.attrs:
            raise ValueError("it has no attribute 'about', so attn did not write it")
        kind = file.attrs.get_id("about").dtype.kind
        if kind != "S":
            raise ValueError("its attribute 'about' is no text of a fixed length")
        about: dict[str, Any] = json.loads(bytes(file.attrs["about"]))
        if about.get("format") != FORMAT:
            raise ValueError(f"its format is {about.get('format')!r}, this version reads {FORMAT}")
        stored = {}
        left = path.stat().st_size
        for split in form.splits:
            for kind, dims in form.dims.items():
                name = f"{split}_{kind}"
                data = plain(file, name, dims=dims, dtype=np.uint8, limit=left, contiguous=True)
                stored[name] = Stored(path, data.id.get_offset() or 0, data.shape)
                left -= math.prod(data.shape)
            shapes = {kind: stored[f"{split}_{kind}"].shape for kind in form.dims}
            for kind, shape in shapes.items():
                if shape[0] != shapes["images"][0]:
                    raise ValueError(f"{split} has {shapes['images'][0]} images and {shape[0]} {kind}")
            for kind, shape in shapes.items():
                first = stored[f"{form.splits[0]}_{kind}"].shape
                if not math.prod(shape):
                    raise ValueError(f"{split} is empty")
                if shape[1:] != first[1:]:
                    raise ValueError(f"{split} {kind} are {shape[1:]}, {form.splits[0]} {kind} {first[1:]}")
    names = tuple(str(name) for name in about["class_names"])
    return Contents(str(about["name"]), str(about["origin"]), names, str(about["sha256"]), stored)


def _check_labels(split: str, labels: np.ndarray, classes: int) -> None:
    """Raises ValueError for a class that there is not; in sequences the end, BEYOND and EMPTY may occur as well."""
    outside = labels >= classes if labels.ndim == 1 else (labels > classes + 1) & (labels != EMPTY)
    if outside.any():
        raise ValueError(f"{split} has a label {labels[outside].max()}, the classes are 0 to {classes - 1}")


def _check_boxes(split: str, boxes: np.ndarray, height: int, width: int) -> None:
    if boxes.shape[1] != 4 or (boxes[:, 2:] < boxes[:, :2]).any() or (boxes[:, 2:] >= (width, height)).any():
        raise ValueError(f"{split} has a box that does not lie within its image")
