"""A person's own images in class folders: PATH/CLASS/*.png, or PATH/train/CLASS/…, validation (or val), test.

Rules: names that start with a dot are skipped; files that are no images by their ending are skipped and counted in
the log. A symbolic link is followed if it stays inside PATH and refused if it leads outside, so that a data set is
what its folder holds. Transparent pixels show `data.background`; 16-bit grey is scaled to 8 bits; CMYK, palettes
and the like become RGB (grey if every colour is grey); a camera's rotation mark is applied.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from attn_cli.config.schema import Folder
from attn_cli.data.sources import own
from attn_cli.errors import Refused
from attn_cli.files import expanded, kind_of

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".pgm", ".ppm", ".pbm", ".pnm"),
}
ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)
MAX_PIXELS = 50_000_000  # of one file; decoding takes a few bytes a pixel
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}

Files = dict[str, list[Path]]  # class name → its files


def load(config: Folder, log: Callable[[str], object] = print) -> own.Own:
    """Every image of the folder; raises Refused naming the file that cannot be used."""
    root = expanded(config.path, "data.path")
    if kind_of(root, "data.path") != "folder":
        raise Refused(f"data.path={config.path} is not a folder: give a folder with one folder of images per class.")
    size = own.target_size(config)
    listing = _listing(root, log)
    names = _names(listing)
    files = [
        (split, names.index(name), path) for split in listing for name in names for path in listing[split].get(name, [])
    ]
    if not files:
        raise Refused(f"{root} holds no images: put them into one folder per class ({', '.join(ENDINGS)}).")
    empty = set(names) - {names[label] for _, label, _ in files}
    if empty:
        log(f"{root}: no image of class {', '.join(sorted(empty))}")
    stack = _stack([path for _, _, path in files], config, size)
    where = np.array([split for split, _, _ in files])
    labels = np.array([label for _, label, _ in files], np.int64)
    images_of = {split: stack[where == split] for split in listing}
    labels_of = {split: labels[where == split] for split in listing}
    return own.Own(*own.complete(images_of, labels_of, config), names)


def class_names(path: Path) -> tuple[str, ...]:
    """Of the classes in a folder, none of whose images is opened; raises Refused."""
    return _names(_listing(path, lambda line: None))


def _names(listing: dict[str, Files]) -> tuple[str, ...]:
    return tuple(sorted({name for classes in listing.values() for name in classes}))


def _listing(root: Path, log: Callable[[str], object]) -> dict[str, Files]:
    """split → class → files; only "train" when the folder holds classes directly."""
    inside = root.resolve()
    folders = [entry for entry in _entries(root, inside) if entry.is_dir()]
    splits: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_FOLDERS.get(folder.name)
        if split and any(entry.is_dir() for entry in _entries(folder, inside)):
            if split in splits:
                raise Refused(f"{root} holds both {splits[split].name}/ and {folder.name}/: remove one of them.")
            splits[split] = folder
    skipped: list[Path] = []
    if splits:
        if "train" not in splits:
            raise Refused(f"{root} holds {', '.join(p.name + '/' for p in splits.values())} but no train/: add it.")
        others = [folder.name for folder in folders if folder not in splits.values()]
        if others:
            log(f"{root}: not used beside train/: {', '.join(others)}")
        listing = {split: _classes(folder, inside, skipped) for split, folder in splits.items()}
    else:
        listing = {"train": _classes(root, inside, skipped)}
    if skipped:
        log(f"{root}: skipped {len(skipped)} file(s) that are no images by their ending, such as {skipped[0]}")
    return listing


def _classes(folder: Path, inside: Path, skipped: list[Path]) -> Files:
    classes: Files = {}
    for entry in _entries(folder, inside):
        if not entry.is_dir():
            skipped.append(entry)
            continue
        classes[entry.name] = []
        for path in _entries(entry, inside):
            if path.is_dir():
                raise Refused(f"{path} is a folder inside a class folder: classes hold image files only, move it away.")
            if path.suffix.lower() not in ENDINGS:
                skipped.append(path)
                continue
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
                raise Refused(f"{path} is no regular file: remove it.")
            classes[entry.name].append(path)
    return classes


def _entries(folder: Path, inside: Path) -> Iterator[Path]:
    """What the folder holds, by name; raises Refused for a link that leads outside `inside` or to nothing."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise Refused(f"{folder} cannot be read ({error.strerror}): change its rights or move it away.") from error
    for name in names:
        path = folder / name
        if name.startswith(".") or name in ("Thumbs.db", "desktop.ini"):
            continue
        if path.is_symlink():
            try:
                target = path.resolve()
            except (OSError, RuntimeError) as error:  # the latter before Python 3.13
                raise Refused(f"{path} is a link that leads in a circle or cannot be followed: remove it.") from error
            if not target.is_relative_to(inside):
                raise Refused(f"{path} is a link to {target}, outside the data folder: copy it into the folder.")
            if not target.exists():
                raise Refused(f"{path} is a link to {target}, which does not exist: remove it.")
        yield path


def _stack(paths: list[Path], config: Folder, size: tuple[int, int] | None) -> np.ndarray:
    """uint8 (N, C, H, W); C as configured, else 1 if every image is grey."""
    decoded: list[np.ndarray] = []
    for path in paths:
        image = decode(path, config.background)
        own.check_size(str(path), *image.shape[:2])
        if config.grey is not None:
            image = own.with_channels(image, 1 if config.grey else 3)
        if size is not None:
            image = own.resized(image, size)
        elif decoded and image.shape[:2] != decoded[0].shape[:2]:
            (h, w), (first_h, first_w) = image.shape[:2], decoded[0].shape[:2]
            raise Refused(
                f"{path} is {h}×{w} pixels (height × width) and {paths[0]} {first_h}×{first_w}: "
                "set data.height and data.width to resize all images."
            )
        if not decoded:
            own.check_bytes(str(config.path), len(paths), *image.shape)
        decoded.append(image)
    channels = max(image.shape[-1] for image in decoded)
    height, width = decoded[0].shape[:2]
    own.check_bytes(str(config.path), len(paths), height, width, channels)
    stack = np.empty((len(decoded), channels, height, width), np.uint8)
    for i, image in enumerate(decoded):
        stack[i] = own.with_channels(image, channels).transpose(2, 0, 1)
    return stack


def decode(path: Path, background: int) -> np.ndarray:
    """uint8 (H, W, C) of one file, C 1 (every colour is grey) or 3; raises Refused naming it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is refused below, and of harmless oddities
        return decoded(path, background, str(path))


def decoded(
    file: Path | BinaryIO,
    background: int,
    where: str,
    formats: Iterable[str] = tuple(FORMATS),
    upright: bool = True,
) -> np.ndarray:
    """Like `decode`, of a file that messages call `where`; does not touch Python's warnings, so threads may call it.

    Without `upright` a camera's rotation mark is not applied.
    """
    try:
        with Image.open(file, formats=list(formats)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Refused(
                    f"{where} has {image.width:,}×{image.height:,} pixels, more than the limit of {MAX_PIXELS:,}: "
                    "make it smaller or remove it."
                )
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # MPO: a photo with previews
                raise Refused(f"{where} holds {frames} images: save one of them, or remove it.")
            image.load()
            return _to_bytes(ImageOps.exif_transpose(image) if upright else image, background)
    except Refused:
        raise
    except Exception as error:  # Pillow raises nearly every type for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused(f"{where} cannot be read as an image ({reason}): repair or remove it.") from error


def _to_bytes(image: Image.Image, background: int) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("its grey values are fractions")
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"its grey values reach from {wide.min()} to {wide.max()}, 16 bits hold 0 to 65535")
        return ((wide * 255 + 32767) // 65535).astype(np.uint8)[..., None]
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA")).astype(np.int64)
        colour, alpha = rgba[..., :3], rgba[..., 3:]
        rgb = ((colour * alpha + background * (255 - alpha) + 127) // 255).astype(np.uint8)
    elif image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    else:
        rgb = np.asarray(image.convert("RGB"))
    # A palette, or grey with transparency, is grey if all its colours are; RGB files stay RGB, as they are.
    if image.mode not in ("RGB", "RGBA", "CMYK") and (rgb == rgb[..., :1]).all():
        return rgb[..., :1]
    return rgb
