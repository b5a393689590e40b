"""Birds out of archives and folders in their layout, and lists and images that lie (rows 24, 31, 32 and 33)."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from cub200_layout import TOP, box_of, folder, layout, original, path_of, photo, size_of
from PIL import Image

from attn_cli.commands.data import main
from attn_cli.data import prepared
from attn_cli.data.prepare import prepare
from attn_cli.data.sources import cub200
from attn_cli.data.sources.cub200_lists import Bird
from attn_cli.errors import Refused

FILES = layout(12, 3)


def made(root: Path, originals: Path) -> prepared.Prepared:
    prepare("cub200", root, originals, log=lambda line: None)
    prepared._verified.clear()  # as a new process would
    return prepared.read("cub200", root)


def loaded(path: Path) -> prepared.Prepared:
    return cub200.load(path, lambda line: None)


def bird(box: tuple[float, float, float, float]) -> Bird:
    return Bird("images.txt line 7", "a.jpg", 0, "train", box, "bounding_boxes.txt line 9")


def jpeg(image: Image.Image, **keys: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, **keys)
    return file.getvalue()


# What is prepared


def test_an_archive_becomes_images_labels_and_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image by image, in the order of their IDs."""
    found = made(tmp_path / "root", original(tmp_path, FILES, monkeypatch))
    assert found.class_names == ("001.Bird_0", "002.Bird_1", "003.Bird_2") and cub200.ARCHIVE.md5 in found.origin
    expected = {"test": [3, 7, 11], "train": [i for i in range(12) if i % 4 != 3]}
    assert set(found.images) == set(found.labels) == set(found.boxes) == set(expected)
    for split, numbers in expected.items():
        assert found.images[split].shape == (len(numbers), 3, 256, 256)
        assert found.labels[split].tolist() == [i % 3 for i in numbers]
        for row, i in enumerate(numbers):
            image = Image.open(io.BytesIO(FILES[f"images/{path_of(i, 3)}"])).resize(
                (256, 256), Image.Resampling.BILINEAR
            )
            np.testing.assert_array_equal(found.images[split][row].transpose(1, 2, 0), np.asarray(image))
            (width, height), (x, y, w, h) = size_of(i), box_of(i)
            edges = [x * 256 / width, y * 256 / height, (x + w) * 256 / width - 1, (y + h) * 256 / height - 1]
            assert np.abs(found.boxes[split][row] - np.array(edges)).max() <= 0.5
    assert sorted(p.name for p in (tmp_path / "root").iterdir()) == [".cub200.h5.lock", "cub200.h5"]


def test_the_box_is_where_the_bird_is(tmp_path: Path) -> None:
    """The bright rectangle of the photo, found again in the resized image."""
    found = loaded(folder(tmp_path / "birds", FILES))
    for image, box in zip(found.images["train"], found.boxes["train"], strict=True):
        rows, columns = (np.flatnonzero((image[0] > 190).mean(axis) > 0.3) for axis in (1, 0))
        seen = np.array([columns[0], rows[0], columns[-1], rows[-1]])
        assert np.abs(seen - box).max() <= 9  # a pixel of the photo is up to 8.5 wide


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.0, 0.0, 512.0, 128.0), [0, 0, 255, 255]),  # the whole photo of 512×128
        ((100.0, 32.0, 200.0, 64.0), [50, 64, 149, 191]),
        ((100.0, 32.0, 1.0, 0.5), [50, 64, 50, 64]),  # never less than a pixel
        ((511.5, 127.9, 0.5, 0.1), [255, 255, 255, 255]),
        ((-50.0, -9.0, 60.0, 20.0), [0, 0, 4, 21]),  # what reaches outside ends at the edge
        ((500.0, 100.0, 900.0, 900.0), [250, 200, 255, 255]),
        ((3.0, 1.0, 4.9, 2.2), [2, 2, 3, 5]),  # edges 1.5, 2, 3.95 and 6.4, rounded
    ],
)
def test_boxes_by_hand(box: tuple[float, float, float, float], expected: list[int]) -> None:
    content = jpeg(Image.new("RGB", (512, 128)))
    assert cub200.shrunk(content, bird(box), "a.jpg")[1].tolist() == expected


@pytest.mark.parametrize("box", [(512.0, 0.0, 5.0, 5.0), (-9.0, 0.0, 9.0, 5.0), (0.0, 128.0, 5.0, 5.0), (1e300,) * 4])
def test_a_box_outside_its_photo(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(Refused, match="bounding_boxes.txt line 9 has a box outside the 512×128 pixels of a.jpg"):
        cub200.shrunk(jpeg(Image.new("RGB", (512, 128))), bird(box), "a.jpg")


def test_a_folder_gives_the_same_as_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(tmp_path / "root", original(tmp_path, FILES, monkeypatch))
    other = loaded(folder(tmp_path / "birds", FILES))
    assert one.content_sha256() == other.content_sha256() and one.class_names == other.class_names
    for name in (name for name in FILES if name.endswith(".txt")):  # line ends of another system, no last line end
        (tmp_path / "birds" / name).write_bytes(FILES[name].replace(b"\n", b"\r\n").rstrip() + b"\r\n\r\n")
    assert loaded(tmp_path / "birds").content_sha256() == one.content_sha256()


def test_the_order_of_the_lists_does_not_matter(tmp_path: Path) -> None:
    one = loaded(folder(tmp_path / "one", FILES))
    turned = {n: b"\n".join(reversed(c.split(b"\n"))) if n.endswith(".txt") else c for n, c in FILES.items()}
    assert loaded(folder(tmp_path / "other", turned)).content_sha256() == one.content_sha256()


# Lists that lie


def line(name: str, number: int, text: bytes) -> dict[str, bytes]:
    """The list with another line of that number."""
    lines = FILES[name].split(b"\n")
    lines[number - 1] = text
    return {name: b"\n".join(lines)}


LIES = {
    "upwards": (line("images.txt", 5, b"5 ../../secret.jpg"), "line 5 names '../../secret.jpg', which is no path"),
    "upwards inside": (line("images.txt", 5, b"5 a/../../../secret.jpg"), "images.txt line 5 names .* no path below"),
    "absolute": (line("images.txt", 5, b"5 /etc/passwd"), "images.txt line 5 names '/etc/passwd', which is no path"),
    "nul": (line("images.txt", 5, b"5 a\0.jpg"), r"images.txt line 5 names 'a\\x00.jpg', which is no path"),
    "missing file": (line("images.txt", 5, b"5 001/none.jpg"), "images.txt line 5 names 001/none.jpg, which "),
    "twice": (line("images.txt", 5, b"5 " + path_of(0, 3).encode()), "line 5 names .* as .*images.txt line 1 does"),
    "no path": (line("images.txt", 5, b"5"), "images.txt line 5 is not of the form ID PATH"),
    "no number": (line("images.txt", 5, b"five a.jpg"), "images.txt line 5 is not of the form ID PATH"),
    "huge number": (line("images.txt", 5, b"9" * 5000 + b" a.jpg"), "images.txt line 5 is not of the form ID PATH"),
    "not UTF-8": (line("images.txt", 5, b"5 \xff.jpg"), "images.txt line 5 is no UTF-8 text"),
    "same number": (line("images.txt", 5, b"4 a.jpg"), "images.txt line 5 is for 4, as .*images.txt line 4 is"),
    "no label": (line("image_class_labels.txt", 5, b""), "labels.txt has no line for image 5, .*images.txt line 5"),
    "no split": (line("train_test_split.txt", 12, b""), "train_test_split.txt has no line for image 12"),
    "no box": (line("bounding_boxes.txt", 1, b""), "bounding_boxes.txt has no line for image 1"),
    "no image": (line("images.txt", 5, b""), "line 5 is for image 5, which images.txt does not list"),
    "class 0": (line("image_class_labels.txt", 7, b"7 0"), "image_class_labels.txt line 7 has class '0', .* 1 to 3"),
    "class 4": (line("image_class_labels.txt", 7, b"7 4"), "image_class_labels.txt line 7 has class '4', .* 1 to 3"),
    "class -1": (line("image_class_labels.txt", 7, b"7 -1"), "image_class_labels.txt line 7 has class '-1'"),
    "class 1.0": (line("image_class_labels.txt", 7, b"7 1.0"), "image_class_labels.txt line 7 has class '1.0'"),
    "split 2": (line("train_test_split.txt", 7, b"7 2"), "train_test_split.txt line 7 has '2', 1 is for training"),
    "NaN": (line("bounding_boxes.txt", 7, b"7 1 nan 3 4"), "bounding_boxes.txt line 7 has no box, but '1 nan 3 4'"),
    "infinite": (line("bounding_boxes.txt", 7, b"7 1 2 inf 4"), "bounding_boxes.txt line 7 has no box"),
    "no width": (line("bounding_boxes.txt", 7, b"7 1 2 0 4"), "bounding_boxes.txt line 7 has no box"),
    "negative height": (line("bounding_boxes.txt", 7, b"7 1 2 3 -4"), "bounding_boxes.txt line 7 has no box"),
    "three numbers": (line("bounding_boxes.txt", 7, b"7 1 2 3"), "boxes.txt line 7 is not of the form ID X Y"),
    "no numbers": (line("bounding_boxes.txt", 7, b"7 a b c d"), "boxes.txt line 7 is not of the form ID X Y"),
    "outside": (line("bounding_boxes.txt", 7, b"7 900 2 3 4"), "boxes.txt line 7 has a box outside the .* pixels"),
    "gap in classes": (line("classes.txt", 2, b"5 five"), "classes.txt must number 1 to 255 classes"),
    "no classes": ({"classes.txt": b""}, "classes.txt must number 1 to 255 classes"),
    "300 classes": ({"classes.txt": b"".join(b"%d c\n" % k for k in range(1, 301))}, "must number 1 to 255"),
    "no images": ({"images.txt": b"\n"}, "images.txt lists no images"),
    "all train": ({"train_test_split.txt": b"".join(b"%d 1\n" % i for i in range(1, 13))}, "has no image to test with"),
    "all test": ({"train_test_split.txt": b"".join(b"%d 0\n" % i for i in range(1, 13))}, "has no image to train with"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIES)
@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_lists_that_lie_are_refused(kind: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, message = LIES[kind]
    (tmp_path / "secret.jpg").write_bytes(jpeg(photo(0)))
    with pytest.raises(Refused, match=message) as refused:
        if packed:
            made(tmp_path / "root", original(tmp_path, {**FILES, **change}, monkeypatch))
        else:
            loaded(folder(tmp_path / "a" / "birds", {**FILES, **change}))
    place = f"{tmp_path / cub200.ARCHIVE.name}: {TOP}/" if packed else f"{tmp_path / 'a' / 'birds'}/"
    assert place in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert not packed or [p.name for p in (tmp_path / "root").iterdir()] == [".cub200.h5.lock"]


def test_links_of_a_folder_stay_below_its_images(tmp_path: Path) -> None:
    birds, name = folder(tmp_path / "birds", FILES), path_of(2, 3)
    image = birds / "images" / name
    (tmp_path / "outside.jpg").write_bytes(image.read_bytes())
    whole = loaded(birds).content_sha256()
    image.rename(birds / "images" / "kept.jpg")
    image.symlink_to("../kept.jpg")
    assert loaded(birds).content_sha256() == whole
    for target, reason in (
        (tmp_path / "outside.jpg", "leads out of"),
        (birds / "images.txt", "leads out of"),
        (birds / "images" / "nowhere.jpg", "is not in"),
        (image, "cannot be read"),
        (birds / "images" / "001.Bird_0", "is no regular file"),
    ):
        image.unlink()
        image.symlink_to(target)
        with pytest.raises(Refused, match=f"{name}.* {reason}"):
            loaded(birds)
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(Refused, match=f"images.txt line 3 names {name}, which is no regular file"):
        loaded(birds)


def test_a_folder_without_a_list(tmp_path: Path) -> None:
    birds = folder(tmp_path / "birds", FILES)
    (birds / "bounding_boxes.txt").unlink()
    with pytest.raises(Refused, match="bounding_boxes.txt cannot be read .No such file"):
        loaded(birds)
    os.mkfifo(birds / "bounding_boxes.txt")
    with pytest.raises(Refused, match="bounding_boxes.txt is no regular file"):
        loaded(birds)
    with pytest.raises(Refused, match="nowhere is not a folder: give one with images.txt, "):
        loaded(tmp_path / "nowhere")


# Images that lie


def other(kind: str) -> bytes:
    whole = FILES[f"images/{path_of(4, 3)}"]
    large = io.BytesIO()
    Image.new("1", (9000, 9000)).save(large, "PNG")
    return {"cut": whole[: len(whole) // 2], "empty": b"", "html": b"<html>", "bomb": large.getvalue()}[kind]


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "cannot be read as an image .*truncated"),
        ("empty", "cannot be read as an image"),
        ("html", "cannot be read as an image"),
        ("bomb", "has 9,000×9,000 pixels, more than the limit"),
    ],
)
def test_images_that_are_refused(
    kind: str, message: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {**FILES, f"images/{path_of(4, 3)}": other(kind)}
    with pytest.raises(Refused, match=f"images/{path_of(4, 3)} {message}"):
        if packed:
            made(tmp_path / "root", original(tmp_path, changed, monkeypatch))
        else:
            loaded(folder(tmp_path / "birds", changed))
    assert not packed or [p.name for p in (tmp_path / "root").iterdir()] == [".cub200.h5.lock"]


def test_images_of_other_kinds() -> None:
    """Grey, CMYK, palettes, 16 bits and one pixel become RGB; a rotation mark is not applied, as boxes know none."""
    rgb = Image.linear_gradient("L").resize((60, 40))
    box = bird((1.0, 1.0, 9.0, 9.0))
    plain = cub200.shrunk(jpeg(rgb.convert("RGB")), box, "a.jpg")[0].astype(int)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90°
    palette, wide = io.BytesIO(), io.BytesIO()
    rgb.convert("P").save(palette, "PNG")
    Image.fromarray(np.asarray(rgb).astype(np.uint16) * 257).save(wide, "PNG")
    kinds = (jpeg(rgb), jpeg(rgb.convert("CMYK")), jpeg(rgb, exif=exif), palette.getvalue(), wide.getvalue())
    for content in kinds:
        image = cub200.shrunk(content, box, "a.jpg")[0]
        assert image.shape == (3, 256, 256) and np.abs(image - plain).max() <= 6
    image, found = cub200.shrunk(jpeg(Image.new("L", (1, 1), 77)), bird((0.0, 0.0, 1.0, 1.0)), "a.jpg")
    assert (image == 77).all() and found.tolist() == [0, 0, 255, 255]


# Archives that lie


def test_the_checksum_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped byte and an archive of one's own are refused with both sums, and nothing in them is read."""
    genuine = cub200.ARCHIVE
    originals = original(tmp_path, FILES, monkeypatch)
    path = tmp_path / genuine.name
    whole = path.read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    monkeypatch.setattr(cub200, "members", None)  # parsing would fail otherwise
    for content, expected in ((flipped, cub200.ARCHIVE), (whole, genuine)):
        path.write_bytes(content)
        monkeypatch.setattr(cub200, "ARCHIVE", expected)
        with pytest.raises(Refused, match=f"{path} is not the original file: expected md5 {expected.md5}, got ") as no:
            made(tmp_path / "root", originals)
        assert hashlib.md5(content).hexdigest() in str(no.value)
    assert genuine == cub200.Original("CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78", 1_150_585_339)


@pytest.mark.parametrize(
    ("name", "link", "message"),
    [
        ("classes.txt", None, "CUB_200_2011.tgz cannot be used .it holds no CUB_200_2011/classes.txt"),
        ("classes.txt", "/etc/passwd", "CUB_200_2011.tgz cannot be used .it holds no CUB_200_2011/classes.txt"),
        (f"images/{path_of(4, 3)}", None, "images.txt line 5 names .*, which the archive does not hold"),
        (f"images/{path_of(4, 3)}", "../../x", "images.txt line 5 names .*, which the archive does not hold"),
    ],
)
def test_only_regular_members_are_read(
    name: str, link: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = original(tmp_path, {n: c for n, c in FILES.items() if n != name}, monkeypatch)
    if link is not None:
        path = originals / cub200.ARCHIVE.name
        with tarfile.open(path) as tar:
            members = [(info, tar.extractfile(info)) for info in tar]
            with tarfile.open(tmp_path / "new.tgz", "w:gz") as new:
                for info, file in members:
                    new.addfile(info, file)
                info = tarfile.TarInfo(f"{TOP}/{name}")
                info.type, info.linkname = tarfile.SYMTYPE, link
                new.addfile(info)
        os.replace(tmp_path / "new.tgz", path)
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setattr(cub200, "ARCHIVE", cub200.Original(path.name, digest, path.stat().st_size))
    with pytest.raises(Refused, match=message):
        made(tmp_path / "root", originals)


# Interrupted preparation, and the command

CHILD = """
import os, signal, sys
from pathlib import Path
from attn_cli.data import writing
from attn_cli.data.prepare import prepare
from attn_cli.data.sources import cub200
root, originals, md5, deadly = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
cub200.ARCHIVE = cub200.Original("CUB_200_2011.tgz", md5, 0)
shrunk, seen = cub200.shrunk, 0

def counted(*arguments):
    global seen
    seen += 1
    if seen == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return shrunk(*arguments)

cub200.shrunk = counted
prepare("cub200", root, originals)
"""


def test_killed_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing counts that a killed process left, and the next one clears it."""
    originals, root = original(tmp_path, FILES, monkeypatch), tmp_path / "root"
    environment = {**os.environ, "PYTHONPATH": str(Path(prepared.__file__).parents[2])}
    command = [sys.executable, "-c", CHILD, str(root), str(originals), cub200.ARCHIVE.md5, "7"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(p.name.endswith(".tmp") for p in root.iterdir())
    with pytest.raises(FileNotFoundError):
        prepared.read("cub200", root)
    assert made(root, originals).content_sha256() == loaded(folder(tmp_path / "birds", FILES)).content_sha256()
    assert sorted(p.name for p in root.iterdir()) == [".cub200.h5.lock", "cub200.h5"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path / "root")]

    def listed() -> str:
        assert main(["list", *root]) == 0
        (row,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["cub200"])
        return row

    row = listed()
    assert all(shown in row for shown in ("224×224", " 200 ", "downloads 1.2 GB on first use"))
    with pytest.raises(Refused, match="data=cub200 is not prepared .*`attn data prepare cub200 --root"):
        main(["info", "cub200", *root])
    assert main(["prepare", "cub200", "--from", str(original(tmp_path, FILES, monkeypatch)), *root]) == 0
    assert "cub200 is ready: " in capsys.readouterr().out
    assert "prepared" in listed()
    birds = folder(tmp_path / "birds", FILES)
    for name in ("cub200", str(birds)):
        assert main(["info", name, *root]) == 0
        out = capsys.readouterr().out
        assert "3×224×224" in out and "003.Bird_2" in out
        assert ["all", "8", "1", "3"] in [line.replace("|", " ").split() for line in out.splitlines()]


def test_boxes_that_leave_their_images(tmp_path: Path) -> None:
    """A forged file is refused when it is read."""
    from attn_cli.data.writing import write

    birds = loaded(folder(tmp_path / "birds", FILES))
    for box in ([5, 5, 4, 9], [5, 5, 9, 4]):
        birds.boxes["test"][1] = box
        write(birds, tmp_path / "cub200.h5")
        with pytest.raises(Refused, match="test has a box that does not lie within its image"):
            prepared.read("cub200", tmp_path)
