"""The IDX reader against files that lie (rows 25 and 26 of the list of faults), and genuine MNIST."""

from __future__ import annotations

import gzip
import resource
from pathlib import Path

import numpy as np
import pytest

from attn_cli.config.schema import Scenes
from attn_cli.data import prepared
from attn_cli.data.batches import open_data
from attn_cli.data.prepare import prepare
from attn_cli.data.sources import mnist
from attn_cli.errors import Refused


def idx(magic: int, shape: tuple[int, ...], payload: bytes) -> bytes:
    return b"".join(n.to_bytes(4, "big") for n in (magic, *shape)) + payload


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content))
    return path


def test_reads_what_was_written(tmp_path: Path) -> None:
    pixels = np.arange(3 * 5 * 4, dtype=np.uint8)
    images = mnist.read_idx(written(tmp_path / "i.gz", idx(0x803, (3, 5, 4), pixels.tobytes())), mnist.IMAGES)
    np.testing.assert_array_equal(images, pixels.reshape(3, 5, 4))
    labels = mnist.read_idx(written(tmp_path / "l.gz", idx(0x801, (3,), b"\1\2\3")), mnist.LABELS)
    assert labels.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "both"),
    [
        (idx(0x803, (4, 5, 4), bytes(60)), ("4×5×4 = 80", "60")),  # one too many
        (idx(0x803, (2, 5, 4), bytes(60)), ("2×5×4 = 40", "60")),  # one too few
        (idx(0x803, (2**32 - 1, 5, 4), bytes(60)), ("= 85,899,345,900", "60")),
        (idx(0x803, (2**32 - 1,) * 3, bytes(60)), ("4,294,967,295", "60")),
        (idx(0x803, (0, 5, 4), b""), ("0×5×4", "none")),
        (idx(0x803, (0, 5, 4), bytes(60)), ("0×5×4", "none")),
        (idx(0x801, (60,), bytes(60)), ("0x00000801", "0x00000803")),  # labels where images belong
        (idx(0xD03, (3, 5, 4), bytes(60)), ("0x00000d03", "0x00000803")),  # floats
        (b"<html>not found</html>", ("0x3c68746d", "0x00000803")),
        (b"\0\0\x08\x03\0\0", ("6 bytes", "16")),
        (b"", ("0 bytes", "16")),
    ],
    ids=["+1", "-1", "2^32-1", "all 2^32-1", "zero", "zero with pixels", "labels", "floats", "html", "short", "empty"],
)
def test_a_header_that_lies_is_refused_with_both_numbers(content: bytes, both: tuple[str, str], tmp_path: Path) -> None:
    path = written(tmp_path / "images.gz", content)
    with pytest.raises(Refused) as refused:
        mnist.read_idx(path, mnist.IMAGES)
    assert str(path) in str(refused.value) and all(number in str(refused.value) for number in both)


def test_a_cut_or_broken_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    whole = gzip.compress(idx(0x803, (50, 28, 28), np.random.default_rng(0).bytes(50 * 784)))
    for broken in (whole[: len(whole) // 2], whole[:-3], whole[:1], b"", b"<html>", whole[:200] + b"\0" + whole[201:]):
        path.write_bytes(broken)
        with pytest.raises(Refused, match="images.gz"):
            mnist.read_idx(path, mnist.IMAGES)
    with pytest.raises(Refused, match="nowhere.gz"):
        mnist.read_idx(tmp_path / "nowhere.gz", mnist.IMAGES)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """300 MB of zeros in 292 kB."""
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(300):
            file.write(bytes(1_000_000))
    assert path.stat().st_size < 300_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
    with pytest.raises(Refused, match="bomb.gz unpacks to more than 67,108,864 bytes"):
        mnist.read_idx(path, mnist.IMAGES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def originals(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 50_010, digits: bytes = b"") -> None:
    """Files in MNIST's form with blank 2×2 images, and their checksums in place of the genuine ones."""
    import hashlib

    contents = {
        "train_images": idx(0x803, (count, 2, 2), bytes(4 * count)),
        "train_labels": idx(0x801, (count,), bytes(count)),
        "test_images": idx(0x803, (7, 2, 2), bytes(28)),
        "test_labels": idx(0x801, (len(digits or bytes(7)),), digits or bytes(7)),
    }
    for role, content in contents.items():
        path = written(folder / mnist.FILES[role].name, content)
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(mnist.FILES, role, mnist.Original(path.name, digest, path.stat().st_size))


def test_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    originals(tmp_path, monkeypatch)
    made = prepared.read("mnist", prepare("mnist", tmp_path / "root", tmp_path, log=lambda line: None).parent)
    assert {split: len(labels) for split, labels in made.labels.items()} == {
        "train": 50_000,
        "validation": 10,
        "test": 7,
    }


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"digits": bytes(6)}, "7 images and .* 6 labels"),
        ({"digits": bytes(8)}, "7 images and .* 8 labels"),
        ({"digits": b"\0\0\0\0\0\0\x0a"}, "has a label 10"),
        ({"count": 50_000}, "50,000 images"),
    ],
)
def test_files_that_do_not_fit_together(
    keys: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals(tmp_path, monkeypatch, **keys)
    with pytest.raises(Refused, match=message):
        prepare("mnist", tmp_path / "root", tmp_path, log=lambda line: None)
    assert not (tmp_path / "root" / "mnist.h5").exists()


def test_from_a_folder_checks_the_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    originals(tmp_path, monkeypatch)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(Refused) as refused:
        prepare("mnist", tmp_path / "root", tmp_path, log=lambda line: None)
    assert str(path) in str(refused.value)
    assert str(refused.value).count(mnist.FILES["train_labels"].md5) == 1 and "got " in str(refused.value)
    path.unlink()
    with pytest.raises(Refused, match="train-labels-idx1-ubyte.gz cannot be read"):
        prepare("mnist", tmp_path / "root", tmp_path, log=lambda line: None)
    assert not (tmp_path / "root" / "mnist.h5").exists()
    path.write_bytes(whole)
    assert prepare("mnist", tmp_path / "root", tmp_path, log=lambda line: None).exists()


@pytest.mark.real_data
def test_genuine_mnist(tmp_path: Path, real_data: Path) -> None:
    """The digests that every machine must find before its numbers can be compared with RESULTS.md."""
    prepare("mnist", tmp_path, real_data / "mnist", log=lambda line: None)
    source = prepared.read("mnist", tmp_path)
    assert source.content_sha256() == "e67e46634135cc67e5f2e43fda37d7099bd570ff33fdb4a6db87fb28a9aad37d"
    assert np.bincount(source.labels["test"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for config, expected in (
        (Scenes("mnist"), ("5dfff82615001c8f", "d73b59a5845f832f")),
        (Scenes("translated_mnist", height=60, width=60, translate=True), ("be03f762589bf5f9", "9eea7eab3e484351")),
        (
            Scenes("cluttered_mnist", height=60, width=60, pieces=4, translate=True),
            ("3baaca2e5151d9ab", "1c80fce0b26c9d41"),
        ),
        (
            Scenes("cluttered_mnist_100", height=100, width=100, pieces=8, translate=True),
            ("dc2d9ca2a5a8e9f5", "50939e127efe6043"),
        ),
    ):
        data = open_data(type(config)(**{**vars(config), "root": str(tmp_path)}))
        assert (data.info.train, data.info.validation, data.info.test) == (50_000, 10_000, 10_000)
        assert (data.digest("validation")[:16], data.digest("test")[:16]) == expected, config.name
