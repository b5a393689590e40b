"""A person's own folder: every kind of file, right or refused by name (rows 32, 36 and 38 of the list of faults)."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attn_cli.config.schema import Folder
from attn_cli.data.batches import Images, open_data
from attn_cli.data.sources import folder
from attn_cli.data.sources.folder import decode
from attn_cli.errors import Refused


def save(path: Path, image: Image.Image | np.ndarray, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **how)
    return path


def grey(value: int, size: tuple[int, int] = (5, 4)) -> np.ndarray:
    return np.full(size, value, np.uint8)


def classes(root: Path, count: int = 10, names: tuple[str, ...] = ("cat", "dog"), first: int = 0) -> Path:
    for k, name in enumerate(names):
        for i in range(count):
            save(root / name / f"{i:03}.png", grey(first + 100 * k + i))
    return root


def opened(root: Path, log: list[str] | None = None, **keys: Any) -> Images:
    lines: list[str] = [] if log is None else log
    data = open_data(Folder(path=str(root), **keys), log=lines.append)
    assert isinstance(data, Images)
    return data


def test_class_folders_divided_by_shares(tmp_path: Path) -> None:
    data = opened(classes(tmp_path, 20), validation_share=0.2, test_share=0.1, background=7)
    info = data.info
    assert (info.train, info.validation, info.test) == (28, 8, 4)
    assert (info.channels, info.height, info.width, info.class_names) == (1, 5, 4, ("cat", "dog"))
    assert (info.name, info.classes, info.background) == ("folder", 2, 7)
    seen = []
    for split in ("train", "validation", "test"):
        images, labels = data.images[split], data.labels[split]
        assert ((images[:, 0, 0, 0] >= 100).long() == labels).all()  # a picture keeps its class
        assert labels.float().mean() == 0.5  # both classes alike in every split
        seen += images[:, 0, 0, 0].tolist()
    assert sorted(seen) == [*range(20), *range(100, 120)]  # every picture in one split, once
    assert opened(tmp_path).digest("test") == opened(tmp_path).digest("test")
    assert opened(tmp_path, seed=1).digest("test") != opened(tmp_path).digest("test")


def test_split_folders(tmp_path: Path) -> None:
    classes(tmp_path / "train", 6)
    classes(tmp_path / "val", 2, first=20)
    classes(tmp_path / "test", 3, names=("cat", "dog", "eel"), first=30)
    data = opened(tmp_path)
    assert (data.info.train, data.info.validation, data.info.test) == (12, 4, 9)
    assert data.info.class_names == ("cat", "dog", "eel")
    assert data.labels["train"].tolist() == [0] * 6 + [1] * 6  # eel never occurs in training
    assert data.labels["test"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert data.fixed("validation")[0][:, 0, 0, 0].tolist() == [20, 21, 120, 121]


def test_a_missing_split_is_taken_from_train(tmp_path: Path) -> None:
    classes(tmp_path / "train", 20)
    classes(tmp_path / "test", 3)
    data = opened(tmp_path, validation_share=0.25)
    assert (data.info.train, data.info.validation, data.info.test) == (30, 10, 6)


def test_classes_named_like_splits(tmp_path: Path) -> None:
    """A folder `test` with pictures in it, not folders, is a class."""
    data = opened(classes(tmp_path, 10, names=("test", "train")))
    assert data.info.class_names == ("test", "train")


def test_a_class_without_images_is_said(tmp_path: Path) -> None:
    classes(tmp_path, 10)
    (tmp_path / "bird").mkdir()
    log: list[str] = []
    data = opened(tmp_path, log)
    assert data.info.class_names == ("bird", "cat", "dog") and 0 not in data.labels["train"]
    assert any("bird" in line for line in log)


def test_other_files_are_skipped_and_said(tmp_path: Path) -> None:
    classes(tmp_path, 10)
    (tmp_path / "labels.csv").write_text("x")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / ".DS_Store").write_text("x")
    (tmp_path / ".git").mkdir()
    log: list[str] = []
    assert opened(tmp_path, log).info.train == 16
    assert "skipped 2 file(s)" in log[0] and "txt" in log[0]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "holds no images"),
        (lambda root: (root / "cat").mkdir(), "holds no images"),
        (lambda root: classes(root, 1, ("cat",)), "empty split .train 1, validation 0, test 0"),
        (lambda root: classes(root / "test", 3), "no train/"),
        (lambda root: [classes(root / s, 3) for s in ("train", "val", "validation")], "both val/ and validation/"),
        (lambda root: classes(root / "cat" / "deep", 3), "folder inside a class folder"),
    ],
)
def test_folders_that_are_no_data_set(prepare: Any, message: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(Refused, match=message) as refused:
        opened(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="nowhere is not a folder"):
        opened(tmp_path / "nowhere")


def test_mixed_sizes(tmp_path: Path) -> None:
    classes(tmp_path, 10)
    save(tmp_path / "dog" / "zz.png", grey(5, (8, 6)))
    with pytest.raises(Refused, match=r"zz.png is 8×6 .* 5×4: set data.height and data.width"):
        opened(tmp_path)
    with pytest.raises(Refused, match="data.height is set and data.width is not"):
        opened(tmp_path, height=8)
    data = opened(tmp_path, height=7, width=9)
    assert (data.info.height, data.info.width) == (7, 9)
    assert set(data.images["train"].flatten(1).float().std(1).tolist()) == {0.0}  # flat pictures stay flat


def test_resizing_averages(tmp_path: Path) -> None:
    board = np.indices((40, 40)).sum(0) % 2 * 255
    image = decode(save(tmp_path / "a.png", board.astype(np.uint8)), 0)
    small = folder.own.resized(image, (10, 10))
    assert abs(small[2:-2, 2:-2].astype(int) - 127).max() < 20  # a single pixel in four would be black or white


def test_grey_and_rgb(tmp_path: Path) -> None:
    classes(tmp_path, 10)
    assert opened(tmp_path, grey=False).info.channels == 3
    red = np.zeros((5, 4, 3), np.uint8)
    red[..., 0] = 200
    save(tmp_path / "cat" / "red.png", red)
    data = opened(tmp_path)  # mixed: all become RGB
    assert data.info.channels == 3
    everything = [tuple(i[:, 0, 0].tolist()) for s in data.images.values() for i in s]
    assert (200, 0, 0) in everything and (3, 3, 3) in everything
    data = opened(tmp_path, grey=True)
    assert data.info.channels == 1
    luma = Image.fromarray(red).convert("L").getpixel((0, 0))
    assert luma in [i[0, 0, 0].item() for s in data.images.values() for i in s]


def test_grey_is_pillows(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    np.testing.assert_array_equal(folder.own.grey(rgb)[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))


def pixel(path: Path, background: int = 0) -> list[int]:
    image = decode(path, background)
    assert image.dtype == np.uint8 and (image == image[:1, :1]).all()
    return image[0, 0].tolist()


def test_conversions(tmp_path: Path) -> None:
    def made(name: str, mode: str, colour: Any, **how: Any) -> Path:
        return save(tmp_path / name, Image.new(mode, (3, 2), colour), **how)

    assert pixel(made("grey.png", "L", 77)) == [77]
    assert pixel(made("bits.png", "1", 1)) == [255]
    assert pixel(made("rgb.png", "RGB", (1, 2, 3))) == [1, 2, 3]
    assert pixel(made("flat.png", "RGB", (9, 9, 9))) == [9, 9, 9]  # RGB stays RGB
    assert pixel(made("rgba.png", "RGBA", (100, 50, 0, 51)), background=200) == [180, 170, 160]  # a fifth
    assert pixel(made("hidden.png", "RGBA", (100, 50, 0, 0)), background=9) == [9, 9, 9]
    assert pixel(made("la.png", "LA", (100, 51)), background=200) == [180]
    assert pixel(made("cmyk.jpg", "CMYK", (0, 255, 255, 0), quality=100))[0] > 240
    assert pixel(made("cmyk.tif", "CMYK", (255, 0, 0, 0))) == [0, 255, 255]
    assert pixel(made("lab.tif", "LAB", (255, 128, 128)))[0] > 250
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(save(tmp_path / "palette.png", palette)) == [10, 20, 30]
    assert pixel(save(tmp_path / "clear.png", palette, transparency=1), background=99) == [99]
    palette.putpalette([0, 0, 0, 40, 40, 40])
    assert pixel(save(tmp_path / "grey_palette.gif", palette)) == [40]
    assert pixel(save(tmp_path / "clear_grey.png", Image.new("L", (3, 2), 5), transparency=5), background=8) == [8]
    for value, expected in ((65535, 255), (0, 0), (32768, 128), (257, 1), (128, 0)):
        wide = np.full((2, 3), value, np.uint16)
        assert pixel(save(tmp_path / "wide.png", wide)) == [expected]
        assert pixel(save(tmp_path / "wide.tif", wide)) == [expected]
    assert decode(save(tmp_path / "one.png", grey(3, (1, 1))), 0).shape == (1, 1, 1)


def test_numbers_that_are_no_grey_levels(tmp_path: Path) -> None:
    save(tmp_path / "f.tif", Image.fromarray(np.full((2, 2), 0.5, np.float32)))
    with pytest.raises(Refused, match="f.tif .*fractions"):
        decode(tmp_path / "f.tif", 0)
    save(tmp_path / "i.tif", Image.fromarray(np.full((2, 2), 70_000, np.int32)))
    with pytest.raises(Refused, match="i.tif .*70000"):
        decode(tmp_path / "i.tif", 0)


def test_a_cameras_rotation_mark(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° to the right
    turned = decode(save(tmp_path / "photo.png", image, exif=exif), 0)
    np.testing.assert_array_equal(turned[..., 0], np.rot90(np.asarray(image), -1))


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_an_image_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000, zlib.compress(bytes(1000))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Refused, match="bomb.png"):
            decode(path, 0)
        path.write_bytes(png(10_000, 8_000, zlib.compress(bytes(1000))))  # Pillow itself would take this one
        with pytest.raises(Refused, match="10,000×8,000 pixels, more than the limit"):
            decode(path, 0)


def test_wider_than_any_task(tmp_path: Path) -> None:
    classes(tmp_path, 10)
    save(tmp_path / "cat" / "long.png", grey(0, (1, 5000)))
    with pytest.raises(Refused, match="long.png is 1×5000 pixels"):
        opened(tmp_path, height=5, width=5)


def test_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder.own, "MAX_BYTES", 399)
    with pytest.raises(Refused, match="20 images of 5×4×1 = 400 bytes"):
        opened(classes(tmp_path, 10))


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm"])
def test_truncated_and_damaged_files(ending: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    path = save(tmp_path / f"x.{ending}", noise)
    whole = path.read_bytes()
    decode(path, 0)
    for broken in (whole[: len(whole) // 2], whole[:20], b"", b"<html>login</html>"):
        path.write_bytes(broken)
        with pytest.raises(Refused, match=f"x.{ending} cannot be read as an image") as refused:
            decode(path, 0)
        assert "\n" not in str(refused.value)


def test_other_formats_under_an_image_name(tmp_path: Path) -> None:
    """Only the listed formats are opened, whatever Pillow knows besides: PostScript goes to an interpreter."""
    path = tmp_path / "page.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(Refused, match="page.png"):
        decode(path, 0)
    save(path, grey(3), format="PCX")
    assert Image.open(path).format == "PCX"
    with pytest.raises(Refused, match="page.png"):
        decode(path, 0)
    assert decode(save(path, grey(3), format="BMP"), 0).shape == (5, 4, 1)  # a listed one under a wrong ending is fine


def test_animations(tmp_path: Path) -> None:
    frames = [Image.fromarray(grey(i * 50)) for i in range(3)]
    frames[0].save(tmp_path / "move.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(Refused, match="move.gif holds 3 images"):
        decode(tmp_path / "move.gif", 0)


def test_links(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    classes(root, 10)
    classes(outside, 1)
    (root / "cat" / "again.png").symlink_to(root / "dog" / "000.png")
    assert opened(root).info.train == 17  # of 21
    (root / "cat" / "away.png").symlink_to(outside / "cat" / "000.png")
    with pytest.raises(Refused, match="away.png is a link to .*outside the data folder"):
        opened(root)
    (root / "cat" / "away.png").unlink()
    (root / "eel").symlink_to(outside / "cat")
    with pytest.raises(Refused, match="eel is a link"):
        opened(root)
    (root / "eel").unlink()
    (root / "cat" / "gone.png").symlink_to(root / "nothing.png")
    with pytest.raises(Refused, match="gone.png is a link to .*does not exist"):
        opened(root)
    (root / "cat" / "gone.png").unlink()
    (root / "cat" / "one.png").symlink_to(root / "cat" / "two.png")
    (root / "cat" / "two.png").symlink_to(root / "cat" / "one.png")
    with pytest.raises(Refused, match="one.png is a link "):
        opened(root)
    (root / "cat" / "one.png").unlink(), (root / "cat" / "two.png").unlink()
    (tmp_path / "by_link").symlink_to(root)
    assert opened(tmp_path / "by_link").info.train == 17  # the path itself may be a link


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    classes(tmp_path, 3)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    with pytest.raises(Refused, match="pipe.png is no regular file"):
        opened(tmp_path)


def test_a_file_without_the_right_to_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    classes(tmp_path, 10)
    (tmp_path / "cat" / "000.png").chmod(0)
    with pytest.raises(Refused, match="000.png"):
        opened(tmp_path)
