"""Writing prepared files: complete or absent, also after a power loss, and row by row, so that memory stays small.

The layout is that of `attn_cli.data.prepared`, which reads them. HDF5 makes only the structure, in memory; the bytes
are written here, so that every error of the disk is an ordinary OSError that can be named.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from attn_cli.data.prepared import FORMAT, Prepared, blocks_of, content_sha256_of, sha256_of
from attn_cli.errors import Refused
from attn_cli.files import sync_folder

Put = Callable[[str, int, np.ndarray], None]  # name of an array, first row, rows


def write(prepared: Prepared, path: Path) -> None:
    """Writes the file so that it is complete or absent, also after a power loss; raises Refused (disk full, rights)."""
    arrays = prepared.arrays()

    def fill(put: Put) -> None:
        for name, array in arrays.items():
            put(name, 0, array)

    shapes = {name: array.shape for name, array in arrays.items()}
    write_filled(path, prepared.name, prepared.origin, prepared.class_names, shapes, fill)


def write_filled(
    path: Path,
    name: str,
    origin: str,
    class_names: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    fill: Callable[[Put], None],
    setting: str = "data.root",
) -> None:
    """Like `write`, with arrays of the given shapes (names in the file's order) whose rows `fill` puts in any order.

    Rows that `fill` leaves out are zero. If `fill` raises, nothing is left. `setting` is what chose the place.
    """
    about: dict[str, Any] = {"format": FORMAT, "name": name, "origin": origin, "class_names": list(class_names)}
    offsets, _ = _structure(shapes, {**about, "sha256": "0" * 64})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_named(path, setting):
            file = open(temporary, "w+b")  # noqa: SIM115 – closed below

        def put(array: str, row: int, rows: np.ndarray) -> None:
            data = np.ascontiguousarray(rows, np.uint8)
            if data.shape[1:] != tuple(shapes[array][1:]) or not 0 <= row <= shapes[array][0] - len(data):
                raise IndexError(f"rows {row} to {row + len(data)} of shape {data.shape[1:]} in {array}")
            with disk_named(path, setting):
                file.seek(offsets[array] + row * math.prod(data.shape[1:]))
                file.write(data.data)

        with file:
            fill(put)
            with disk_named(path, setting):
                file.truncate(max(offsets[array] + math.prod(shape) for array, shape in shapes.items()))
                file.flush()
            content = {
                array: (shape, blocks_of(file, offsets[array], math.prod(shape))) for array, shape in shapes.items()
            }
            about["sha256"] = sha256_of(name, origin, class_names, content_sha256_of(content))
            with disk_named(path, setting):
                for position, piece in _structure(shapes, about)[1]:
                    file.seek(position)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        with disk_named(path, setting):
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _structure(
    shapes: Mapping[str, tuple[int, ...]], about: Mapping[str, Any]
) -> tuple[dict[str, int], list[tuple[int, bytes]]]:
    """Offsets of the arrays in the file, and everything around them as (position, bytes).

    HDF5 makes it in memory, where the arrays take no room as they are never touched; the bytes are written by the
    caller, so that every error of the disk is an ordinary OSError and not HDF5's.
    """
    memory = _Sparse()
    with h5py.File(memory, "w", libver=("v110", "v110")) as file:  # this version checksums its own structure
        offsets = {}
        for name, shape in shapes.items():
            how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple(shape)
            offsets[name] = h5py.h5d.create(file.id, name.encode(), h5py.h5t.NATIVE_UINT8, space, how).get_offset()
        file.attrs["about"] = np.bytes_(json.dumps(about).encode())
    pieces, position = [], 0
    for name in sorted(offsets, key=lambda name: offsets[name]):
        pieces.append((position, memory.at(position, offsets[name] - position)))
        position = offsets[name] + math.prod(shapes[name])
    pieces.append((position, memory.at(position, memory.size - position)))
    return offsets, pieces


class _Sparse(io.RawIOBase):
    """A file in memory, of which only pages that were written take room."""

    PAGE = 4096

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = self.position = 0

    def at(self, position: int, size: int) -> bytes:
        return b"".join(
            self.pages.get(page, bytes(self.PAGE))[start:end] for page, start, end in self._pieces(position, size)
        )

    def _pieces(self, position: int, size: int) -> Iterator[tuple[int, int, int]]:
        end = position + size
        while position < end:
            page, start = divmod(position, self.PAGE)
            step = min(self.PAGE - start, end - position)
            yield page, start, start + step
            position += step

    def readinto(self, buffer: Any) -> int:
        data = self.at(self.position, min(len(buffer), max(self.size - self.position, 0)))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def write(self, data: Any) -> int:
        data = bytes(data)
        done = 0
        for page, start, end in self._pieces(self.position, len(data)):
            kept = self.pages.setdefault(page, bytearray(self.PAGE))
            kept[start:end] = data[done : done + end - start]
            done += end - start
        self.position += done
        self.size = max(self.size, self.position)
        return done

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def truncate(self, size: int | None = None) -> int:
        self.size = self.position if size is None else size
        return self.size

    def readable(self) -> bool:
        return True

    writable = seekable = readable


@contextmanager
def disk_named(path: Path, setting: str = "data.root") -> Iterator[None]:
    """Turns an error of the disk into Refused, naming the file that could not be written."""
    try:
        yield
    except OSError as error:
        raise Refused(
            f"{path} cannot be written ({error.strerror}): free space there or choose another {setting}."
        ) from error
