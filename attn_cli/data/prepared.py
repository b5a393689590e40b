"""One verified .h5 per source: fixed layout, a sha256 over everything in it, written atomically.

Layout: for each split of train, validation, test the data sets `<split>_images` uint8 (N, H, W) and `<split>_labels`
uint8 (N,), stored contiguously and uncompressed, and one attribute `about`: JSON bytes with format, name, origin,
class_names and sha256. Nothing else is read, and nothing is read before its type, shape and storage are checked.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from attn_cli.data.hdf5 import open_hdf5, read_plain
from attn_cli.errors import Refused

FORMAT = 1
SPLITS = ("train", "validation", "test")
MAX_BYTES = 1 << 30  # of one prepared file; MNIST takes 55 MB

_verified: set[tuple[str, int, int, int]] = set()  # files whose hash was checked by this process


@dataclass(frozen=True)
class Prepared:
    """Digits of one source. images uint8 (N, H, W), labels uint8 (N,), per split; white on black, background 0."""

    name: str
    origin: str  # what the arrays were made from, and with what
    class_names: tuple[str, ...]
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    def content_sha256(self) -> str:
        """Over name, dtype, shape and bytes of every array, and nothing else."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for kind, array in (("images", self.images[split]), ("labels", self.labels[split])):
                digest.update(f"{split}_{kind} {array.dtype} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def sha256(self) -> str:
        """Over everything in the file: format, name, origin, class names and the arrays."""
        about = [FORMAT, self.name, self.origin, list(self.class_names), self.content_sha256()]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def data_root(root: str | None) -> Path:
    """Where prepared data lies: the config value, else $ATTN_DATA, else the user cache folder of `attn`."""
    if root or os.environ.get("ATTN_DATA"):
        return Path(root or os.environ["ATTN_DATA"]).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("attn"))


def path_of(name: str, root: Path) -> Path:
    return root / f"{name}.h5"


def rebuild_command(name: str, root: Path) -> str:
    return f"attn data prepare {name}" + ("" if root == data_root(None) else f" --root {shlex.quote(str(root))}")


def write(prepared: Prepared, path: Path) -> None:
    """Writes the file so that it is complete or absent, also after a power loss; raises Refused (disk full, rights)."""
    about = {
        "format": FORMAT,
        "name": prepared.name,
        "origin": prepared.origin,
        "class_names": prepared.class_names,
        "sha256": prepared.sha256(),
    }
    # Made in memory first, so that every error of the disk is an ordinary OSError of `write` and not HDF5's.
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver=("v110", "v110")) as file:  # this version checksums its own structure
        for split in SPLITS:
            file.create_dataset(f"{split}_images", data=prepared.images[split])
            file.create_dataset(f"{split}_labels", data=prepared.labels[split])
        file.attrs["about"] = np.bytes_(json.dumps(about).encode())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(memory.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Refused(
            f"{path} cannot be written ({error.strerror}): free space there or choose another data.root."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def read(name: str, root: Path) -> Prepared:
    """The verified arrays. Needs no lock and no right to write; the hash is checked once per process and file.

    Raises Refused, naming the file and the command that rebuilds it, for a file that is damaged, was forged, or
    holds something else; FileNotFoundError if there is none.
    """
    path = path_of(name, root)
    with _damage_named(name, path, root):
        state = path.stat()
        identity = (str(path), state.st_ino, state.st_size, state.st_mtime_ns)
        prepared, sha256 = _read(path)
        if prepared.name != name:
            raise ValueError(f"it holds {prepared.name!r}")
        if identity not in _verified:
            actual = prepared.sha256()
            if actual != sha256:
                raise ValueError(f"its sha256 is {actual}, recorded was {sha256}")
            _verified.add(identity)
    return prepared


@contextmanager
def _damage_named(name: str, path: Path, root: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except PermissionError as error:
        raise Refused(
            f"{path} cannot be read ({error.strerror}): change its rights or choose another data.root."
        ) from error
    except Exception as error:  # h5py raises nearly every type for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(
            f"{path} is damaged ({reason.rstrip('.')}): run `{rebuild_command(name, root)}` to rebuild it."
        ) from error


def _read(path: Path) -> tuple[Prepared, str]:
    with open_hdf5(path) as file:
        # Text of a fixed length: what has a variable length lies in HDF5's heap, which no checksum guards and where
        # one wrong byte makes the library loop for ever.
        kind = file.attrs.get_id("about").dtype.kind
        if kind != "S":
            raise ValueError("its attribute 'about' is no text of a fixed length")
        about: dict[str, Any] = json.loads(bytes(file.attrs["about"]))
        if about.get("format") != FORMAT:
            raise ValueError(f"its format is {about.get('format')!r}, this version reads {FORMAT}")
        images, labels = {}, {}
        left = MAX_BYTES
        for split in SPLITS:
            images[split] = read_plain(file, f"{split}_images", dims=(3,), dtype=np.uint8, limit=left, contiguous=True)
            left -= images[split].nbytes
            labels[split] = read_plain(file, f"{split}_labels", dims=(1,), dtype=np.uint8, limit=left, contiguous=True)
            left -= labels[split].nbytes
            _check_split(split, images, labels, len(about["class_names"]))
    names = tuple(str(name) for name in about["class_names"])
    return Prepared(str(about["name"]), str(about["origin"]), names, images, labels), str(about["sha256"])


def _check_split(split: str, images: dict[str, np.ndarray], labels: dict[str, np.ndarray], classes: int) -> None:
    if len(images[split]) != len(labels[split]):
        raise ValueError(f"{split} has {len(images[split])} images and {len(labels[split])} labels")
    if not images[split].size:
        raise ValueError(f"{split} is empty")
    if images[split].shape[1:] != images["train"].shape[1:]:
        raise ValueError(f"{split} images are {images[split].shape[1:]}, train images {images['train'].shape[1:]}")
    if labels[split].max() >= classes:
        raise ValueError(f"{split} has a label {labels[split].max()}, the classes are 0 to {classes - 1}")
