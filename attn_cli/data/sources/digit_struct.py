"""digitStruct.mat of SVHN Format 1: the digits and boxes of each image, in MATLAB's v7.3 files, which are HDF5.

Layout: `digitStruct/name` and `digitStruct/bbox` are (N, 1) object references, to the UTF-16 name of an image and to a
group with `height`, `left`, `top`, `width`, `label`: a double (1, 1) where the image has one digit, else (k, 1)
references to such doubles. The label of a zero is 10. Nothing else is followed, and every step is checked, as the
file may come from anywhere: references that are null, dangle or lead to another kind of thing, values that are no
numbers, lists of unequal length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5g, h5r, h5s, h5t

from attn_cli.data.hdf5 import open_hdf5, plain
from attn_cli.errors import Refused

FIELDS = ("left", "top", "width", "height", "label")
IMAGE_NAME = re.compile(r"([1-9]\d{0,6})\.png")
MAX_IMAGES = 1_000_000
MAX_DIGITS = 64  # in one image
MAX_NAME = 32  # characters


@dataclass(frozen=True)
class Digits:
    """The digits of one image: `boxes` float64 (k, 4) left, top, right, bottom in pixels, `classes` (k,) 0 to 9."""

    boxes: np.ndarray
    classes: np.ndarray


def read(
    path: Path,
    where: str,
    faulty: dict[int, str] | None = None,
    watch: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> dict[int, Digits]:
    """Number of the image (7 for 7.png) → its digits, in the file's order. `where` names the file in messages.

    Raises Refused naming the image that is wrong; with `faulty`, such images go there with the reason. `watch` passes
    the entries on, of which there are as many as its second argument says.
    """
    try:
        with open_hdf5(path) as file:
            names, boxes = (_references(file, field) for field in ("name", "bbox"))
            if len(names) != len(boxes):
                raise ValueError(f"{len(names):,} names and {len(boxes):,} bbox entries")
            found: dict[int, Digits] = {}
            entries = watch(zip(names, boxes, strict=True), len(names))
            for entry, (name, box) in enumerate(entries, 1):
                number = _number(file.id, name, entry)
                if number in found or number in (faulty or ()):
                    raise ValueError(f"{number}.png is there twice")
                try:
                    found[number] = _digits(file.id, box)
                except ValueError as error:
                    if faulty is None:
                        raise ValueError(f"{number}.png {error}") from error
                    faulty[number] = str(error)
    except Exception as error:  # h5py raises nearly every type for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise Refused(f"{where} cannot be used ({reason}): fetch the original file again.") from error
    return found


def _references(file: h5py.File, field: str) -> np.ndarray:
    """object references (N,) of `digitStruct/<field>`; raises ValueError."""
    if not isinstance(file.get("digitStruct", getlink=True), h5py.HardLink):
        raise ValueError("it has no digitStruct of its own")
    group = file["digitStruct"]
    if not isinstance(group, h5py.Group):
        raise ValueError("its digitStruct is no group")
    data = plain(group, field, dims=(2,), limit=8 * MAX_IMAGES, references=True)
    if data.shape[1] != 1 or not data.shape[0]:
        raise ValueError(f"{field} has shape {data.shape}, expected one column of references")
    return data[()].ravel()


def _number(file: h5py.h5f.FileID, name: h5py.Reference, entry: int) -> int:
    """The number in the name of an image."""
    try:
        data = _data(file, name)
        if data.rank != 2 or not 0 < math.prod(data.shape) <= MAX_NAME or data.get_type().get_class() != h5t.INTEGER:
            raise ValueError("is no text")
        codes = np.empty(data.shape, np.uint16)
        data.read(h5s.ALL, h5s.ALL, codes)
        text = "".join(map(chr, codes.ravel()))
    except ValueError as error:
        raise ValueError(f"the name of entry {entry} {error}") from error
    match = IMAGE_NAME.fullmatch(text)
    if not match:
        raise ValueError(f"entry {entry} is called {text!r}, not <number>.png")
    return int(match[1])


def _digits(file: h5py.h5f.FileID, box: h5py.Reference) -> Digits:
    """The digits of one image; raises ValueError with a phrase that follows its name."""
    group = _target(file, box, "bbox")
    if not isinstance(group, h5g.GroupID):
        raise ValueError("has a bbox that is no group (an image without digits has none)")
    values = {}
    for field in FIELDS:
        try:
            values[field] = _values(file, group, field)
        except ValueError as error:
            raise ValueError(f"has a {field} that {error}") from error
    counts = {field: len(v) for field, v in values.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"has lists of unequal length: {', '.join(f'{n} {field}' for field, n in counts.items())}")
    if not counts["label"]:
        raise ValueError("has no digits")
    left, top, width, height, label = (np.array(values[field]) for field in FIELDS)
    if (width <= 0).any() or (height <= 0).any():
        raise ValueError("has a box without area")
    if ((label != label.round()) | (label < 1) | (label > 10)).any():
        raise ValueError(
            f"has the label {label[(label != label.round()) | (label < 1) | (label > 10)][0]:g}, not 1 to 10"
        )
    return Digits(np.stack([left, top, left + width, top + height], 1), label.astype(np.uint8) % 10)


def _values(file: h5py.h5f.FileID, group: h5g.GroupID, field: str) -> list[float]:
    """The numbers of one field, one a digit."""
    name = field.encode()
    if name not in group:
        raise ValueError("is missing")
    if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        raise ValueError("is a link to somewhere else")
    data = h5py.h5o.open(group, name)
    _check_plain(data)
    if data.get_type().get_class() != h5t.REFERENCE:
        return [_scalar(data)]
    if not data.get_type().equal(h5t.STD_REF_OBJ) or data.rank != 2 or data.shape[1] != 1:
        raise ValueError("is no column of references")
    if data.shape[0] > MAX_DIGITS:
        raise ValueError(f"has {data.shape[0]:,} values, more than the limit of {MAX_DIGITS}")
    references = np.empty(data.shape, h5py.ref_dtype)
    data.read(h5s.ALL, h5s.ALL, references)
    return [_scalar(_data(file, reference)) for reference in references.ravel()]


def _scalar(data: h5d.DatasetID) -> float:
    if data.shape != (1, 1) or data.get_type().get_class() not in (h5t.FLOAT, h5t.INTEGER):
        raise ValueError("is not one number")
    value = np.empty((1, 1))
    data.read(h5s.ALL, h5s.ALL, value)
    if not -1e6 < value[0, 0] < 1e6:  # NaN is refused as well
        raise ValueError(f"is {value[0, 0]:g}")
    return float(value[0, 0])


def _target(file: h5py.h5f.FileID, reference: h5py.Reference, what: str = "value") -> object:
    if not reference:
        raise ValueError(f"has a null reference to its {what}" if what == "bbox" else "is a null reference")
    try:
        return h5r.dereference(reference, file)
    except Exception as error:
        raise ValueError("has a dangling reference" if what == "bbox" else "is a dangling reference") from error


def _data(file: h5py.h5f.FileID, reference: h5py.Reference) -> h5d.DatasetID:
    data = _target(file, reference)
    _check_plain(data)
    return data


def _check_plain(data: object) -> None:
    """Raises ValueError unless it is an array in the file itself, in one piece."""
    if not isinstance(data, h5d.DatasetID):
        raise ValueError("is no array")
    how = data.get_create_plist()
    if how.get_layout() not in (h5d.CONTIGUOUS, h5d.COMPACT) or how.get_external_count():
        raise ValueError("is stored in other files or in pieces")
