"""What original archives (.tar.gz) have in common: read as a stream, nothing unpacked under its own name.

Only regular members that the caller asks for by name are read. The gzip CRC is checked, as everything is read to the
end, and what is unpacked is limited, in single reads and in all.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attn_cli.errors import Refused

MAX_UNPACKED = 8 << 30  # bytes of one archive; the largest genuine one has about 3.6e9
MAX_READ = 8 << 20
BLOCK = 1 << 20


def members(path: Path, limit_of: Callable[[tarfile.TarInfo], int | None]) -> Iterator[tuple[str, int, Stream]]:
    """(name, bytes, stream at its first byte) of the regular members that `limit_of` gives a largest size for.

    What it gives None for is passed over. Raises ValueError and what gzip and tarfile have, see `damage_named`.
    """
    with gzip.open(path, "rb") as unpacked:
        stream = Stream(unpacked)
        with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                tar.members.clear()  # it would keep them all
                limit = limit_of(info)
                if limit is None or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.sparse is not None:
                    continue
                if info.size > limit:
                    raise ValueError(f"{info.name} claims {info.size:,} bytes, more than the limit of {limit:,}")
                stream.seek(info.offset_data)
                yield plain_name(info), info.size, stream
        stream.finish()


def plain_name(info: tarfile.TarInfo) -> str:
    return info.name.removeprefix("./")


class Stream:
    """What is unpacked, as a file that tarfile can read; only forwards, with a limit on single reads and in all."""

    def __init__(self, unpacked: gzip.GzipFile):
        self.unpacked, self.position, self.last = unpacked, 0, b""

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_READ:
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

    def blocks(self, size: int) -> Iterator[bytes]:
        """Exactly `size` bytes, some at a time."""
        for start in range(0, size, BLOCK):
            yield self.exactly(min(BLOCK, size - start))

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


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError, ValueError, OverflowError) as error:
        reason = re.sub(r"\s+", " ", str(error)).rstrip(".") or type(error).__name__
        raise Refused(f"{path} cannot be used ({reason}): fetch the original file again.") from error
    except OSError as error:
        raise Refused(
            f"{path} cannot be read ({error.strerror or error}): put the original files there or leave out --from."
        ) from error
