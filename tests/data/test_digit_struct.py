"""digitStruct.mat against files that lie (rows 27 and 28 of the list of faults), and genuine ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from svhn_archives import Photo, photo, struct_of

from attn_cli.data.sources import digit_struct
from attn_cli.errors import Refused

PHOTOS = [photo(i, digits=3) for i in range(4)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "digitStruct.mat").write_bytes(struct_of(PHOTOS))
    return tmp_path / "digitStruct.mat"


def read(path: Path, faulty: dict[int, str] | None = None) -> dict[int, digit_struct.Digits]:
    return digit_struct.read(path, "a.tar.gz: digitStruct.mat", faulty)


def test_reads_what_was_written(tmp_path: Path) -> None:
    photos = [photo(i, digits=1 + i % 5) for i in range(12)]
    path = tmp_path / "digitStruct.mat"
    path.write_bytes(struct_of(photos))
    found = read(path)
    assert list(found) == list(range(1, 13))
    for number, digits in found.items():
        one = photos[number - 1]
        assert digits.classes.tolist() == [label % 10 for label in one.labels]  # 10 is a zero
        left, top, width, height = np.array(one.boxes).T
        np.testing.assert_array_equal(digits.boxes, np.stack([left, top, left + width, top + height], 1))


def change_field(field: str, value: Callable[[h5py.File], object]) -> Callable[[h5py.File], None]:
    """Replaces a field of 2.png, which holds three digits."""

    def change(file: h5py.File) -> None:
        group = file[file["digitStruct/bbox"][1, 0]]
        made = value(file)
        if isinstance(made, (h5py.SoftLink, h5py.ExternalLink)):
            del group[field]
            group[field] = made
        else:
            data = group[field][()]
            data[1, 0] = made
            group[field][...] = data

    return change


def change_top(field: str, value: Callable[[h5py.File], object]) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[f"digitStruct/{field}"][1] = [value(file)]

    return change


def dangling(file: h5py.File) -> h5py.Reference:
    data = file["#refs#"].create_dataset("gone", data=np.array([[1.0]]))
    reference = data.ref
    del file["#refs#/gone"]
    return reference


def number(value: float) -> Callable[[h5py.File], h5py.Reference]:
    return lambda file: file["#refs#"].create_dataset("new", data=np.array([[value]])).ref


def array(*args: object, **keys: object) -> Callable[[h5py.File], h5py.Reference]:
    return lambda file: file["#refs#"].create_dataset("new", *args, **keys).ref


def text(name: str) -> Callable[[h5py.File], h5py.Reference]:
    return array(data=np.array([[ord(c)] for c in name], np.uint16))


def virtual(file: h5py.File) -> h5py.Reference:
    layout = h5py.VirtualLayout((1, 1), np.float64)
    layout[:] = h5py.VirtualSource("secret.h5", "secret", (1, 1))
    return file["#refs#"].create_virtual_dataset("new", layout).ref


def replaced(name: str, **how: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **how)

    return change


def linked(name: str, link: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


# Of 2.png alone: such an image may be left out, if the person says so.
OF_ONE_IMAGE = {
    "null": (change_field("left", lambda file: h5py.Reference()), "has a left that is a null reference"),
    "dangling": (change_field("top", dangling), "has a top that is a dangling reference"),
    "wrong kind": (change_field("width", lambda file: file["#refs#"].ref), "has a width that is no array"),
    "text for a number": (change_field("label", text("7")), "has a label that is 55|not 1 to 10"),
    "two numbers": (change_field("label", array(data=np.ones((2, 1)))), "has a label that is not one number"),
    "NaN": (change_field("left", number(float("nan"))), "has a left that is nan"),
    "infinite": (change_field("height", number(float("inf"))), "has a height that is inf"),
    "far away": (change_field("left", number(1e30)), "has a left that is 1e.30"),
    "no width": (change_field("width", number(0)), "has a box without area"),
    "negative height": (change_field("height", number(-3)), "has a box without area"),
    "label 0": (change_field("label", number(0)), "has the label 0, not 1 to 10"),
    "label 11": (change_field("label", number(11)), "has the label 11, not"),
    "label 1.5": (change_field("label", number(1.5)), "has the label 1.5, not"),
    "external": (change_field("left", array((1, 1), "f8", external=[("secret.h5", 0, 8)])), "stored in other files"),
    "virtual": (change_field("left", virtual), "stored in other files"),
    "in chunks": (change_field("left", array((1, 1), "f8", maxshape=(None, 1), chunks=(2**25, 1))), "or in pieces"),
    "soft link": (change_field("left", lambda file: h5py.SoftLink("/#refs#/v0")), "has a left that is a link"),
    "external link": (change_field("left", lambda file: h5py.ExternalLink("secret.h5", "/secret")), "is a link"),
    "null bbox": (change_top("bbox", lambda file: h5py.Reference()), "has a null reference to its bbox"),
    "dangling bbox": (change_top("bbox", dangling), "has a dangling reference|has a bbox that is no group"),
    "bbox is no group": (change_top("bbox", array(data=np.zeros(2, np.uint64))), "has a bbox that is no group"),
    "no field": (lambda file: file[file["digitStruct/bbox"][1, 0]].__delitem__("top"), "has a top that is missing"),
}
OF_THE_FILE = {
    "null name": (change_top("name", lambda file: h5py.Reference()), "name of entry 2 is a null reference"),
    "dangling name": (change_top("name", dangling), "name of entry 2"),
    "name is a number": (change_top("name", number(7.0)), "name of entry 2 is no text"),
    "name is a group": (change_top("name", lambda file: file["#refs#"].ref), "name of entry 2 is no array"),
    "another name": (change_top("name", text("../2.png")), "entry 2 is called '../2.png'"),
    "leading zero": (change_top("name", text("02.png")), "entry 2 is called '02.png'"),
    "twice": (change_top("name", text("1.png")), "1.png is there twice"),
    "long name": (change_top("name", text("1" * 60 + ".png")), "name of entry 2 is no text"),
    "giant": (replaced("digitStruct/name", shape=(2**40, 1), dtype=h5py.ref_dtype), "more than the limit"),
    "not references": (replaced("digitStruct/bbox", data=np.zeros((4, 1))), "expected references"),
    "one less": (replaced("digitStruct/bbox", data=np.empty((3, 1), h5py.ref_dtype), dtype=h5py.ref_dtype), "4 names"),
    "two columns": (replaced("digitStruct/bbox", data=np.empty((4, 2), h5py.ref_dtype), dtype=h5py.ref_dtype), "one c"),
    "no digitStruct": (lambda file: file.__delitem__("digitStruct"), "has no digitStruct of its own"),
    "digitStruct elsewhere": (linked("digitStruct", h5py.ExternalLink("secret.h5", "/")), "digitStruct of its own"),
    "digitStruct is an array": (replaced("digitStruct", data=np.zeros(3)), "digitStruct is no group"),
    "no name": (lambda file: file["digitStruct"].__delitem__("name"), "name is missing"),
}


def changed(path: Path, change: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path.with_name("secret.h5"), "w") as file:
        file["secret"] = np.ones((1, 1))
    with h5py.File(path, "r+") as file:
        change(file)
    return path


@pytest.mark.parametrize("kind", [*OF_ONE_IMAGE, *OF_THE_FILE])
def test_a_lie_is_refused(kind: str, path: Path) -> None:
    change, message = {**OF_ONE_IMAGE, **OF_THE_FILE}[kind]
    changed(path, change)
    with pytest.raises(Refused, match=message) as refused:
        read(path)
    sentence = str(refused.value)
    assert sentence.startswith("a.tar.gz: digitStruct.mat cannot be used (") and "\n" not in sentence
    assert "2.png" in sentence or kind in OF_THE_FILE


@pytest.mark.parametrize("kind", [*OF_ONE_IMAGE, *OF_THE_FILE])
def test_a_faulty_image_can_be_left_out(kind: str, path: Path) -> None:
    change, message = {**OF_ONE_IMAGE, **OF_THE_FILE}[kind]
    changed(path, change)
    faulty: dict[int, str] = {}
    if kind in OF_THE_FILE:
        with pytest.raises(Refused, match=message):
            read(path, faulty)
    else:
        assert list(read(path, faulty)) == [1, 3, 4]
        assert list(faulty) == [2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"left": [1, 2]}, "3.png has lists of unequal length: 2 left, 3 top, 3 width, 3 height, 3 label"),
        ({"label": [4]}, "3.png has lists of unequal length: .* 1 label"),
        ({key: [] for key in ("left", "top", "width", "height", "label")}, "3.png has no digits"),
        ({key: [5] * 65 for key in ("left", "top", "width", "height", "label")}, "3.png has a left that has 65 values"),
    ],
)
def test_lists_that_do_not_fit(fields: dict[str, list[float]], message: str, tmp_path: Path) -> None:
    photos = [*PHOTOS[:2], Photo(PHOTOS[2].size, PHOTOS[2].boxes, PHOTOS[2].labels, fields=fields)]
    (tmp_path / "digitStruct.mat").write_bytes(struct_of(photos))
    with pytest.raises(Refused, match=message):
        read(tmp_path / "digitStruct.mat")


def test_no_hdf5_at_all(tmp_path: Path) -> None:
    path = tmp_path / "digitStruct.mat"
    whole = struct_of(PHOTOS)
    for content in (b"", b"<html>not found</html>", whole[:600], whole[: len(whole) // 2], whole[:512] + bytes(9000)):
        path.write_bytes(content)
        with pytest.raises(Refused, match="a.tar.gz: digitStruct.mat cannot be used"):
            read(path)


@pytest.mark.real_data
@pytest.mark.parametrize("split", ["train", "test", "extra"])
def test_genuine_boxes(split: str, real_data: Path) -> None:
    """Every entry of the sample equals the complete annotations (which lack extra)."""
    sample = real_data / "svhn" / "sample" / split / "digitStruct.mat"
    if not sample.exists():
        pytest.skip(f"no {sample}")
    found = read(sample)
    assert len(found) == {"train": 39, "test": 40, "extra": 40}[split]
    if split == "extra":
        assert found[1].classes.tolist() == [4, 7, 8]
        return
    with h5py.File(real_data / "svhn" / "svhn_format1_annotations.h5") as file:
        offset, box, label = (file[split][name][()] for name in ("offset", "box", "label"))
    for n, digits in found.items():
        own = slice(offset[n - 1], offset[n])
        np.testing.assert_array_equal(digits.boxes, box[own])
        np.testing.assert_array_equal(digits.classes, label[own])
