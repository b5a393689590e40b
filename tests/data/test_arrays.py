"""A person's own arrays: shapes, splits, labels, and files that lie (rows 28, 36 and 38 of the list of faults)."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from attn_cli.config.schema import Arrays
from attn_cli.data.batches import Images, open_data
from attn_cli.data.sources import own
from attn_cli.errors import Refused

COUNT = 20


def opened(path: Path, **keys: Any) -> Images:
    data = open_data(Arrays(path=str(path), **keys))
    assert isinstance(data, Images)
    return data


def save(path: Path, **content: Any) -> Path:
    if path.suffix == ".npz":
        np.savez_compressed(path, **content)
    else:
        with h5py.File(path, "w") as file:
            for name, array in content.items():
                file.create_dataset(name, data=array, compression="gzip" if np.ndim(array) else None)
    return path


def numbered(*shape: int) -> np.ndarray:
    """Image i is filled with i."""
    return np.broadcast_to(np.arange(shape[0], dtype=np.uint8).reshape(-1, *[1] * (len(shape) - 1)), shape).copy()


LABELS = np.arange(COUNT) % 4
KINDS = {"images": 3, "labels": 1}  # and how many dimensions they have


@pytest.mark.parametrize("ending", ["npz", "h5"])
def test_images_and_labels(ending: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"mine.{ending}", images=numbered(COUNT, 6, 5), labels=LABELS, extra=np.zeros(3))
    data = opened(path, validation_share=0.2, test_share=0.1, background=3)
    info = data.info
    assert (info.name, info.channels, info.height, info.width, info.classes) == ("arrays", 1, 6, 5, 4)
    assert (info.train, info.validation, info.test, info.background) == (14, 4, 2, 3)
    assert info.class_names == ("0", "1", "2", "3")
    seen = []
    for split in own.SPLITS:
        assert (data.images[split][:, 0, 0, 0] % 4 == data.labels[split]).all()
        seen += data.images[split][:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("ending", ["npz", "h5"])
def test_named_splits(ending: str, tmp_path: Path) -> None:
    content = {f"{p}images": numbered(n, 6, 5) for p, n in (("train_", 9), ("val_", 3), ("test_", 4))}
    content |= {f"{p}labels": np.arange(n, dtype=np.int32) for p, n in (("train_", 9), ("val_", 3), ("test_", 4))}
    info = opened(save(tmp_path / f"mine.{ending}", **content)).info
    assert (info.train, info.validation, info.test, info.classes) == (9, 3, 4, 9)


def test_what_an_empty_split_needs(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", images=numbered(COUNT, 6, 5), labels=LABELS)
    with pytest.raises(Refused, match="train 0, .*: add images, or lower data.validation_share or data.test_share"):
        opened(path, validation_share=0.5, test_share=0.5)
    with pytest.raises(Refused, match="validation 0, .*: add images, or raise data.validation_share or"):
        opened(path, validation_share=0.01)
    splits = {f"{split}_{kind}": np.zeros((4, 6, 5)[:n], np.uint8) for split in own.SPLITS for kind, n in KINDS.items()}
    splits |= {"test_images": splits["test_images"][:0], "test_labels": splits["test_labels"][:0]}
    with pytest.raises(Refused, match="train 4, validation 4, test 0 images.: add images.$"):
        opened(save(tmp_path / "y.npz", **splits))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((COUNT, 6, 5), (1, 6, 5)),
        ((COUNT, 6, 5, 3), (3, 6, 5)),
        ((COUNT, 6, 5, 1), (1, 6, 5)),
        ((COUNT, 3, 6, 5), (3, 6, 5)),
        ((COUNT, 1, 6, 5), (1, 6, 5)),
        ((COUNT, 3, 6, 3), (3, 3, 6)),  # both readings fit: the last axis is the channels
        ((COUNT, 1, 1), (1, 1, 1)),
    ],
)
def test_axes(shape: tuple[int, ...], expected: tuple[int, int, int], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = opened(save(tmp_path / "x.npz", images=array, labels=LABELS))
    assert (data.info.channels, data.info.height, data.info.width) == expected
    first = int(np.flatnonzero([(i.sum() == data.images["train"][0].sum().item()) for i in array])[0])
    image = array[first].reshape(*array[first].shape, 1) if array.ndim == 3 else array[first]
    if image.shape[-1] not in (1, 3):
        image = image.transpose(1, 2, 0)
    np.testing.assert_array_equal(data.images["train"][0].permute(1, 2, 0).numpy(), image)


def test_fortran_order_and_bool(tmp_path: Path) -> None:
    array = np.asfortranarray(numbered(COUNT, 6, 5))
    np.savez(tmp_path / "f.npz", images=array, labels=LABELS)
    assert opened(tmp_path / "f.npz").images["train"].flatten(1).float().std(1).max() == 0
    np.savez(tmp_path / "b.npz", images=numbered(COUNT, 6, 5) > 9, labels=LABELS)
    assert set(opened(tmp_path / "b.npz").images["train"].unique().tolist()) == {0, 255}


def test_grey_rgb_and_size(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", images=numbered(COUNT, 6, 5, 3), labels=LABELS)
    assert opened(path, grey=True).info.channels == 1
    assert opened(save(tmp_path / "y.npz", images=numbered(COUNT, 6, 5), labels=LABELS), grey=False).info.channels == 3
    data = opened(path, height=12, width=7)
    assert (data.info.height, data.info.width) == (12, 7) and data.images["train"].flatten(1).float().std(1).max() == 0
    with pytest.raises(Refused, match="data.width is set and data.height is not"):
        opened(path, width=7)


def test_grey_takes_little_memory() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (150, 100, 100, 3), np.uint8)
    tracemalloc.start()
    made = own.grey(rgb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < made.nbytes + (16 << 20)
    np.testing.assert_array_equal(made, np.concatenate([own.grey(image)[None] for image in rgb]))


def test_memory_of_its_own(tmp_path: Path) -> None:
    """Tensors must not sit on memory that NumPy thinks is read-only."""
    data = opened(save(tmp_path / "x.npz", images=numbered(COUNT, 6, 5), labels=LABELS))
    for tensor in (*data.images.values(), *data.labels.values()):
        tensor += 1


GOOD: dict[str, Any] = {"images": numbered(COUNT, 6, 5), "labels": LABELS}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no images": (
        {"pictures": GOOD["images"], "labels": LABELS},
        "no array 'images' or 'train_images'; it holds .*pict",
    ),
    "no labels": ({"images": GOOD["images"], "label": LABELS}, "no labels. Did you mean 'label'"),
    "two names": ({**GOOD, "train_images": GOOD["images"], "train_labels": LABELS}, "under two names"),
    "only test": ({"test_images": GOOD["images"], "test_labels": LABELS}, "no array 'images'"),
    "counts": ({"images": GOOD["images"], "labels": LABELS[:-1]}, "20 images and 19 labels"),
    "negative label": ({"images": GOOD["images"], "labels": LABELS - 1}, r"labels\[0\] is -1"),
    "giant label": ({"images": GOOD["images"], "labels": LABELS * 10**9}, r"labels\[1\] is 1000000000"),
    "fractions": ({"images": GOOD["images"], "labels": LABELS / 2}, "type float64: labels must be integers"),
    "one-hot": ({"images": GOOD["images"], "labels": np.eye(COUNT, dtype=int)}, "labels has shape .20, 20."),
    "float images": ({"images": GOOD["images"] / 255, "labels": LABELS}, "float64: convert it to uint8"),
    "16 bits": ({"images": GOOD["images"].astype("u2"), "labels": LABELS}, "uint16: convert it to uint8"),
    "flat images": ({"images": numbered(COUNT, 30), "labels": LABELS}, "images has shape .20, 30."),
    "four channels": ({"images": numbered(COUNT, 6, 5, 4), "labels": LABELS}, "1 or 3 channels"),
    "too wide": ({"images": numbered(COUNT, 1, 5000), "labels": LABELS}, "1×5000 pixels"),
    "no pixels": ({"images": numbered(COUNT, 0, 5), "labels": LABELS}, "0×5 pixels|stores none"),
    "empty": ({"images": numbered(0, 6, 5), "labels": LABELS[:0]}, "train 0, validation 0, test 0"),
    "too few": ({"images": numbered(3, 6, 5), "labels": LABELS[:3]}, "train 3, validation 0, test 0"),
    "channels differ": (
        {"train_images": numbered(9, 6, 5), "train_labels": LABELS[:9]}
        | {"test_images": numbered(9, 6, 5, 3), "test_labels": LABELS[:9]},
        "test_images has 3 channel.* and train_images 1: set data.grey",
    ),
    "sizes differ": (
        {"train_images": numbered(9, 6, 5), "train_labels": LABELS[:9]}
        | {"test_images": numbered(9, 5, 6), "test_labels": LABELS[:9]},
        "test_images are 5×6 pixels and train_images 6×5: set data.height",
    ),
}


@pytest.mark.parametrize("ending", ["npz", "h5"])
@pytest.mark.parametrize("kind", BAD)
def test_refused_with_the_file_and_the_array(kind: str, ending: str, tmp_path: Path) -> None:
    content, message = BAD[kind]
    path = save(tmp_path / f"mine.{ending}", **content)
    with pytest.raises(Refused, match=message) as refused:
        opened(path)
    assert str(path) in str(refused.value)


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="must be an .npz or .h5 file"):
        opened(tmp_path / "mine.npy")
    with pytest.raises(Refused, match="nowhere.npz is not a file"):
        opened(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("ending", ["npz", "h5"])
def test_damaged_files(ending: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"mine.{ending}", **GOOD)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"<html>", whole[:-30]):
        path.write_bytes(broken)
        with pytest.raises(Refused, match=f"mine.{ending} cannot be used") as refused:
            opened(path)
        assert "\n" not in str(refused.value)


def test_a_flipped_byte_in_an_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **GOOD)  # not compressed: every byte of the images is a pixel
    whole = bytearray((tmp_path / "mine.npz").read_bytes())
    whole[whole.index(bytes([7] * 30)) + 5] ^= 1
    (tmp_path / "mine.npz").write_bytes(whole)
    with pytest.raises(Refused, match="CRC"):
        opened(tmp_path / "mine.npz")


def npy(header: str) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 6, 5), }", bytes(600), "and stores 600"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (19, 6, 5), }", bytes(600), "570 bytes and stores 600"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-20, -6, 5), }", bytes(600), "shape .-20, -6, 5."),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (20, 6, 5), }", bytes(600), "type object"),
        ("{'descr': '|V30', 'fortran_order': False, 'shape': (20, 1, 1), }", bytes(600), r"type \|V30"),
        ("__import__('os').system('touch /tmp/never')", bytes(600), "cannot be used"),
        ("{}", bytes(600), "cannot be used"),
    ],
)
def test_an_npy_header_that_lies(header: str, body: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, labels=LABELS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("images.npy", npy(header) + body)
    with pytest.raises(Refused, match=message):
        opened(path)


def test_pickles_are_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    assert pickle.loads(pickle.dumps(Payload())) is None and (tmp_path / "ran").exists()  # it would work
    (tmp_path / "ran").unlink()
    np.savez(tmp_path / "mine.npz", images=np.array([Payload()] * COUNT, object), labels=LABELS)
    with pytest.raises(Refused, match="type object"):
        opened(tmp_path / "mine.npz")
    (tmp_path / "other.npz").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(Refused, match="other.npz cannot be used"):
        opened(tmp_path / "other.npz")
    assert not (tmp_path / "ran").exists()


def test_an_npz_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that would unpack beyond the limit is not unpacked."""
    monkeypatch.setattr(own, "MAX_BYTES", 50_000_000)
    header = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (60, 1000, 1000), }")
    with zipfile.ZipFile(tmp_path / "mine.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header + bytes(60_000_000))
        memory = io.BytesIO()
        np.save(memory, np.zeros(60, int))
        archive.writestr("labels.npy", memory.getvalue())
    assert (tmp_path / "mine.npz").stat().st_size < 100_000
    with pytest.raises(Refused, match="unpacks to 60,000,128 bytes, more than the limit of"):
        opened(tmp_path / "mine.npz")


def test_hostile_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "mine.h5"
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["secret"] = GOOD["images"]

    def giant(file: h5py.File) -> None:
        file.create_dataset("images", (2**40, 6, 5), "u1", chunks=(1, 6, 5))

    def external_link(file: h5py.File) -> None:
        file["images"] = h5py.ExternalLink("secret.h5", "/secret")

    def soft_link(file: h5py.File) -> None:
        file["images"] = h5py.SoftLink("/labels")

    def external(file: h5py.File) -> None:
        file.create_dataset("images", (COUNT, 6, 5), "u1", external=[(str(tmp_path / "secret.h5"), 0, 600)])

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((COUNT, 6, 5), np.uint8)
        layout[:] = h5py.VirtualSource("secret.h5", "secret", (COUNT, 6, 5))
        file.create_virtual_dataset("images", layout)

    def unstored(file: h5py.File) -> None:
        file.create_dataset("images", (COUNT, 6, 5), "u1", chunks=(1, 6, 5))

    def group(file: h5py.File) -> None:
        file.create_group("images")

    for change, message in (
        (giant, "32,985,348,833,280 bytes, more than the limit"),
        (external_link, "images is a link"),
        (soft_link, "images is a link"),
        (external, "stored in other files"),
        (virtual, "stored in other files"),
        (unstored, "stores none"),
        (group, "images is no array"),
    ):
        with h5py.File(path, "w") as file:
            file["labels"] = LABELS
            change(file)
        with pytest.raises(Refused, match=f"mine.h5 cannot be used .*{message}"):
            opened(path)


def test_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "MAX_BYTES", 2000)
    path = save(tmp_path / "x.npz", **GOOD)
    assert opened(path).info.train == 16
    with pytest.raises(Refused, match="20 images of 12×10×1 = 2,400 bytes"):
        opened(path, height=12, width=10)


def test_divide_takes_exact_shares() -> None:
    labels = np.arange(400) % 100  # four images a class: no class alone would give one to a split
    parts = own.divide(labels, 0.1, 0.2, 0)
    assert [len(parts[split]) for split in own.SPLITS] == [280, 40, 80]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(400))
    assert np.bincount(labels[parts["test"]], minlength=100).max() == 1
    assert {split: len(p) for split, p in own.divide(labels, 0.0, 0.0, 0).items()} == dict(
        train=400, validation=0, test=0
    )
