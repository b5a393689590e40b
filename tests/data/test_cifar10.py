"""CIFAR-10 out of archives in its form, and archives that lie (rows 23, 24, 25 and 30 of the list of faults)."""

from __future__ import annotations

import dataclasses
import hashlib
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from svhn_archives import Member, archive, member

from attn_cli.commands.data import config_of, main
from attn_cli.config.schema import Cifar10
from attn_cli.data import prepared
from attn_cli.data.batches import open_data
from attn_cli.data.keys import noise, permutation
from attn_cli.data.prepare import prepare
from attn_cli.data.sources import cifar10
from attn_cli.errors import Refused

FOLDER = "cifar-10-batches-bin"


def records(file: int, count: int) -> np.ndarray:
    """uint8 (count, 3073): a label, then noise."""
    made = noise((count, 3073), "cifar", file)
    made[:, 0] %= 10
    return made


def members_of(count: int) -> dict[str, Member]:
    """As in the original: the folder, the five files and the test's, names of the classes, a web page."""
    files = {f"{FOLDER}/{name}": records(i, count).tobytes() for i, name in enumerate(cifar10.FILES)}
    texts = {f"{FOLDER}/batches.meta.txt": b"airplane\n", f"{FOLDER}/readme.html": b"<html>"}
    return {
        FOLDER: member(FOLDER, type=tarfile.DIRTYPE),
        **{name: member(name, content) for name, content in {**texts, **files}.items()},
    }


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """20 records a file, and the last 10 validate."""
    monkeypatch.setattr(cifar10, "RECORDS", 20)
    monkeypatch.setattr(cifar10, "VALIDATION", 10)
    return 20


def original(folder: Path, members: Iterable[Member], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with an archive of these members whose checksum stands in place of the genuine one."""
    path = archive(folder / cifar10.ARCHIVE.name, members)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "ARCHIVE", cifar10.Original(path.name, digest, path.stat().st_size))
    return folder


def made(root: Path, originals: Path) -> prepared.Prepared:
    prepare("cifar10", root, originals, log=lambda line: None)
    prepared._verified.clear()  # as a new process would
    return prepared.read("cifar10", root)


def test_records_become_images(few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte; the order of the files in the archive does not matter."""
    found = made(tmp_path / "root", original(tmp_path, reversed(members_of(few).values()), monkeypatch))
    train = np.concatenate([records(i, few) for i in range(5)])
    parts = {"train": train[:90], "validation": train[90:], "test": records(5, few)}
    for split, expected in parts.items():
        assert found.images[split].shape == (len(expected), 3, 32, 32)
        np.testing.assert_array_equal(found.labels[split], expected[:, 0])
        for i, record in enumerate(expected):
            for c in range(3):
                for y in (0, 7, 31):
                    start = 1 + 1024 * c + 32 * y
                    np.testing.assert_array_equal(found.images[split][i, c, y], record[start : start + 32])
    assert found.class_names[0] == "airplane" and found.class_names[9] == "truck" and len(found.class_names) == 10
    assert cifar10.ARCHIVE.md5 in found.origin


def test_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """45,000, 5,000 and 10,000 images, here of one pixel, in which the number of the record stands."""
    monkeypatch.setattr(cifar10, "SHAPE", (3, 1, 1))
    monkeypatch.setattr(cifar10, "RECORD", 4)
    members = {}
    for i, name in enumerate(cifar10.FILES):
        high, low = np.divmod(np.arange(10_000), 256)
        content = np.stack([np.full(10_000, i), high, low, np.zeros(10_000)], 1).astype(np.uint8)
        members[name] = member(f"{FOLDER}/{name}", content.tobytes())
    found = made(tmp_path / "root", original(tmp_path, members.values(), monkeypatch))
    counts = {split: len(labels) for split, labels in found.labels.items()}
    assert counts == {"train": 45_000, "validation": 5_000, "test": 10_000}
    numbers = [
        10_000 * found.labels[split].astype(int)
        + 256 * found.images[split][:, 0, 0, 0].astype(int)
        + found.images[split][:, 1, 0, 0]
        for split in prepared.SPLITS
    ]
    np.testing.assert_array_equal(np.concatenate(numbers), np.arange(60_000))


def replaced(name: str, content: bytes = b"", **attributes: object) -> dict[str, Member]:
    return {f"{FOLDER}/{name}": member(f"{FOLDER}/{name}", content, **attributes)}


def with_label(file: int, record: int, label: int) -> bytes:
    changed = records(file, 20)
    changed[record, 0] = label
    return changed.tobytes()


FAULTS = {
    "short": (replaced("data_batch_3.bin", bytes(20 * 3073 - 1)), "data_batch_3.bin has 61,459 bytes.* take 61,460"),
    "long": (replaced("test_batch.bin", bytes(21 * 3073)), "test_batch.bin has 64,533 bytes, 20 records take 61,460"),
    "empty": (replaced("data_batch_1.bin"), "data_batch_1.bin has 0 bytes"),
    "label": (replaced("data_batch_2.bin", with_label(1, 7, 10)), "record 7 of data_batch_2.bin has a label 10"),
    "label 255": (replaced("test_batch.bin", with_label(5, 0, 255)), "record 0 of test_batch.bin has a label 255"),
    "missing": ({f"{FOLDER}/data_batch_5.bin": member(f"{FOLDER}/other.bin")}, "it holds no data_batch_5.bin"),
    "twice": (
        {"more": member(f"./{FOLDER}/test_batch.bin", records(5, 20).tobytes())},
        "test_batch.bin is there twice",
    ),
    "folder": (replaced("test_batch.bin", type=tarfile.DIRTYPE), "it holds no test_batch.bin"),
    "link": (replaced("test_batch.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "neither a file nor a folder"),
    "hard link": (replaced("test_batch.bin", type=tarfile.LNKTYPE, linkname="x"), "neither a file nor a folder"),
    "device": (replaced("test_batch.bin", type=tarfile.CHRTYPE), "neither a file nor a folder"),
    "link of another name": (
        {"more": member("elsewhere", type=tarfile.SYMTYPE, linkname="/")},
        "elsewhere is neither a file nor a folder",
    ),
    "absolute": ({"more": member(f"/{FOLDER}/test_batch.bin", b"x")}, "leads out of the archive"),
    "way out": ({"more": member(f"{FOLDER}/../../x", b"x")}, "leads out of the archive"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_an_archive_that_lies_is_refused(kind: str, few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, message = FAULTS[kind]
    originals = original(tmp_path, {**members_of(few), **change}.values(), monkeypatch)
    with pytest.raises(Refused, match=f"cifar-10-binary.tar.gz cannot be used .*{message}") as refused:
        made(tmp_path / "root", originals)
    assert "\n" not in str(refused.value)
    assert [p.name for p in (tmp_path / "root").iterdir()] == [".cifar10.h5.lock"]


def test_the_checksum_comes_first(few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped byte and an archive of one's own are refused with both sums, and nothing in them is read."""
    genuine = cifar10.ARCHIVE
    originals = original(tmp_path, members_of(few).values(), monkeypatch)
    path = tmp_path / genuine.name
    whole = bytearray(path.read_bytes())
    monkeypatch.setattr(cifar10, "members", None)  # parsing would fail otherwise
    for damaged, expected in ((0, cifar10.ARCHIVE), (None, genuine)):
        changed = bytearray(whole)
        if damaged is not None:
            changed[len(whole) // 2] ^= 1
        path.write_bytes(changed)
        monkeypatch.setattr(cifar10, "ARCHIVE", expected)
        with pytest.raises(Refused, match=f"{path} is not the original file: expected md5 {expected.md5}, got ") as no:
            made(tmp_path / "root", originals)
        assert hashlib.md5(changed).hexdigest() in str(no.value)
    path.unlink()
    with pytest.raises(Refused, match="cifar-10-binary.tar.gz cannot be read .No such file"):
        made(tmp_path / "root", originals)


def test_the_published_archive() -> None:
    assert (
        cifar10.Original("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171) == cifar10.ARCHIVE
    )
    assert (
        cifar10.RECORDS * cifar10.RECORD == 30_730_000 and cifar10.SHAPE == (3, 32, 32) and cifar10.VALIDATION == 5_000
    )


def test_batches(few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "root", original(tmp_path, members_of(few).values(), monkeypatch))
    config = dataclasses.replace(config_of("cifar10"), root=str(tmp_path / "root"))
    data = open_data(config)
    info = data.info
    assert (info.name, info.channels, info.height, info.width, info.classes) == ("cifar10", 3, 32, 32, 10)
    assert (info.train, info.validation, info.test, info.length) == (90, 10, 20, 0)
    images, labels = data.train_batch(3, 1, 2, 16)
    train = np.concatenate([records(i, few) for i in range(5)])[permutation(90, "order", 3, 1)[32:48]]
    assert torch.equal(images, torch.from_numpy(train[:, 1:].reshape(16, 3, 32, 32)))  # no augmentation
    assert labels.tolist() == train[:, 0].tolist() and labels.dtype == torch.int64
    assert open_data(dataclasses.replace(config, train_limit=7)).info.train == 7
    assert open_data(dataclasses.replace(config, train_limit=7)).digest("test") == data.digest("test")
    assert config_of("cifar10") == Cifar10()


def test_the_command(
    few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tmp_path / "root")]
    assert main(["list", *root]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["cifar10"])
    assert "32×32" in row and "downloads 170.1 MB on first use" in row
    with pytest.raises(Refused, match="data=cifar10 is not prepared .*`attn data prepare cifar10 --root"):
        main(["info", "cifar10", *root])
    originals = original(tmp_path, members_of(few).values(), monkeypatch)
    assert main(["prepare", "cifar10", "--from", str(originals), *root]) == 0
    assert f"cifar10 is ready: {tmp_path / 'root' / 'cifar10.h5'}" in capsys.readouterr().out
    assert main(["info", "cifar10", *root]) == 0
    out = capsys.readouterr().out
    assert "3×32×32" in out and "airplane" in out and cifar10.ARCHIVE.md5 in out
    assert ["all", "90", "10", "20"] in [line.replace("|", " ").split() for line in out.splitlines()]
    assert main(["list", *root]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["cifar10"])
    assert "prepared" in row


def test_grey_images_in_place_of_coloured_ones(few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged file of another form is refused when it is read, not when it is used."""
    from attn_cli.data.writing import write

    images = {split: np.zeros((4, 32, 32), np.uint8) for split in prepared.SPLITS}
    labels = {split: np.zeros(4, np.uint8) for split in prepared.SPLITS}
    write(prepared.Prepared("cifar10", "", cifar10.CLASSES, images, labels), tmp_path / "cifar10.h5")
    with pytest.raises(Refused, match=r"train_images has shape \(4, 32, 32\), expected 4 dimensions"):
        prepared.read("cifar10", tmp_path)
