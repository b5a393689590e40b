"""Images and their digitStruct.mat out of a .tar.gz or a folder, as a stream; nothing is unpacked under its own name.

Of an archive only regular members `<split>/<number>.png` and `<split>/digitStruct.mat` are read; everything else
(folders, links, devices, other names) is passed over. The gzip CRC is checked: `scan` reads to the end.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from attn_cli.data.sources.digit_struct import IMAGE_NAME
from attn_cli.data.sources.tarball import BLOCK, Stream, damage_named, members, plain_name
from attn_cli.errors import Refused

STRUCT = "digitStruct.mat"
MAX_STRUCT = 4 << 30
MAX_IMAGE = 8 << 20

Write = Callable[[bytes], object]  # raises no OSError


class Source(Protocol):
    """One split of the original data. `images` may be asked for after `scan`."""

    path: Path
    complete: bool  # every annotated image must be there
    identity: str  # what it is, for the record; the same content has the same identity

    def scan(self, write: Write) -> list[int]:
        """Passes digitStruct.mat to `write`; the numbers of the images, in the order of `images`. Raises Refused."""
        ...

    def images(self) -> Iterator[tuple[int, bytes]]:
        """(7, content of 7.png), one after the other; raises Refused."""
        ...


class Archive:
    """A .tar.gz with one folder named like its split."""

    complete = True

    def __init__(self, path: Path, split: str):
        self.path, self.split = path, split
        with damage_named(path), open(path, "rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.identity = f"{path.name} sha256 {self.sha256}"

    def scan(self, write: Write) -> list[int]:
        numbers: dict[int, None] = {}
        found = False
        with damage_named(self.path):
            for number, size, stream in self._members():
                if number is not None:
                    if number in numbers:
                        raise ValueError(f"{number}.png is there twice")
                    numbers[number] = None
                    continue
                if found:
                    raise ValueError(f"{STRUCT} is there twice")
                found = True
                for block in stream.blocks(size):
                    write(block)
            if not found:
                raise ValueError(f"it holds no {self.split}/{STRUCT}")
        return list(numbers)

    def images(self) -> Iterator[tuple[int, bytes]]:
        with damage_named(self.path):
            for number, size, stream in self._members():
                if number is not None:
                    yield number, stream.exactly(size)

    def _members(self) -> Iterator[tuple[int | None, int, Stream]]:
        """(number of the image or None for digitStruct.mat, bytes, stream at its first byte)."""
        for name, size, stream in members(self.path, self._limit):
            image = IMAGE_NAME.fullmatch(name.partition("/")[2])
            yield int(image[1]) if image else None, size, stream

    def _limit(self, info: tarfile.TarInfo) -> int | None:
        folder, _, name = plain_name(info).partition("/")
        if folder != self.split:
            return None
        return MAX_IMAGE if IMAGE_NAME.fullmatch(name) else MAX_STRUCT if name == STRUCT else None


class Folder:
    """A folder with the content of one archive, or with a part of its images."""

    complete = False

    def __init__(self, path: Path):
        self.path = path
        self.numbers = sorted(int(m[1]) for m in map(IMAGE_NAME.fullmatch, _names(path)) if m)
        digest = hashlib.sha256()
        with damage_named(path / STRUCT), open(path / STRUCT, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        for number in self.numbers:
            with damage_named(path / f"{number}.png"):
                state = (path / f"{number}.png").stat()
            digest.update(f"{number} {state.st_size} {state.st_mtime_ns}\n".encode())
        self.identity = f"a folder {path.name} state {digest.hexdigest()}"

    def scan(self, write: Write) -> list[int]:
        with damage_named(self.path / STRUCT), open(self.path / STRUCT, "rb") as file:
            while block := file.read(BLOCK):
                write(block)
        return self.numbers

    def images(self) -> Iterator[tuple[int, bytes]]:
        for number in self.numbers:
            path = self.path / f"{number}.png"
            with damage_named(path), open(path, "rb") as file:
                content = file.read(MAX_IMAGE + 1)
            if len(content) > MAX_IMAGE:
                raise Refused(f"{path} has more than {MAX_IMAGE:,} bytes, the limit for an image: remove it.")
            yield number, content


def _names(path: Path) -> list[str]:
    with damage_named(path):
        return os.listdir(path)
