"""Archives in the form of SVHN Format 1, made for tests: noise with a bright bar where each digit is."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from attn_cli.data.keys import draws

Box = tuple[float, float, float, float]  # left, top, width, height
FIELDS = ("height", "left", "top", "width", "label")


@dataclass
class Photo:
    """One image with its digits, `label` 1 to 10."""

    size: tuple[int, int]  # width, height
    boxes: list[Box]
    labels: list[int]
    content: bytes | None = None  # of the PNG; None: drawn
    name: str = ""  # empty: <number>.png
    fields: dict[str, list[float]] = field(default_factory=dict)  # instead of the right ones

    def pixels(self, seed: int) -> np.ndarray:
        width, height = self.size
        image = (draws((height, width, 3), "photo", seed) >> 25).astype(np.uint8)
        for left, top, w, h in self.boxes:
            y, x = max(int(top), 0), max(int(left), 0)
            image[y : int(top + h), x : int(left + w)] = (250, 200, 150)
        return image

    def png(self, seed: int) -> bytes:
        if self.content is not None:
            return self.content
        file = io.BytesIO()
        Image.fromarray(self.pixels(seed)).save(file, "PNG")
        return file.getvalue()


def photo(seed: int, digits: int = 0) -> Photo:
    """A photo with 1 to 5 digits, or as many as told, in a row."""
    r = draws((4 + 32,), "layout", seed).tolist()
    count = digits or 1 + r[0] % 5
    width, height = 9 + r[1] % 6, 15 + r[2] % 10
    left, top = 2 + r[3] % 12, 2 + r[4] % 8
    boxes = [(left + i * width, top + i, width - 1, height) for i in range(count)]
    return Photo((left + count * width + 9, top + height + count + 6), boxes, [1 + d % 10 for d in r[5 : 5 + count]])


def struct_of(photos: Sequence[Photo]) -> bytes:
    """digitStruct.mat as MATLAB 7.3 lays it out: HDF5 after 512 bytes, everything by reference into #refs#."""
    memory = io.BytesIO()
    with h5py.File(memory, "w", userblock_size=512, libver=("earliest", "v108")) as file:
        refs, top = file.create_group("#refs#"), file.create_group("digitStruct")

        def scalar(value: float) -> h5py.Reference:
            data = refs.create_dataset(f"v{len(refs)}", data=np.array([[float(value)]]))
            data.attrs["MATLAB_class"] = np.bytes_("double")
            return data.ref

        names = np.empty((len(photos), 1), h5py.ref_dtype)
        boxes = np.empty((len(photos), 1), h5py.ref_dtype)
        for i, one in enumerate(photos):
            text = one.name or f"{i + 1}.png"
            name = refs.create_dataset(f"n{i}", data=np.array([[ord(c)] for c in text], np.uint16))
            name.attrs["MATLAB_class"] = np.bytes_("char")
            names[i, 0] = name.ref
            group = refs.create_group(f"b{i}")
            values = dict(zip(("left", "top", "width", "height"), np.array(one.boxes).T.tolist(), strict=True))
            values = {**values, "label": one.labels, **one.fields}
            for key in FIELDS:
                if len(values[key]) == 1:
                    group.create_dataset(key, data=np.array([[float(values[key][0])]]))
                else:
                    column = np.array([[scalar(v)] for v in values[key]], h5py.ref_dtype)
                    group.create_dataset(key, data=column.reshape(-1, 1), dtype=h5py.ref_dtype)
            boxes[i, 0] = group.ref
        top.create_dataset("name", data=names, dtype=h5py.ref_dtype)
        top.create_dataset("bbox", data=boxes, dtype=h5py.ref_dtype)
    raw = bytearray(memory.getvalue())
    raw[:128] = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM"
    return bytes(raw)


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", **attributes: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def members_of(split: str, photos: Sequence[Photo], struct: bytes | None = None) -> list[Member]:
    """As in the originals: the folder, the images (not by number), digitStruct.mat and a MATLAB script."""
    numbers = sorted(range(1, len(photos) + 1), key=str)
    return [
        member(split, type=tarfile.DIRTYPE),
        *(member(f"{split}/{n}.png", photos[n - 1].png(n)) for n in numbers),
        member(f"{split}/digitStruct.mat", struct_of(photos) if struct is None else struct),
        member(f"{split}/see_bboxes.m", b"% shows boxes"),
    ]


def archive(path: Path, members: Iterable[Member]) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def archives(folder: Path, **photos: Sequence[Photo]) -> Path:
    """train.tar.gz, extra.tar.gz and test.tar.gz; 20, 30 and 8 photos unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    for start, (split, count) in enumerate((("train", 20), ("extra", 30), ("test", 8))):
        shown = photos.get(split) or [photo(1000 * start + i) for i in range(count)]
        archive(folder / f"{split}.tar.gz", members_of(split, shown))
    return folder
