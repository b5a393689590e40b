"""CIFAR-10 (Krizhevsky 2009), out of the archive of its binary version; the pickled version is never read.

The archive holds five files for training and one for testing, each of 10,000 records: a byte for the class, then
32×32 bytes each of red, green and blue, row by row. Splits: the first 45,000 of the 50,000 training images train, the
last 5,000 validate, in the original order; the 10,000 test images test.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from attn_cli.data.download import Original
from attn_cli.data.prepared import Prepared
from attn_cli.data.sources.tarball import damage_named, members, plain_name

ARCHIVE = Original("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171)
MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
MAX_FILE = 64 << 20  # bytes
RECORDS = 10_000  # in each file
VALIDATION = 5_000
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32  # bytes
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def build(path: Path) -> Prepared:
    """The arrays of the archive, whose checksum the caller has verified; raises Refused naming what is wrong in it."""
    images = np.empty((len(FILES) * RECORDS, *SHAPE), np.uint8)
    labels = np.empty(len(images), np.uint8)
    with damage_named(path):
        for file, records in _records(path):
            rows = slice(file * RECORDS, (file + 1) * RECORDS)
            images[rows], labels[rows] = records[:, 1:].reshape(-1, *SHAPE), records[:, 0]
    test = FILES.index("test_batch.bin") * RECORDS
    ends = {"train": (0, test - VALIDATION), "validation": (test - VALIDATION, test), "test": (test, None)}
    parts = {split: slice(*pair) for split, pair in ends.items()}
    return Prepared(
        "cifar10",
        f"CIFAR-10, {ARCHIVE.name} md5 {ARCHIVE.md5}",
        CLASSES,
        {split: images[part] for split, part in parts.items()},
        {split: labels[part] for split, part in parts.items()},
    )


def _records(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """(place of a file in FILES, uint8 (RECORDS, RECORD)); raises ValueError for one that is missing or malformed."""
    missing = list(FILES)
    for member, size, stream in members(path, _limit):
        name = Path(member).name
        if name not in missing:
            raise ValueError(f"{name} is there twice")
        missing.remove(name)
        if size != RECORDS * RECORD:
            raise ValueError(f"{name} has {size:,} bytes, {RECORDS:,} records take {RECORDS * RECORD:,}")
        records = np.frombuffer(b"".join(stream.blocks(size)), np.uint8).reshape(RECORDS, RECORD)
        wrong = np.flatnonzero(records[:, 0] >= len(CLASSES))
        if len(wrong):
            raise ValueError(f"record {wrong[0]} of {name} has a label {records[wrong[0], 0]}, the classes are 0 to 9")
        yield FILES.index(name), records
    if missing:
        raise ValueError(f"it holds no {missing[0]}")


def _limit(info: tarfile.TarInfo) -> int | None:
    """How large a member may be, None if it is not to be read; raises ValueError for one that does not belong there."""
    if not (info.isreg() or info.isdir()):
        raise ValueError(f"{info.name} is neither a file nor a folder")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise ValueError(f"{info.name} leads out of the archive")
    folder, _, name = plain_name(info).partition("/")
    return MAX_FILE if folder == "cifar-10-batches-bin" and name in FILES else None
