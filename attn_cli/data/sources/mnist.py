"""MNIST (LeCun, Cortes, Burges): four IDX files in gzip, known by their md5 sums.

Splits: the first 50,000 of the 60,000 training digits train, the last 10,000 validate; the 10,000 test digits test.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from attn_cli.data.download import Original
from attn_cli.data.prepared import Prepared
from attn_cli.errors import Refused

IMAGES, LABELS = 0x0803, 0x0801  # unsigned bytes in three dimensions, in one
TRAIN = 50_000
MAX_PAYLOAD = 64 << 20  # bytes after decompression; the largest genuine file has 47,040,016
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


FILES = {
    "train_images": Original("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
    "train_labels": Original("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", 28_881),
    "test_images": Original("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", 1_648_877),
    "test_labels": Original("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
}
DOWNLOAD_BYTES = sum(original.size for original in FILES.values())


def build(fetch: Callable[[Original], Path]) -> Prepared:
    """`fetch` gives the path of an original file, its checksum verified; raises Refused if that is not IDX."""
    arrays = {role: read_idx(fetch(o), IMAGES if "images" in role else LABELS) for role, o in FILES.items()}
    for part in ("train", "test"):
        there, named = len(arrays[f"{part}_images"]), len(arrays[f"{part}_labels"])
        if there != named:
            raise Refused(
                f"{FILES[f'{part}_images'].name} has {there:,} images and {FILES[f'{part}_labels'].name} "
                f"{named:,} labels: fetch both files again."
            )
        if arrays[f"{part}_labels"].max() > 9:
            raise Refused(
                f"{FILES[f'{part}_labels'].name} has a label {arrays[f'{part}_labels'].max()}, digits are 0 to 9: "
                "fetch the file again."
            )
    if len(arrays["train_images"]) <= TRAIN:
        raise Refused(
            f"{FILES['train_images'].name} has {len(arrays['train_images']):,} images, but the first {TRAIN:,} train "
            "and the rest validates: fetch the file again."
        )
    images = {"train": arrays["train_images"][:TRAIN], "validation": arrays["train_images"][TRAIN:]}
    labels = {"train": arrays["train_labels"][:TRAIN], "validation": arrays["train_labels"][TRAIN:]}
    images["test"], labels["test"] = arrays["test_images"], arrays["test_labels"]
    origin = "MNIST original files, md5 " + " ".join(original.md5 for original in FILES.values())
    return Prepared("mnist", origin, tuple("0123456789"), images, labels)


def read_idx(path: Path, magic: int) -> np.ndarray:
    """uint8 (N, H, W) for images, (N,) for labels, from a gzipped IDX file; raises Refused with both numbers."""
    payload = _unzip(path)
    dims = 3 if magic == IMAGES else 1
    start = 4 + 4 * dims
    if len(payload) < start:
        raise Refused(f"{path} has {len(payload)} bytes, its IDX header alone takes {start}: fetch the file again.")
    found = int.from_bytes(payload[:4], "big")
    if found != magic:
        raise Refused(f"{path} starts with 0x{found:08x}, expected 0x{magic:08x}: it is not the right IDX file.")
    shape = tuple(int.from_bytes(payload[i : i + 4], "big") for i in range(4, start, 4))
    claimed = 1
    for length in shape:
        claimed *= length
    sizes = "×".join(f"{length:,}" for length in shape)
    if not claimed:
        raise Refused(f"{path} declares {sizes} values, none at all: fetch the file again.")
    if claimed != len(payload) - start:
        raise Refused(
            f"{path} declares {sizes} = {claimed:,} values but holds {len(payload) - start:,}: fetch the file again."
        )
    return np.frombuffer(payload, np.uint8, offset=start).reshape(shape)


def _unzip(path: Path) -> bytes:
    try:
        with gzip.open(path, "rb") as file:
            payload = file.read(MAX_PAYLOAD + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"{path} is no complete gzip file ({error}): fetch the file again.") from error
    if len(payload) > MAX_PAYLOAD:
        raise Refused(f"{path} unpacks to more than {MAX_PAYLOAD:,} bytes, the limit for an IDX file: it is not MNIST.")
    return payload
