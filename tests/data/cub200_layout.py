"""Data in the layout of Caltech-UCSD Birds 200-2011, made for tests: noise with a bright bird in its box."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attn_cli.data.keys import draws
from attn_cli.data.sources import cub200

TOP = "CUB_200_2011"


def size_of(i: int) -> tuple[int, int]:
    """Width and height of image i, counted from 0."""
    return 40 + 5 * (i % 4), 30 + 3 * (i % 7)


def box_of(i: int) -> tuple[float, float, float, float]:
    """x, y, width, height."""
    width, height = size_of(i)
    return 2.0 + i % 3, 1.5 + i % 5, width / 2, height / 2 + 0.25


def photo(i: int) -> Image.Image:
    width, height = size_of(i)
    pixels = (draws((height, width, 3), "bird", i) >> 25).astype(np.uint8)
    x, y, w, h = box_of(i)
    pixels[int(y) : int(y + h), int(x) : int(x + w)] = (250, 200, 20 * (i % 10))
    return Image.fromarray(pixels)


def path_of(i: int, classes: int = 4) -> str:
    return f"{1 + i % classes:03d}.Bird_{i % classes}/Bird_{i}.jpg"


def layout(count: int = 40, classes: int = 4) -> dict[str, bytes]:
    """Files by name: images 1 to `count`, of which every fourth tests, the class changing with the image."""
    rows = range(count)
    files = {
        "classes.txt": "".join(f"{k + 1} {k + 1:03d}.Bird_{k}\n" for k in range(classes)),
        "images.txt": "".join(f"{i + 1} {path_of(i, classes)}\n" for i in rows),
        "image_class_labels.txt": "".join(f"{i + 1} {1 + i % classes}\n" for i in rows),
        "train_test_split.txt": "".join(f"{i + 1} {int(i % 4 != 3)}\n" for i in rows),
        "bounding_boxes.txt": "".join(f"{i + 1} {' '.join(map(str, box_of(i)))}\n" for i in rows),
    }
    found = {name: text.encode() for name, text in files.items()}
    for i in rows:
        file = io.BytesIO()
        photo(i).save(file, "JPEG", quality=95)
        found[f"images/{path_of(i, classes)}"] = file.getvalue()
    return found


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def tgz(path: Path, files: dict[str, bytes]) -> Path:
    """As the original: images before the lists, other files between."""
    members = {**dict(reversed(files.items())), "README": b"", "parts/parts.txt": b"1 back\n"}
    with gzip.open(path, "wb", compresslevel=1) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in {"attributes.txt": b"", **{f"{TOP}/{n}": c for n, c in members.items()}}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def original(folder: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with an archive of these files whose checksum stands in place of the genuine one."""
    path = tgz(folder / cub200.ARCHIVE.name, files)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cub200, "ARCHIVE", cub200.Original(path.name, digest, path.stat().st_size))
    return folder
