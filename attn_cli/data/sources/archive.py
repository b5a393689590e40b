"""Images and their digitStruct.mat out of a .tar.gz or a folder, as a stream; nothing is unpacked under its own name.

Of an archive only regular members `<split>/<number>.png` and `<split>/digitStruct.mat` are read; everything else
(folders, links, devices, other names) is passed over. The gzip CRC is checked: `scan` reads to the end.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from attn_cli.data.sources.digit_struct import IMAGE_NAME
from attn_cli.errors import Refused

STRUCT = "digitStruct.mat"
MAX_UNPACKED = 8 << 30  # bytes of one archive; the largest genuine one has about 3.6e9
MAX_STRUCT = 4 << 30
MAX_IMAGE = 8 << 20
BLOCK = 1 << 20


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
        with _damage_named(path), open(path, "rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.identity = f"{path.name} sha256 {self.sha256}"

    def scan(self, write: Write) -> list[int]:
        numbers: dict[int, None] = {}
        found = False
        with _damage_named(self.path):
            for number, size, stream in self._members():
                if number is not None:
                    if number in numbers:
                        raise ValueError(f"{number}.png is there twice")
                    numbers[number] = None
                    continue
                if found:
                    raise ValueError(f"{STRUCT} is there twice")
                found = True
                for start in range(0, size, BLOCK):
                    write(stream.exactly(min(BLOCK, size - start)))
            if not found:
                raise ValueError(f"it holds no {self.split}/{STRUCT}")
        return list(numbers)

    def images(self) -> Iterator[tuple[int, bytes]]:
        with _damage_named(self.path):
            for number, size, stream in self._members():
                if number is not None:
                    yield number, stream.exactly(size)

    def _members(self) -> Iterator[tuple[int | None, int, _Forward]]:
        """(number of the image or None for digitStruct.mat, bytes, stream at its first byte)."""
        with gzip.open(self.path, "rb") as unpacked:
            stream = _Forward(unpacked)
            with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
                while (info := tar.next()) is not None:
                    tar.members.clear()  # it would keep them all
                    folder, _, name = info.name.removeprefix("./").partition("/")
                    image = IMAGE_NAME.fullmatch(name)
                    known = folder == self.split and (image or name == STRUCT)
                    if not known or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.sparse is not None:
                        continue
                    if info.size > (MAX_IMAGE if image else MAX_STRUCT):
                        raise ValueError(f"{info.name} claims {info.size:,} bytes, more than the limit")
                    stream.seek(info.offset_data)
                    yield int(image[1]) if image else None, info.size, stream
            stream.finish()


class Folder:
    """A folder with the content of one archive, or with a part of its images."""

    complete = False

    def __init__(self, path: Path):
        self.path = path
        self.numbers = sorted(int(m[1]) for m in map(IMAGE_NAME.fullmatch, _names(path)) if m)
        digest = hashlib.sha256()
        with _damage_named(path / STRUCT), open(path / STRUCT, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        for number in self.numbers:
            with _damage_named(path / f"{number}.png"):
                state = (path / f"{number}.png").stat()
            digest.update(f"{number} {state.st_size} {state.st_mtime_ns}\n".encode())
        self.identity = f"a folder {path.name} state {digest.hexdigest()}"

    def scan(self, write: Write) -> list[int]:
        with _damage_named(self.path / STRUCT), open(self.path / STRUCT, "rb") as file:
            while block := file.read(BLOCK):
                write(block)
        return self.numbers

    def images(self) -> Iterator[tuple[int, bytes]]:
        for number in self.numbers:
            path = self.path / f"{number}.png"
            with _damage_named(path), open(path, "rb") as file:
                content = file.read(MAX_IMAGE + 1)
            if len(content) > MAX_IMAGE:
                raise Refused(f"{path} has more than {MAX_IMAGE:,} bytes, the limit for an image: remove it.")
            yield number, content


class _Forward:
    """What is unpacked, as a file that tarfile can read; only forwards, with a limit on single reads and in all."""

    def __init__(self, unpacked: gzip.GzipFile):
        self.unpacked, self.position, self.last = unpacked, 0, b""

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_IMAGE:
            raise ValueError(f"a header claims {size:,} bytes")
        self.last = data = self.unpacked.read(size)
        self.position += len(data)
        if self.position > MAX_UNPACKED:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED:,} bytes")
        return data

    def exactly(self, size: int) -> bytes:
        data = self.read(size)
        if len(data) < size:
            raise ValueError("it ends within a member")
        return data

    def seek(self, position: int) -> int:
        if position < self.position:
            raise ValueError("a header is damaged")
        while self.position < position and self.read(min(BLOCK, position - self.position)):
            pass
        return self.position

    def finish(self) -> None:
        """Reads to the end, so that the checksum is verified; raises ValueError for what is no padding.

        tarfile takes a damaged header for the end: that was the last it read.
        """
        while not self.last.strip(b"\0"):
            if not self.read(BLOCK):
                return
        raise ValueError("a header is damaged")


def _names(path: Path) -> list[str]:
    with _damage_named(path):
        return os.listdir(path)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError, ValueError, OverflowError) as error:
        reason = re.sub(r"\s+", " ", str(error)).rstrip(".") or type(error).__name__
        raise Refused(f"{path} cannot be used ({reason}): fetch the original file again.") from error
    except OSError as error:
        raise Refused(
            f"{path} cannot be read ({error.strerror or error}): put the original files there or leave out --from."
        ) from error
