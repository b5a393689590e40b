"""House numbers: what is cut out and how it is labelled, and archives that do not fit together."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from svhn_archives import Photo, archive, archives, members_of, photo, struct_of

from attn_cli.commands.data import config_of, main
from attn_cli.data import download, prepared
from attn_cli.data.batches import open_data
from attn_cli.data.prepare import prepare
from attn_cli.data.prepared import EMPTY, Prepared
from attn_cli.data.sources import svhn
from attn_cli.data.sources.digit_struct import Digits
from attn_cli.data.sources.svhn import BEYOND, CROPS, END, Crop, cropped, label_row
from attn_cli.errors import Refused

SPLITS = ("train", "extra", "test")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archives(tmp_path_factory.mktemp("svhn") / "originals")


@pytest.fixture
def originals(made_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_once, tmp_path / "originals"))


def made(name: str, root: Path, originals: Path, log: list[str] | None = None, **keys: bool) -> Prepared:
    lines: list[str] = [] if log is None else log
    prepare(name, root, originals, lines.append, **keys)
    prepared._verified.clear()  # as a new process would
    return prepared.read(name, root)


def digits_of(one: Photo) -> Digits:
    left, top, width, height = np.array(one.boxes, float).T
    return Digits(np.stack([left, top, left + width, top + height], 1), np.array(one.labels, np.uint8) % 10)


# What is cut out


def naive(image: np.ndarray, boxes: np.ndarray, crop: Crop) -> np.ndarray:
    """The crop by sampling: every output pixel is the mean of a fine grid of points, the photo's edge repeated."""
    height, width = image.shape[:2]
    x0, y0 = np.maximum(boxes[:, :2].min(0), 0)
    x1, y1 = np.minimum(boxes[:, 2:].max(0), (width, height))
    cx, cy, w, h = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) * crop.factor, (y1 - y0) * crop.factor
    fine = 8
    steps = (np.arange(crop.side * fine) + 0.5) / (crop.side * fine) - 0.5
    columns = np.clip(np.floor(cx + steps * w).astype(int), 0, width - 1)
    rows = np.clip(np.floor(cy + steps * h).astype(int), 0, height - 1)
    points = image[rows[:, None], columns].astype(float)
    return points.reshape(crop.side, fine, crop.side, fine, -1).mean((1, 3))


@pytest.mark.parametrize("name", CROPS)
@pytest.mark.parametrize(
    "boxes",
    [
        [[60.0, 70.0, 90.0, 120.0], [90.0, 65.0, 118.0, 118.0]],
        [[2.0, 3.0, 40.0, 50.0]],  # what is widened leaves the photo
        [[-9.0, 20.0, 30.0, 210.0], [30.0, -4.0, 260.0, 40.0]],  # boxes reach outside
    ],
)
def test_the_crop_against_sampling(name: str, boxes: list[list[float]]) -> None:
    y, x = np.mgrid[0:200, 0:240]
    smooth = np.stack([127 + 100 * np.sin(x / 17 + k) * np.cos(y / 23) for k in range(3)], -1)
    image = smooth.astype(np.uint8)
    crop = CROPS[name]
    colour = cropped(image, np.array(boxes), crop, False, "1.png")
    assert colour.dtype == np.uint8 and colour.shape == (3, crop.side, crop.side)
    expected = naive(image, np.array(boxes), crop)
    assert np.abs(colour.transpose(1, 2, 0) - expected).max() < 4
    grey = cropped(image, np.array(boxes), crop, True, "1.png")
    assert grey.shape == (crop.side, crop.side)
    assert np.abs(grey - expected @ np.array([0.299, 0.587, 0.114])).max() < 4


def test_digits_keep_their_size_when_more_of_the_photo_is_shown() -> None:
    """The size of the box around all digits in pixels: the rule of svhn_110, and how svhn_128 differs."""
    image = np.zeros((200, 300, 3), np.uint8)
    image[80:120, 100:160] = 255
    box = np.array([[100.0, 80.0, 160.0, 120.0]])
    shown = {}
    for name, crop in CROPS.items():
        bright = cropped(image, box, crop, True, "1.png") > 127
        shown[name] = (bright.any(0).sum(), bright.any(1).sum())
        centre = np.argwhere(bright).mean(0)
        np.testing.assert_allclose(centre, (crop.side - 1) / 2, atol=0.6)
    assert shown == {"svhn": (49, 49), "svhn_110": (49, 49), "svhn_128": (56, 56)} or shown == {
        "svhn": (50, 50),
        "svhn_110": (50, 50),
        "svhn_128": (56, 56),
    }


def test_a_box_wholly_outside_is_refused() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    for box in ([30.0, 0, 40, 9], [0.0, -9, 9, 0], [5.0, 25, 9, 30]):
        with pytest.raises(Refused, match="a.tar.gz: 7.png is 30×20 pixels .* lies outside"):
            cropped(image, np.array([[1.0, 1, 9, 9], box]), CROPS["svhn"], True, "a.tar.gz: 7.png")


def test_a_photo_of_one_pixel_and_a_tiny_box() -> None:
    one = np.full((1, 1, 3), 77, np.uint8)
    for crop in CROPS.values():
        assert (cropped(one, np.array([[0.0, 0, 1, 1]]), crop, True, "1.png") == 77).all()
        assert (cropped(one, np.array([[0.4, 0.4, 0.5, 0.5]]), crop, False, "1.png") == 77).all()


# Labels


def test_labels_from_left_to_right() -> None:
    def row(lefts: list[float], classes: list[int]) -> list[int]:
        boxes = np.array([[left, 0, left + 5, 9] for left in lefts], float)
        return label_row(Digits(boxes, np.array(classes, np.uint8))).tolist()

    assert row([7], [0]) == [0, END, EMPTY, EMPTY, EMPTY, EMPTY]
    assert row([9, 2, 5], [1, 2, 3]) == [2, 3, 1, END, EMPTY, EMPTY]
    assert row([1, 1, 0], [4, 5, 6]) == [6, 4, 5, END, EMPTY, EMPTY]  # equal places keep the order of the file
    assert row([1, 2, 3, 4, 5], [9, 8, 7, 6, 5]) == [9, 8, 7, 6, 5, END]
    assert row([6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]) == [6, 5, 4, 3, 2, BEYOND]
    assert row(list(range(9)), [1] * 9) == [1, 1, 1, 1, 1, BEYOND]


# Whole archives


@pytest.mark.parametrize("name", prepared.SEQUENCES)
def test_every_data_set_from_archives(name: str, originals: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    found = made(name, root, originals)
    crop, grey = CROPS[name.removesuffix("_rgb")], not name.endswith("_rgb")
    shape = (crop.side, crop.side) if grey else (3, crop.side, crop.side)
    assert {split: array.shape for split, array in found.images.items()} == {"train": (50, *shape), "test": (8, *shape)}
    assert found.class_names == tuple("0123456789")
    for start, split, first in ((0, "train", 0), (1000, "train", 20), (2000, "test", 0)):
        for i in range(8):  # by number, train before extra
            one = photo(start + i)
            boxes = digits_of(one).boxes
            expected = cropped(one.pixels(i + 1), boxes, crop, grey, "")
            np.testing.assert_array_equal(found.images[split][first + i], expected)
            assert found.labels[split][first + i].tolist() == label_row(digits_of(one)).tolist()
    assert sorted(p.name for p in root.iterdir()) == [f".{name}.h5.lock", f"{name}.h5"]
    for split in SPLITS:
        digest = hashlib.sha256((originals / f"{split}.tar.gz").read_bytes()).hexdigest()
        assert f"{split}.tar.gz sha256 {digest}" in found.origin


def test_the_order_in_an_archive_does_not_matter(originals: Path, tmp_path: Path) -> None:
    """Images are kept by number, so that the same ones validate however an archive was packed."""
    one = made("svhn", tmp_path / "one", originals)
    photos = [photo(i) for i in range(20)]
    struct = struct_of([dataclasses.replace(photos[i], name=f"{i + 1}.png") for i in range(19, -1, -1)])
    archive(originals / "train.tar.gz", reversed(members_of("train", photos, struct)))
    other = made("svhn", tmp_path / "other", originals)
    assert one.content_sha256() == other.content_sha256() and one.origin != other.origin


def test_a_folder_gives_the_same_as_an_archive(originals: Path, tmp_path: Path) -> None:
    for start, split in ((0, "train"), (1000, "extra"), (2000, "test")):
        photos = [photo(start + i) for i in range({"train": 20, "extra": 30, "test": 8}[split])]
        (tmp_path / "folders" / split).mkdir(parents=True)
        for info, content in members_of(split, photos)[1:]:
            (tmp_path / "folders" / info.name).write_bytes(content)
    one = made("svhn", tmp_path / "one", originals)
    other = made("svhn", tmp_path / "other", tmp_path / "folders")
    assert one.content_sha256() == other.content_sha256()


def test_a_folder_may_lack_images_but_not_annotations(tmp_path: Path) -> None:
    photos = [photo(i) for i in range(6)]
    for split in SPLITS:
        (tmp_path / "from" / split).mkdir(parents=True)
        for info, content in members_of(split, photos)[1:]:
            (tmp_path / "from" / info.name).write_bytes(content)
    (tmp_path / "from" / "train" / "2.png").unlink()
    (tmp_path / "from" / "train" / "4.png").unlink()
    log: list[str] = []
    assert len(made("svhn", tmp_path / "root", tmp_path / "from", log).labels["train"]) == 10
    assert any("train: 2 of 6 images in digitStruct.mat are not in the folder" in line for line in log)
    (tmp_path / "from" / "extra" / "7.png").write_bytes(photos[0].png(0))
    with pytest.raises(Refused, match="extra and its digitStruct.mat do not match: 7.png is not in digitStruct.mat"):
        made("svhn_110", tmp_path / "root", tmp_path / "from")


def test_six_digits(tmp_path: Path) -> None:
    """Left out where they would train; in the test set with a label that no model can give."""
    six = [photo(0, digits=2), photo(1, digits=6), photo(2, digits=5)]
    log: list[str] = []
    found = made("svhn", tmp_path / "root", archives(tmp_path / "from", train=six, extra=six[:2], test=six), log)
    assert [(row < END).sum() for row in found.labels["train"]] == [2, 5, 2]
    assert found.labels["train"].max(initial=0, where=found.labels["train"] != EMPTY) == END
    assert len(found.labels["test"]) == 3
    assert found.labels["test"][1].tolist() == [*(label % 10 for label in six[1].labels[:5]), BEYOND]
    assert (
        "3 images (1 with more" not in found.origin and "2 images (1 with more than 5 digits left out)" in found.origin
    )


def test_archives_that_do_not_match(originals: Path, tmp_path: Path) -> None:
    photos = [photo(i) for i in range(5)]
    whole = members_of("train", photos)
    cases = {
        "3.png is missing": [m for m in whole if m[0].name != "train/3.png"],
        r"2 images \(2.png is the first\) are missing": [m for m in whole if m[0].name[6:] not in ("2.png", "5.png")],
        "4 images .2.png is the first. are not in digitStruct.mat": members_of("train", photos, struct_of(photos[:1])),
        "6.png is not in digitStruct.mat": members_of("train", [*photos, photos[0]], struct_of(photos)),
    }
    for message, members in cases.items():
        archive(originals / "train.tar.gz", members)
        with pytest.raises(Refused, match=f"train.tar.gz and its digitStruct.mat do not match: {message}"):
            made("svhn", tmp_path / "root", originals)
    assert [p.name for p in (tmp_path / "root").iterdir()] == [".svhn.h5.lock"]


def test_faults_in_annotations(originals: Path, tmp_path: Path) -> None:
    """Refused by name; left out with a count if the person says so."""
    photos = [photo(i, digits=2) for i in range(6)]
    photos[3] = dataclasses.replace(photos[3], fields={"left": [1.0, float("nan")]})
    photos[4] = dataclasses.replace(photos[4], fields={"label": [3.0]})
    archive(originals / "extra.tar.gz", members_of("extra", photos))
    with pytest.raises(Refused, match="extra.tar.gz: digitStruct.mat .*4.png has a left that is nan"):
        made("svhn", tmp_path / "root", originals)
    log: list[str] = []
    found = made("svhn", tmp_path / "root", originals, log, skip_faulty=True)
    assert len(found.labels["train"]) == 20 + 4 and "4 images (2 faulty left out)" in found.origin
    assert any("2 images left out, the first is 4.png, which has a left that is nan" in line for line in log)


def test_boxes_outside_are_left_out_if_told(tmp_path: Path) -> None:
    """Which is known when a photo is opened: after the annotations were read."""
    photos = [photo(i) for i in range(7)]
    photos[2] = dataclasses.replace(photos[2], boxes=[(900.0, 2.0, 8.0, 9.0)], labels=[1])
    photos[3] = dataclasses.replace(photos[3], fields={"label": []})
    photos[4] = dataclasses.replace(photos[4], boxes=[(3.0, -30.0, 8.0, 9.0)], labels=[1])
    good = [one for i, one in enumerate(photos) if i not in (2, 3, 4)]
    originals = archives(tmp_path / "from", train=photos, extra=good, test=photos)
    log: list[str] = []
    found = made("svhn", tmp_path / "root", originals, log, skip_faulty=True)
    assert found.origin.count("4 images (1 faulty, 2 with a box outside left out)") == 2
    assert any("train.tar.gz: 2 images have boxes outside, such as 3.png. They are left out." in line for line in log)
    for split, labels in {"train": [*good, *good], "test": good}.items():
        assert found.labels[split].tolist() == [label_row(digits_of(one)).tolist() for one in labels]
        assert all(image.max() > 150 for image in found.images[split])


def png(mode: str, size: tuple[int, int] = (60, 40), **keys: object) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(file, "PNG", **keys)
    return file.getvalue()


def bomb(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


JPEG = io.BytesIO()
Image.new("RGB", (60, 40)).save(JPEG, "JPEG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as an image"),
        (b"<html>", "cannot be read as an image"),
        (png("RGB")[:100], "cannot be read as an image"),
        (JPEG.getvalue(), "cannot be read as an image"),
        (bomb(9000), "has 9,000×9,000 pixels, more than the limit"),
        (bomb(20_000), "cannot be read as an image .*decompression bomb"),
        (png("RGB", (5, 5)), "is 5×5 pixels .* a box of its digits lies outside"),
    ],
    ids=["empty", "html", "cut", "jpeg", "large", "bomb", "smaller than its boxes"],
)
def test_images_that_are_refused(content: bytes, message: str, originals: Path, tmp_path: Path) -> None:
    """Row 32 of the list of faults."""
    photos = [photo(i) for i in range(3)]
    photos[1] = Photo((60, 40), [(10, 10, 20, 20)], [3], content)
    archive(originals / "test.tar.gz", members_of("test", photos))
    with pytest.raises(Refused, match=f"test.tar.gz: 2.png {message}") as refused:
        made("svhn", tmp_path / "root", originals)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "root" / "svhn.h5").exists()
    assert not list((tmp_path / "root").glob(".*tmp"))


def test_images_of_other_kinds(originals: Path, tmp_path: Path) -> None:
    """16 bits, palettes, grey and transparency become the same grey."""
    kinds = [png(mode) for mode in ("L", "RGB", "P", "RGBA", "LA")]
    wide = io.BytesIO()
    grey = np.asarray(Image.open(io.BytesIO(kinds[0])))
    Image.fromarray(grey.astype(np.uint16) * 257).save(wide, "PNG")
    photos = [Photo((60, 40), [(10, 10, 20, 20)], [3], content) for content in (*kinds, wide.getvalue())]
    archive(originals / "test.tar.gz", members_of("test", photos))
    images = made("svhn", tmp_path / "root", originals).images["test"].astype(int)
    assert images[0].std() > 10
    for image in images[1:]:
        assert np.abs(image - images[0]).max() <= 2


def test_a_damaged_original_is_refused_before_it_is_parsed(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive of the original's size must have its checksum; one of another size is somebody's own."""
    path = originals / "extra.tar.gz"
    whole = path.read_bytes()
    monkeypatch.setitem(
        svhn.FILES, "extra", svhn.Original(path.name, hashlib.sha256(whole).hexdigest(), path.stat().st_size)
    )
    log: list[str] = []
    made("svhn", tmp_path / "one", originals, log)
    assert sum("used as it is, as data of your own" in line for line in log) == 2
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(Refused, match="extra.tar.gz is damaged: expected sha256 .* got ") as refused:
        made("svhn", tmp_path / "two", originals)
    assert svhn.FILES["extra"].sha256 in str(refused.value)
    assert hashlib.sha256(damaged).hexdigest() in str(refused.value)
    path.unlink()
    with pytest.raises(Refused, match="holds neither extra.tar.gz nor a folder extra"):
        made("svhn", tmp_path / "two", originals)


# Download


@pytest.fixture
def server(originals: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves the archives of the test as if they were the originals."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(originals))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *words: None)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    monkeypatch.setattr(svhn, "MIRRORS", (f"http://127.0.0.1:{running.server_port}/",))
    for split in SPLITS:
        path = originals / f"{split}.tar.gz"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(svhn.FILES, split, svhn.Original(path.name, digest, path.stat().st_size))
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def test_downloads_once_for_all_data_sets(server: str, originals: Path, tmp_path: Path) -> None:
    root, log = tmp_path / "root", []
    data = open_data(dataclasses.replace(config_of("svhn_64"), root=str(root)), log=log.append)
    assert (data.info.train, data.info.validation, data.info.test) == (45, 5, 8)
    assert sum(line.startswith("downloading ") for line in log) == 3
    assert sorted(p.name for p in (root / "downloads" / "svhn").glob("*.gz")) == [f"{s}.tar.gz" for s in sorted(SPLITS)]
    log.clear()
    shutil.rmtree(originals)  # nothing is asked for again
    open_data(dataclasses.replace(config_of("svhn_110"), root=str(root)), log=log.append)
    assert not any("downloading" in line for line in log)


def test_what_another_data_set_downloads_is_left_alone(originals: Path, tmp_path: Path) -> None:
    """svhn… share a folder of archives, which whoever downloads locks; svhn has the same name."""
    under_way = tmp_path / "root" / "downloads" / "svhn" / "tmp1234"
    under_way.parent.mkdir(parents=True)
    under_way.touch()
    made("svhn", tmp_path / "root", originals)
    assert under_way.exists()


def test_a_wrong_archive_is_not_kept(server: str, originals: Path, tmp_path: Path) -> None:
    """What was finished before it is."""
    (originals / "extra.tar.gz").write_bytes(b"<html>not found</html>")
    config = dataclasses.replace(config_of("svhn"), root=str(tmp_path / "root"))
    with pytest.raises(Refused, match="extra.tar.gz cannot be downloaded .*attn data prepare svhn --from") as refused:
        open_data(config, log=lambda line: None)
    assert f"expected sha256 {svhn.FILES['extra'].sha256}, got " in str(refused.value)
    left = {p.name for p in (tmp_path / "root").rglob("*") if p.is_file()}
    assert left == {".svhn.h5.lock", ".archives.lock", "train.tar.gz", "svhn.h5.train.part"}


# Interrupted preparation


def test_finished_parts_are_used_again(originals: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    good = (originals / "test.tar.gz").read_bytes()
    (originals / "test.tar.gz").write_bytes(good[:-20])
    with pytest.raises(Refused, match="test.tar.gz cannot be used"):
        made("svhn", root, originals)
    parts = {p.name: p.read_bytes() for p in root.glob("*.part")}
    assert sorted(parts) == ["svhn.h5.extra.part", "svhn.h5.train.part"]
    assert not prepared.path_of("svhn", root).exists()
    (originals / "test.tar.gz").write_bytes(good)
    whole = made("svhn", tmp_path / "other", originals)

    def again(change: bytes | None = None) -> list[str]:
        for name, content in parts.items():
            (root / name).write_bytes(content)
        if change is not None:
            (root / "svhn.h5.extra.part").write_bytes(change)
        prepared.path_of("svhn", root).unlink(missing_ok=True)
        log: list[str] = []
        assert made("svhn", root, originals, log).content_sha256() == whole.content_sha256()
        assert not list(root.glob("*.part"))
        return [line.split(":")[0] for line in log if "finished before" in line]

    assert again() == ["train", "extra"]
    flipped = bytearray(parts["svhn.h5.extra.part"])
    flipped[len(flipped) // 2] ^= 1
    assert again(bytes(flipped)) == ["train"]
    assert again(b"junk") == ["train"]
    assert again(parts["svhn.h5.train.part"]) == ["train"]  # another archive's
    archive(originals / "extra.tar.gz", members_of("extra", [photo(5000 + i) for i in range(30)]))
    whole = made("svhn", tmp_path / "third", originals)
    assert again() == ["train"]  # the archive is another one now


CHILD = """
import os, signal, sys
from pathlib import Path
from attn_cli.data.prepare import prepare
root, originals, deadly, seen = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), 0

def event(name, arguments):
    global seen
    counted = ("open", "os.rename", "os.remove", "fsync")
    if name in counted and any(root in str(argument) for argument in arguments):
        seen += 1
        if seen == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(event)
true_fsync = os.fsync
def fsync(handle):
    event("fsync", (root,))
    true_fsync(handle)
os.fsync = fsync
prepare("svhn", Path(root), originals)
print("events", seen)
"""


def start(root: Path, originals: Path, deadly: int = 0) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(prepared.__file__).parents[2])}
    command = [sys.executable, "-c", CHILD, str(root), str(originals), str(deadly)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_killed_half_way(tmp_path: Path) -> None:
    """Absent or complete, whenever the process dies; what is left is used or cleared by the next one."""
    originals = archives(tmp_path / "from", train=[photo(0)], extra=[photo(1)], test=[photo(2)])
    out, errors = start(tmp_path / "counted", originals).communicate()
    events = int(out.split()[-1])
    whole = prepared.read("svhn", tmp_path / "counted")
    deaths = [*range(2, events, 11), events - 1, events]
    children = {n: start(tmp_path / str(n), originals, n) for n in deaths}
    outcomes = []
    for n, child in children.items():
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        root = tmp_path / str(n)
        outcomes.append((root / "svhn.h5").exists())
        if outcomes[-1]:
            assert prepared.read("svhn", root).content_sha256() == whole.content_sha256()
    assert outcomes[0] is False and outcomes[-1] is True
    for n in deaths:
        root = tmp_path / str(n)
        prepare("svhn", root, originals, lambda line: None)
        assert prepared.read("svhn", root).content_sha256() == whole.content_sha256()
        assert {p.name for p in root.iterdir()} == {"svhn.h5", ".svhn.h5.lock"}


def test_full_disk(originals: Path, tmp_path: Path) -> None:
    """The limit on file sizes stands for the full disk."""
    program = f"""
import resource, signal
from pathlib import Path
from attn_cli.data.prepare import prepare
from attn_cli.errors import Refused
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (3000, 30000, 60000, 150000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        prepare("svhn", Path({str(tmp_path / "root")!r}), Path({str(originals)!r}), lambda line: None)
    except Refused as refused:
        print(refused)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(prepared.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all("cannot be written (File too large)" in line for line in lines), done.stderr
    left = {p.name for p in (tmp_path / "root").iterdir()}
    assert "svhn.h5" not in left and not any(name.endswith(".tmp") for name in left)


# The command


def test_the_command(originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path / "root")]
    for name in ("svhn", "svhn_110", "svhn_64", "svhn_128"):
        with pytest.raises(Refused, match=f"data={name} is not prepared .*`attn data prepare svhn.* --root"):
            main(["info", name, *root])
    assert main(["prepare", "svhn_64", "--from", str(originals), *root]) == 0
    assert f"svhn_64 is ready: {tmp_path / 'root' / 'svhn.h5'}" in capsys.readouterr().out
    assert main(["list", *root]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert "prepared" in rows["svhn"] and "54×54" in rows["svhn"] and "prepared" in rows["svhn_64"]
    assert "downloads 2.6 GB" in rows["svhn_110"] and "110×110" in rows["svhn_110"]
    assert main(["info", "svhn", *root]) == 0
    out = capsys.readouterr().out
    lines = [line.replace("|", " ").split() for line in out.splitlines()]
    assert ["images", "45", "5", "8"] in lines and "up to 5 from left to right" in out and "1×54×54" in out
    assert "SVHN Format 1, 1.3 times" in out
    assert main(["prepare", "svhn", "--rgb", "--from", str(originals), *root]) == 0
    assert (tmp_path / "root" / "svhn_rgb.h5").exists()
    with pytest.raises(Refused, match="--rgb and --skip-faulty are for svhn"):
        main(["prepare", "digits", "--rgb", *root])


def test_a_damaged_colour_file_names_its_command(tmp_path: Path) -> None:
    (tmp_path / "svhn_110_rgb.h5").write_bytes(b"junk")
    with pytest.raises(Refused, match="`attn data prepare svhn_110 --rgb --root "):
        prepared.read("svhn_110_rgb", tmp_path)


@pytest.mark.real_data
def test_genuine_images(real_data: Path, tmp_path: Path) -> None:
    """Nine photos as they came, with the digits that a person sees in them."""
    sample = real_data / "svhn" / "sample"
    if not sample.is_dir():
        pytest.skip(f"no {sample}")
    found = made("svhn", tmp_path, sample)
    rows = [*found.labels["train"], *found.labels["test"]]
    read = ["".join(map(str, row[row < END])) for row in rows]
    assert read == ["19", "23", "25", "478", "71", "174", "5", "210", "6"]
    assert found.content_sha256() == "73a4ecf078ea10851e7152d93cf5569c0f39e6f6c0abbf575c4c29d46298996f"
