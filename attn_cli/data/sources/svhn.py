"""SVHN Format 1 (Netzer et al. 2011): photos of house numbers with a box around each digit, as square crops.

The crop follows Goodfellow et al. 2013 (arXiv 1312.6082), section 5.1, which Ba et al. 2015 (1412.7755, section 4.3)
and Semeniuta & Barth 2016 (section IV-B) follow too: the smallest box around all digits, widened by a factor about its
centre in both directions, is resized to a square. Prepared are

- `svhn`: factor 1.3 (30 % more), 64×64. DRAM trains on random 54×54 crops of it; Soft RAM on the whole.
- `svhn_110`: factor 2.6, 128×128. Ba et al. enlarge the box "such that the relative size of the digits stays the same
  as in the 54x54 images": 64 / 1.3 = 128 / 2.6 pixels for the box of the digits. Random 110×110 crops of it train the
  model, as 54×54 crops of 64×64 do.
- `svhn_128`: factor 2.3 ("expanding the bounding boxes … by 130%"), 128×128.

Decisions where the texts are silent:

1. left and top of digitStruct.mat are taken as offsets from the image's corner (from 0), and a box that reaches
   outside the image ends at its edge.
2. Where the widened box leaves the photo, the photo's edge pixels are repeated: the digits keep their size and place,
   and there is no frame to look for.
3. Resizing is Pillow's bilinear filter, which averages where it shrinks. Grey is the luma of ITU-R 601.
4. Digits are read from left to right by their left edge; in 8 of the 46,470 training and test images this differs from
   the order in digitStruct.mat.
5. At most LENGTH digits can be read. Longer numbers are left out of train and extra and stay in the test set, where no
   answer is right: their labels are the first LENGTH digits and then BEYOND, a class that no model has.

Prepared files hold the images of train, then those of extra, by number; and those of test. Images that validate are
drawn from the first two when the data is opened.

Checksums: the site of the data gives none. The SHA-256 sums below are those that Hugging Face's `datasets` recorded
when it downloaded the archives (datasets/svhn/dataset_infos.json), with the sizes that the site serves. An archive of
another size is no copy of the original; it is used if it is complete in itself, and the record says so.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from attn_cli.data import prepared, writing
from attn_cli.data.progress import counted
from attn_cli.data.sources import digit_struct
from attn_cli.data.sources.archive import STRUCT, Archive, Folder, Source
from attn_cli.data.sources.digit_struct import Digits
from attn_cli.data.sources.folder import decoded
from attn_cli.data.sources.threads import each
from attn_cli.errors import Refused

LENGTH = 5  # digits
CLASSES = tuple("0123456789")
END, BEYOND = len(CLASSES), len(CLASSES) + 1  # labels: the number ends here; it goes on
MIRRORS = ("http://ufldl.stanford.edu/housenumbers/",)

Log = Callable[[str], object]


@dataclass(frozen=True)
class Original:
    name: str
    sha256: str
    size: int  # bytes


FILES = {
    "train": Original("train.tar.gz", "4b17bb33b6cd8f963493168f80143da956f28ec406cc12f8e5745a9f91a51898", 404_141_560),
    "extra": Original(
        "extra.tar.gz", "e857e27d1e65bd1e7d3959b094061777f6506bbc39889a0df3bba6a729d60f9c", 1_955_489_752
    ),
    "test": Original("test.tar.gz", "57ac9ceb530e4aa85b55d991be8fc49c695b3d71c6f6a88afea86549efde7fb5", 276_555_967),
}
DOWNLOAD_BYTES = sum(original.size for original in FILES.values())


@dataclass(frozen=True)
class Crop:
    factor: float  # side of what is cut out, in sides of the box around all digits
    side: int  # pixels of the square that it becomes


CROPS = {"svhn": Crop(1.3, 64), "svhn_110": Crop(2.6, 128), "svhn_128": Crop(2.3, 128)}


def build(name: str, root: Path, fetch: Callable[[Original], Path], log: Log, skip_faulty: bool = False) -> None:
    """Writes the prepared file `name`, one of `prepared.SEQUENCES`; `fetch` gives the path where an archive should be.

    Each archive becomes a part (svhn.h5.train.part), so that an interrupted preparation goes on with the next archive;
    the caller clears the parts. With `skip_faulty`, images whose annotation is wrong are left out and counted.
    Raises Refused.
    """
    crop, grey = CROPS[name.removesuffix("_rgb")], not name.endswith("_rgb")
    path = prepared.path_of(name, root)
    recipe = f"SVHN Format 1, {crop.factor} times the box of all digits at {crop.side}×{crop.side}, "
    recipe += "grey" if grey else "RGB"
    parts = {}
    for split, original in FILES.items():
        source = open_source(fetch(original), split, original, log)
        part = path.with_name(f"{path.name}.{split}.part")
        wanted = f"{recipe}; {source.identity}" + ("; faulty images left out" if skip_faulty else "")
        found = _finished(part, split, wanted)
        if found:
            log(f"{split}: finished before, {_count(found, split):,} images")
        else:
            _make_part(part, split, source, wanted, crop, grey, log, skip_faulty)
            found = _contents(part, split)
        parts[split] = found
    _join(path, name, recipe, parts)


def open_source(path: Path, split: str, original: Original, log: Log) -> Source:
    """The archive `path`, or the folder beside it that is named like the split; its checksum verified where known."""
    if not path.exists() and (path.parent / split).is_dir():
        return Folder(path.parent / split)
    if not path.exists():
        raise Refused(
            f"{path.parent} holds neither {path.name} nor a folder {split} of its content: put one of them there or "
            "leave out --from."
        )
    archive = Archive(path, split)
    if archive.sha256 != original.sha256:
        size = path.stat().st_size
        if size == original.size:
            raise Refused(
                f"{path} is damaged: expected sha256 {original.sha256}, got {archive.sha256}; fetch it again."
            )
        log(f"{path} has {size:,} bytes, the original {original.size:,}: used as it is, as data of your own")
    return archive


def _finished(part: Path, split: str, origin: str) -> prepared.Contents | None:
    """The part that an earlier preparation finished, if it is there, was made alike and is undamaged."""
    try:
        contents = _contents(part, split)
        if not contents.origin.startswith(f"{origin}, "):
            return None
        contents.verify()
    except Exception:  # h5py raises nearly every type for a damaged file
        return None
    return contents


def _contents(part: Path, split: str) -> prepared.Contents:
    return prepared.contents_of(part, replace(prepared.NUMBERS, splits=(_role(split),)))


class Outside(Refused):
    """A box lies wholly outside its photo, whose size is not known before it is opened."""


def _make_part(
    part: Path,
    split: str,
    source: Source,
    wanted: str,
    crop: Crop,
    grey: bool,
    log: Log,
    skip_faulty: bool,
    outside: Collection[int] = (),
) -> None:
    """A prepared file of one archive, under the split "train" (also for extra) or "test", without images `outside`."""
    numbers, digits, omitted = _inventory(part, source, log, skip_faulty)
    if outside:
        omitted.append(f"{len(outside)} with a box outside")
        digits = {n: d for n, d in digits.items() if n not in outside}
    if split != "test":
        long = {n for n in digits if len(digits[n].classes) > LENGTH}
        omitted += [f"{len(long)} with more than {LENGTH} digits"] if long else []
        digits = {n: d for n, d in digits.items() if n not in long}
    if not digits:
        raise Refused(f"{source.path} holds no image that can be used.")
    row = {number: i for i, number in enumerate(sorted(digits))}
    labels = np.full((len(row), LENGTH + 1), prepared.EMPTY, np.uint8)
    for number, i in row.items():
        labels[i] = label_row(digits[number])
    shape = (len(row), crop.side, crop.side) if grey else (len(row), 3, crop.side, crop.side)
    role = _role(split)
    found: set[int] = set()

    def cut(item: tuple[int, bytes]) -> tuple[int, np.ndarray]:
        number, content = item
        where = f"{source.path}: {number}.png"
        image = decoded(io.BytesIO(content), 0, where=where, formats=("PNG",))
        try:
            return row[number], cropped(image, digits[number].boxes, crop, grey, where)
        except Outside:
            if not skip_faulty:
                raise
            found.add(number)
            return row[number], np.zeros(shape[1:], np.uint8)

    def fill(put: writing.Put) -> None:
        put(f"{role}_labels", 0, labels)
        photos = (item for item in source.images() if item[0] in row)
        done = 0
        for i, image in counted(each(cut, photos), len(row), f"{split}: images", log):
            put(f"{role}_images", i, image[None])
            done += 1
        if done != len(row):
            raise Refused(f"{source.path} changed while it was read: run the command again.")
        if found:
            raise Outside(f"{source.path}: {len(found):,} images have boxes outside, such as {min(found)}.png.")

    log(f"{split}: cutting out {len(row):,} of {len(numbers):,} images")
    origin = f"{wanted}, {len(row)} images" + (f" ({', '.join(omitted)} left out)" if omitted else "")
    shapes = {f"{role}_images": shape, f"{role}_labels": labels.shape}
    try:
        writing.write_filled(part, part.name, origin, CLASSES, shapes, fill)
    except Outside as error:
        if not found:
            raise
        log(f"{error} They are left out.")
        _make_part(part, split, source, wanted, crop, grey, log, skip_faulty, found)


def _inventory(
    part: Path, source: Source, log: Log, skip_faulty: bool
) -> tuple[list[int], dict[int, Digits], list[str]]:
    """Numbers of all images; the digits of those that can be used; what is left out, in words."""
    log(f"reading {source.path}")
    struct = part.with_name(f".{part.name}.{os.getpid()}.{STRUCT}.tmp")
    where = f"{source.path}: {STRUCT}"
    try:
        with writing.disk_named(struct), open(struct, "wb") as file:

            def write(block: bytes) -> None:
                with writing.disk_named(struct):
                    file.write(block)

            numbers = source.scan(write)
        faulty: dict[int, str] | None = {} if skip_faulty else None

        def watch(items: Iterable, total: int) -> Iterator:
            return counted(items, total, f"{source.path.name}: boxes", log)

        digits = digit_struct.read(struct, where, faulty, watch)
    finally:
        with suppress(OSError):
            struct.unlink()
    present, omitted = set(numbers), []
    bad = present & set(faulty or ())
    if faulty and bad:
        first = min(bad)
        log(f"{source.path}: {len(bad):,} images left out, the first is {first}.png, which {faulty[first]}")
        omitted.append(f"{len(bad)} faulty")
    missing, unknown = set(digits) - present, present - set(digits) - bad
    if unknown:
        raise Refused(
            f"{source.path} and its {STRUCT} do not match: {_some(unknown)} not in {STRUCT}; fetch the original again."
        )
    if missing and source.complete:
        raise Refused(
            f"{source.path} and its {STRUCT} do not match: {_some(missing)} missing; fetch the original again."
        )
    if missing:
        log(f"{source.path}: {len(missing):,} of {len(digits):,} images in {STRUCT} are not in the folder")
    return numbers, {number: digits[number] for number in digits if number in present}, omitted


def _some(numbers: set[int]) -> str:
    first = min(numbers)
    return f"{first}.png is" if len(numbers) == 1 else f"{len(numbers):,} images ({first}.png is the first) are"


def _role(split: str) -> str:
    return "test" if split == "test" else "train"


def _count(part: prepared.Contents, split: str) -> int:
    return part.stored[f"{_role(split)}_labels"].shape[0]


def _join(path: Path, name: str, recipe: str, parts: dict[str, prepared.Contents]) -> None:
    """The prepared file out of its parts, which were verified; raises Refused."""
    shapes, order = {}, {"train": ("train", "extra"), "test": ("test",)}
    for role, splits in order.items():
        for kind in ("images", "labels"):
            rest = parts[splits[0]].stored[f"{role}_{kind}"].shape[1:]
            shapes[f"{role}_{kind}"] = (sum(_count(parts[split], split) for split in splits), *rest)

    def fill(put: writing.Put) -> None:
        for role, splits in order.items():
            for kind in ("images", "labels"):
                array, row = f"{role}_{kind}", 0
                for split in splits:
                    stored = parts[split].stored[array]
                    for rows in stored.rows():
                        put(array, row, rows)
                        row += len(rows)

    about = [part.origin.removeprefix(f"{recipe}; ") for part in parts.values()]
    writing.write_filled(path, name, "; ".join([recipe, *about]), CLASSES, shapes, fill)


def label_row(digits: Digits) -> np.ndarray:
    """uint8 (LENGTH + 1,): classes from left to right, END, EMPTY; for a longer number LENGTH classes and BEYOND."""
    classes = digits.classes[np.argsort(digits.boxes[:, 0], kind="stable")]
    row = np.full(LENGTH + 1, prepared.EMPTY, np.uint8)
    row[: len(classes)] = classes[: len(row)]
    row[min(len(classes), LENGTH)] = END if len(classes) <= LENGTH else BEYOND
    return row


def cropped(image: np.ndarray, boxes: np.ndarray, crop: Crop, grey: bool, where: str) -> np.ndarray:
    """uint8 (side, side), or (3, side, side): what `crop` cuts out of the photo (H, W, C) with digits in boxes (k, 4).

    Raises Outside for a box that lies wholly outside the photo.
    """
    size = np.array(image.shape[1::-1])  # width, height
    low, high = np.clip(boxes[:, :2], 0, size), np.clip(boxes[:, 2:], 0, size)
    if (low >= high).any():
        raise Outside(
            f"{where} is {size[0]}×{size[1]} pixels (width × height), and a box of its digits lies outside: correct "
            "the box, or leave such images out with `attn data prepare` and --skip-faulty."
        )
    low, high = low.min(0), high.max(0)
    centre, reach = (low + high) / 2, (high - low) * crop.factor / 2
    (x0, y0), (x1, y1) = centre - reach, centre + reach
    # Only what the filter reads, with indices outside the photo moved to its edge.
    margin = math.ceil(max(1.0, (x1 - x0) / crop.side, (y1 - y0) / crop.side))
    left, top = math.floor(x0) - margin, math.floor(y0) - margin
    columns = np.clip(np.arange(left, math.ceil(x1) + margin), 0, size[0] - 1)
    rows = np.clip(np.arange(top, math.ceil(y1) + margin), 0, size[1] - 1)
    part = image[rows[:, None], columns]
    photo = Image.fromarray(part[..., 0] if part.shape[-1] == 1 else part).convert("L" if grey else "RGB")
    box = (x0 - left, y0 - top, x1 - left, y1 - top)
    out = np.asarray(photo.resize((crop.side, crop.side), Image.Resampling.BILINEAR, box))
    return out if grey else np.ascontiguousarray(out.transpose(2, 0, 1))
