"""The lists of Caltech-UCSD Birds 200-2011: which images there are, their classes, splits and boxes.

A line of `images.txt` is `ID PATH`, of `image_class_labels.txt` `ID CLASS`, of `train_test_split.txt` `ID 1` (train) or
`ID 0` (test), of `bounding_boxes.txt` `ID X Y WIDTH HEIGHT` in pixels, of `classes.txt` `CLASS NAME` with the classes
from 1. The lists may come from anywhere, so every line is checked before an image is opened, and a fault is refused
with the file and the number of the line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from attn_cli.errors import Refused

IMAGES, LABELS, SPLIT, BOXES, CLASSES = LISTS = (
    "images.txt",
    "image_class_labels.txt",
    "train_test_split.txt",
    "bounding_boxes.txt",
    "classes.txt",
)
FORMS = {IMAGES: "ID PATH", LABELS: "ID CLASS", SPLIT: "ID 0-or-1", BOXES: "ID X Y WIDTH HEIGHT", CLASSES: "CLASS NAME"}
MAX_CLASSES = 255  # labels are kept as bytes
MAX_DIGITS = 9  # of an ID


@dataclass(frozen=True)
class Bird:
    """What the lists say of one image."""

    place: str  # the line that names it, for messages
    path: str  # below the folder of images
    label: int  # from 0
    split: str  # "train" or "test"
    box: tuple[float, float, float, float]  # x, y, width, height in pixels of the file
    box_place: str


@dataclass(frozen=True)
class _Line:
    place: str
    values: list[str]  # what follows the number


def parse(texts: Mapping[str, bytes], where: str) -> tuple[tuple[str, ...], list[Bird]]:
    """Names of the classes, and the images by ID. `texts`: content of each of LISTS. Raises Refused naming the line."""
    lines = {name: _lines(texts[name], f"{where}/{name}", FORMS[name]) for name in LISTS}
    classes, images = lines.pop(CLASSES), lines[IMAGES]
    if sorted(classes) != list(range(1, len(classes) + 1)) or not 1 <= len(classes) <= MAX_CLASSES:
        raise Refused(f"{where}/{CLASSES} must number 1 to {MAX_CLASSES} classes from 1 without gaps: correct it.")
    if not images:
        raise Refused(f"{where}/{IMAGES} lists no images: add them.")
    for name, listed in lines.items():
        for number in images.keys() - listed.keys():
            raise Refused(f"{where}/{name} has no line for image {number}, which is in {images[number].place}: add it.")
        for number in listed.keys() - images.keys():
            raise Refused(f"{listed[number].place} is for image {number}, which {IMAGES} does not list: remove it.")
    birds, seen = [], dict[str, str]()
    for number in sorted(images):
        line = images[number]
        path = _path(line)
        if path in seen:
            raise Refused(f"{line.place} names {path}, as {seen[path]} does: remove one of them.")
        seen[path] = line.place
        label, split = _label(lines[LABELS][number], len(classes)), _split(lines[SPLIT][number])
        box = lines[BOXES][number]
        birds.append(Bird(line.place, path, label, split, _box(box), box.place))
    for split in ("train", "test"):
        if all(bird.split != split for bird in birds):
            raise Refused(f"{where}/{SPLIT} has no image to {split} with: mark some with {int(split == 'train')}.")
    return tuple(classes[k].values[0] for k in sorted(classes)), birds


def _lines(content: bytes, where: str, form: str) -> dict[int, _Line]:
    """Number at the start of a line → the rest of it."""
    columns = len(form.split())
    found: dict[int, _Line] = {}
    for at, raw in enumerate(content.split(b"\n"), 1):
        if not raw.strip():
            continue
        place = f"{where} line {at}"
        try:
            words = raw.decode().split(None, 1 if columns == 2 else -1)
        except UnicodeDecodeError:
            raise Refused(f"{place} is no UTF-8 text: correct it.") from None
        number = words[0] if words else ""
        if len(words) != columns or not (number.isascii() and number.isdigit() and len(number) <= MAX_DIGITS):
            raise Refused(f"{place} is not of the form {form}: correct it.")
        if int(number) in found:
            raise Refused(f"{place} is for {number}, as {found[int(number)].place} is: remove one of them.")
        found[int(number)] = _Line(place, [word.strip() for word in words[1:]])
    return found


def _path(line: _Line) -> str:
    """A relative path that cannot lead upwards."""
    (path,) = line.values
    if not path.isprintable() or any(part in ("", ".", "..") for part in path.split("/")):
        raise Refused(f"{line.place} names {path!r}, which is no path below the folder of images: correct it.")
    return path


def _label(line: _Line, classes: int) -> int:
    (text,) = line.values
    if text not in map(str, range(1, classes + 1)):
        raise Refused(f"{line.place} has class {text!r}, {CLASSES} has 1 to {classes}: correct it.")
    return int(text) - 1


def _split(line: _Line) -> str:
    (text,) = line.values
    if text not in ("0", "1"):
        raise Refused(f"{line.place} has {text!r}, 1 is for training and 0 for testing: correct it.")
    return "train" if text == "1" else "test"


def _box(line: _Line) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = (float(text) for text in line.values)
    except ValueError:
        raise Refused(f"{line.place} is not of the form {FORMS[BOXES]}: correct it.") from None
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise Refused(f"{line.place} has no box, but {' '.join(line.values)!r}: correct it.")
    return x, y, width, height
