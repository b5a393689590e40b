"""Caltech-UCSD Birds 200-2011 (Wah et al. 2011): photos of 200 kinds of birds with a box around each bird.

Read are the original archive, whose checksum is verified before, and a folder in the layout of its content, which may
hold a person's own images. Prepared are all images, resized to 256×256 whatever their shape, by ID:

1. Resizing is Pillow's bilinear filter, which averages where it shrinks. Grey photos become RGB.
2. A camera's rotation mark is not applied: boxes are measured in the pixels of the file.
3. A box is kept as the first and last column and row that it covers in the resized image, each edge rounded to the
   nearest pixel. What reaches outside the photo ends at its edge.
4. Splits are those of `train_test_split.txt`; what validates is drawn from train when the data is opened.
"""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from attn_cli.data import writing
from attn_cli.data.download import Original
from attn_cli.data.prepared import Prepared
from attn_cli.data.progress import counted
from attn_cli.data.sources import own
from attn_cli.data.sources.cub200_lists import LISTS, Bird, parse
from attn_cli.data.sources.folder import decoded
from attn_cli.data.sources.tarball import damage_named, members, plain_name
from attn_cli.data.sources.threads import each
from attn_cli.errors import Refused
from attn_cli.files import kind_of

ARCHIVE = Original("CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78", 1_150_585_339)
MIRRORS = ("https://data.caltech.edu/records/65de6-vp158/files/",)
TOP = "CUB_200_2011"  # folder in the archive
SIDE = 256  # pixels
MAX_LIST = 8 << 20  # bytes
MAX_IMAGE = 8 << 20

Log = Callable[[str], object]


class Source(Protocol):
    """Lists and images, wherever they are. `problem` and `images` may be asked for after `lists`. All raise Refused."""

    where: str  # for messages

    def lists(self) -> dict[str, bytes]:
        """Content of each of LISTS."""
        ...

    def problem(self, path: str) -> str | None:
        """Why there is no image of that path (checked by `parse`): a clause; None if there is one."""
        ...

    def images(self, wanted: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
        """(path, content) of the wanted images, in any order."""
        ...


class Archive:
    """The .tgz, read twice from beginning to end."""

    def __init__(self, path: Path):
        self.path, self.where = path, f"{path}: {TOP}"
        self.found: set[str] = set()

    def lists(self) -> dict[str, bytes]:
        texts: dict[str, bytes] = {}
        with damage_named(self.path):
            for member, size, stream in members(self.path, _limit):
                name = member.removeprefix(f"{TOP}/")
                if name in texts or name in self.found:
                    raise ValueError(f"{name} is there twice")
                if name in LISTS:
                    texts[name] = stream.exactly(size)
                else:
                    self.found.add(name)
            for name in LISTS:
                if name not in texts:
                    raise ValueError(f"it holds no {TOP}/{name}")
        return texts

    def problem(self, path: str) -> str | None:
        return None if f"images/{path}" in self.found else "which the archive does not hold: fetch the original again"

    def images(self, wanted: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
        with damage_named(self.path):
            for member, size, stream in members(self.path, _limit):
                path = member.removeprefix(f"{TOP}/images/")
                if path in wanted:
                    yield path, stream.exactly(size)


def _limit(info: tarfile.TarInfo) -> int | None:
    folder, _, name = plain_name(info).partition("/")
    if folder != TOP:
        return None
    return MAX_LIST if name in LISTS else MAX_IMAGE if name.startswith("images/") else None


class Folder:
    """The lists in a folder, the images below its folder `images`."""

    def __init__(self, path: Path):
        self.path, self.where = path, str(path)
        self.inside = (path / "images").resolve()

    def lists(self) -> dict[str, bytes]:
        return {name: _content(self.path / name, MAX_LIST) for name in LISTS}

    def problem(self, path: str) -> str | None:
        file = self.path / "images" / path
        with _reading(file):
            if not file.resolve().is_relative_to(self.inside):
                return f"which leads out of {self.path / 'images'}: copy the image into it"
            if not file.exists():
                return f"which is not in {self.path / 'images'}: add the image, or take it out of every list"
            return None if stat.S_ISREG(file.stat().st_mode) else "which is no regular file: remove it"

    def images(self, wanted: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
        for path in wanted:
            yield path, _content(self.path / "images" / path, MAX_IMAGE)


def _content(path: Path, limit: int) -> bytes:
    with _reading(path):
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
            raise Refused(f"{path} is no regular file: remove it.")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    if len(content) > limit:
        raise Refused(f"{path} has more than {limit:,} bytes: make it smaller.")
    return content


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"{path} cannot be read ({reason}): give a folder in the layout of {ARCHIVE.name}.") from error


@dataclass(frozen=True)
class Contents:
    """What a prepared file of the source will hold; `fill` puts it there."""

    class_names: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    fill: Callable[[writing.Put], None]


def build(archive: Path, target: Path, log: Log) -> None:
    """Writes the prepared file; the caller has verified the archive's checksum. Raises Refused."""
    log(f"reading {archive}")
    made = contents(Archive(archive), log)
    origin = f"Caltech-UCSD Birds 200-2011 at {SIDE}×{SIDE}, RGB; {ARCHIVE.name} md5 {ARCHIVE.md5}"
    writing.write_filled(target, "cub200", origin, made.class_names, made.shapes, made.fill)


def load(path: Path, log: Log) -> Prepared:
    """A folder in the layout of the archive, in memory; raises Refused naming what is wrong in it."""
    if kind_of(path, "data.path") != "folder":
        raise Refused(f"data.path={path} is not a folder: give one with {', '.join(LISTS)} and images/.")
    made = contents(Folder(path), log)
    count = sum(shape[0] for name, shape in made.shapes.items() if name.endswith("_images"))
    own.check_bytes(str(path), count, SIDE, SIDE, 3)
    arrays = {name: np.zeros(shape, np.uint8) for name, shape in made.shapes.items()}

    def put(name: str, row: int, rows: np.ndarray) -> None:
        arrays[name][row : row + len(rows)] = rows

    made.fill(put)
    kinds = {kind: {split: arrays[f"{split}_{kind}"] for split in ("train", "test")} for kind in _SHAPES}
    return Prepared("cub200", f"a folder {path.name}", made.class_names, **kinds)


_SHAPES: dict[str, tuple[int, ...]] = {"images": (3, SIDE, SIDE), "labels": (), "boxes": (4,)}


def contents(source: Source, log: Log) -> Contents:
    """Reads and checks the lists; images are read by `fill`. Raises Refused."""
    class_names, birds = parse(source.lists(), source.where)
    for bird in birds:
        problem = source.problem(bird.path)
        if problem:
            raise Refused(f"{bird.place} names {bird.path}, {problem}.")
    of = {split: [bird for bird in birds if bird.split == split] for split in ("train", "test")}
    rows = {bird.path: (bird, row) for some in of.values() for row, bird in enumerate(some)}
    shapes = {f"{split}_{kind}": (len(of[split]), *shape) for split in of for kind, shape in _SHAPES.items()}

    def fill(put: writing.Put) -> None:
        for split, some in of.items():
            put(f"{split}_labels", 0, np.array([bird.label for bird in some], np.uint8))

        def shrink(item: tuple[str, bytes]) -> tuple[Bird, int, np.ndarray, np.ndarray]:
            bird, row = rows[item[0]]
            return bird, row, *shrunk(item[1], bird, f"{source.where}/images/{bird.path}")

        done = 0
        for bird, row, image, box in counted(each(shrink, source.images(rows)), len(rows), "birds", log):
            put(f"{bird.split}_images", row, image[None])
            put(f"{bird.split}_boxes", row, box[None])
            done += 1
        if done != len(rows):
            raise Refused(f"{source.where} changed while it was read: run the command again.")

    return Contents(class_names, shapes, fill)


def shrunk(content: bytes, bird: Bird, where: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (3, SIDE, SIDE), and its box uint8 (4,): first column and row, last column and row. Raises Refused."""
    image = decoded(io.BytesIO(content), 0, where, upright=False)
    height, width = image.shape[:2]
    x, y, w, h = bird.box
    edges = np.array([x / width, y / height, (x + w) / width, (y + h) / height])
    clipped = edges.clip(0, 1)
    if (clipped[2:] <= clipped[:2]).any():
        raise Refused(f"{bird.box_place} has a box outside the {width}×{height} pixels of {where}: correct it.")
    first, end = np.rint(clipped * SIDE).astype(int).reshape(2, 2)
    first = np.minimum(first, SIDE - 1)
    box = np.concatenate([first, np.maximum(end - 1, first)]).astype(np.uint8)
    pixels = own.resized(own.with_channels(image, 3), (SIDE, SIDE))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), box
