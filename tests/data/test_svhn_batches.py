"""Batches of house numbers: crops, splits and labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attn_cli.commands.data import config_of
from attn_cli.config import registry
from attn_cli.config.schema import Svhn
from attn_cli.data import batches, photos, prepared, writing
from attn_cli.data.batches import open_data
from attn_cli.data.keys import below, draws, permutation
from attn_cli.data.photos import crops
from attn_cli.data.prepared import EMPTY, Prepared
from attn_cli.data.splits import digest_of
from attn_cli.errors import Refused

SIDES = {"svhn": 64, "svhn_110": 128, "svhn_128": 128}
COUNTS = {"train": 60, "test": 9}


def house_numbers(source: str, grey: bool = True, train: int = COUNTS["train"]) -> Prepared:
    """Image i holds noise and i in its first corner; one to five digits, six in the last test image."""
    side, images, labels = SIDES[source], {}, {}
    for split, count in {**COUNTS, "train": train}.items():
        shape = (count, side, side) if grey else (count, 3, side, side)
        images[split] = (draws(shape, "house", split) >> 23).astype(np.uint8)
        labels[split] = np.full((count, 6), EMPTY, np.uint8)
        for i in range(count):
            labels[split][i, : 1 + i % 5] = (i + np.arange(1 + i % 5)) % 10
            labels[split][i, 1 + i % 5] = 10
    labels["test"][-1] = [1, 2, 3, 4, 5, 11]
    return Prepared(source + ("" if grey else "_rgb"), "made for a test", tuple("0123456789"), images, labels)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store(tmp_path, house_numbers("svhn"))
    return tmp_path


def store(root: Path, one: Prepared) -> None:
    writing.write(one, prepared.path_of(one.name, root))


def opened(root: Path, name: str = "svhn", **keys: Any) -> photos.Svhn:
    config = dataclasses.replace(config_of(name), root=str(root), **keys)
    if not prepared.path_of(batches.source_name(config), root).exists():
        store(root, house_numbers(config.source, config.grey))
    data = open_data(config)
    assert isinstance(data, photos.Svhn)
    return data


@pytest.mark.parametrize("name", registry.SVHN)
@pytest.mark.parametrize("grey", [True, False])
def test_every_configured_set(name: str, grey: bool, root: Path) -> None:
    data = opened(root, name, grey=grey)
    info, side = data.info, {"svhn": 54, "svhn_110": 110, "svhn_64": 64, "svhn_128": 128}[name]
    channels = 1 if grey else 3
    assert (info.name, info.channels, info.height, info.width) == (name, channels, side, side)
    assert (info.classes, info.class_names, info.length) == (10, tuple("0123456789"), 5)
    assert (info.train, info.validation, info.test) == (54, 6, 9)  # a tenth validates
    images, labels = data.train_batch(0, 0, 0, 16)
    assert images.dtype == torch.uint8 and images.shape == (16, channels, side, side) and images.is_contiguous()
    assert labels.dtype == torch.int64 and labels.shape == (16, 6)
    for split, count in (("validation", 6), ("test", 9)):
        images, labels = data.fixed(split)
        assert images.shape == (count, channels, side, side) and labels.shape == (count, 6)
        assert data.digest(split) == digest_of(images, labels)


def test_conf_has_what_the_papers_have() -> None:
    for name, expected in (
        ("svhn", ("svhn", 54, 54)),
        ("svhn_110", ("svhn_110", 110, 110)),
        ("svhn_64", ("svhn", 64, 64)),
        ("svhn_128", ("svhn_128", 128, 128)),
    ):
        config = config_of(name)
        assert (config.source, config.height, config.width) == expected
        assert config.grey and config.validation == 5000


def test_labels(root: Path) -> None:
    data = opened(root)
    _, labels = data.fixed("test")
    assert labels[0].tolist() == [0, 10, -1, -1, -1, -1]
    assert labels[2].tolist() == [2, 3, 4, 10, -1, -1]
    assert labels[4].tolist() == [4, 5, 6, 7, 8, 10]


def test_no_answer_to_six_digits_is_right(root: Path) -> None:
    """A model answers with L+1 of the classes 0 to K; its row must differ from the label for each of them."""
    data = opened(root)
    row = data.fixed("test")[1][-1]
    assert row.tolist() == [1, 2, 3, 4, 5, data.info.classes + 1]
    answers = torch.cartesian_prod(*[torch.arange(data.info.classes + 1)] * 2)
    answers = torch.cat([row[:4].expand(len(answers), 4), answers], 1)
    wrong = ((answers != row) & (row >= 0)).any(1)  # as -1 is ignored
    assert wrong.all()


@pytest.mark.parametrize(("name", "grey"), [("svhn", True), ("svhn_110", True), ("svhn", False)])
def test_training_crops_against_slices(name: str, grey: bool, root: Path) -> None:
    data, source = opened(root, name, grey=grey), house_numbers(config_of(name).source, grey)
    side, whole = data.info.height, SIDES[config_of(name).source]
    assert whole - side == {"svhn": 10, "svhn_110": 18}[name]
    order = permutation(54, "order", 5, 2)[1 * 20 : 2 * 20]
    rows = np.sort(permutation(60, "svhn", "validation")[6:])[order]
    corners = below(whole - side + 1, (20, 2), "crop", 5, 2, 1)
    images, labels = data.train_batch(5, 2, 1, 20)
    pool = source.images["train"].reshape(60, -1, whole, whole)
    for b, (y, x) in enumerate(corners):
        np.testing.assert_array_equal(images[b].numpy(), pool[rows[b], :, y : y + side, x : x + side])
        expected = source.labels["train"][rows[b]].astype(int)
        assert labels[b].tolist() == np.where(expected == EMPTY, -1, expected).tolist()


def test_every_corner_is_equally_likely_and_changes_with_seed_epoch_and_step(root: Path) -> None:
    data = opened(root)
    # Each pixel tells where it lies, as a row of the crop and as a column.
    data.images["train"][:] = torch.arange(64, dtype=torch.uint8)[:, None]
    tops = [data.train_batch(0, e, s, 18)[0][:, 0, 0, 0] for e in range(60) for s in range(3)]
    counts = torch.bincount(torch.cat(tops).long(), minlength=11)
    assert len(counts) == 11 and counts.min() > 0.7 * counts.sum() / 11
    assert torch.equal(tops[0], data.train_batch(0, 0, 0, 18)[0][:, 0, 0, 0])
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not torch.equal(tops[0], data.train_batch(*other, 18)[0][:, 0, 0, 0])
    data.images["train"][:] = torch.arange(64, dtype=torch.uint8)
    lefts = data.train_batch(0, 0, 0, 18)[0][:, 0, 0, 0]
    assert not torch.equal(lefts, tops[0]) and lefts.max() <= 10


def test_the_centre_is_evaluated(root: Path) -> None:
    for name, offset in (("svhn", 5), ("svhn_110", 9), ("svhn_64", 0)):
        data, source = opened(root, name), house_numbers(config_of(name).source)
        inside = slice(offset, offset + data.info.height)
        np.testing.assert_array_equal(data.fixed("test")[0][:, 0].numpy(), source.images["test"][:, inside, inside])
        rows = np.sort(permutation(60, "svhn", "validation")[:6])
        wanted = source.images["train"][rows][:, inside, inside]
        np.testing.assert_array_equal(data.fixed("validation")[0][:, 0].numpy(), wanted)


def test_validation_never_trains_and_is_the_same_for_every_crop_and_seed(root: Path) -> None:
    for name in registry.SVHN:
        data = opened(root, name, validation=4)
        data.images["train"][:] = torch.arange(60, dtype=torch.uint8)[:, None, None, None]
        assert (data.info.train, data.info.validation) == (56, 4)
        validating = data.fixed("validation")[0][:, 0, 0, 0].tolist()
        training = data.train_batch(3, 1, 0, 56)[0][:, 0, 0, 0].tolist()
        assert sorted(validating + training) == list(range(60))
        assert validating == np.sort(permutation(60, "svhn", "validation")[:4]).tolist()
    assert opened(root, validation=6).info.validation == 6
    assert opened(root, validation=7).info.validation == 6  # at most a tenth
    limited = opened(root, train_limit=10)
    assert (limited.info.train, limited.info.validation) == (10, 6)
    limited.images["train"][:] = torch.arange(60, dtype=torch.uint8)[:, None, None, None]
    chosen = limited.train_batch(3, 1, 0, 10)[0][:, 0, 0, 0].tolist()
    drawn = permutation(60, "svhn", "validation")[6:16]  # spread over a file that may be sorted by class
    assert sorted(chosen) == sorted(drawn.tolist())


def test_few_images(tmp_path: Path) -> None:
    for count, validation in ((2, 1), (9, 1), (19, 1), (20, 2)):
        store(tmp_path, house_numbers("svhn", train=count))
        info = opened(tmp_path).info
        assert (info.train, info.validation) == (count - validation, validation)
    store(tmp_path, house_numbers("svhn", train=1))
    with pytest.raises(Refused, match="svhn has 1 training image, and one of them must validate"):
        opened(tmp_path)


def test_sizes_that_cannot_work(root: Path) -> None:
    with pytest.raises(Refused, match="65×54, larger than the 64×64 images of svhn: set data.height to at most 64"):
        opened(root, height=65)
    data = opened(root, height=10, width=64)
    assert data.train_batch(0, 0, 0, 4)[0].shape == (4, 1, 10, 64)


def test_not_prepared(tmp_path: Path) -> None:
    for name, grey, command in (
        ("svhn", True, "svhn"),
        ("svhn_64", False, "svhn --rgb"),
        ("svhn_110", False, "svhn_110 --rgb"),
    ):
        with pytest.raises(Refused, match=f"data={name} is not prepared .*`attn data prepare {command} --root"):
            open_data(dataclasses.replace(config_of(name), root=str(tmp_path), grey=grey, download=False))


def test_a_large_file_is_mapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batches, read from the file as they are needed; what is changed in memory stays there."""
    read = opened(root)
    monkeypatch.setattr(prepared, "MAPPED", 0)
    prepared._verified.clear()
    mapped = opened(root)
    assert isinstance(prepared.read("svhn", root).images["train"], np.memmap)
    assert torch.equal(read.train_batch(1, 2, 3, 8)[0], mapped.train_batch(1, 2, 3, 8)[0])
    assert read.digest("test") == mapped.digest("test")
    before = prepared.path_of("svhn", root).read_bytes()
    mapped.images["train"].zero_()
    assert mapped.train_batch(0, 0, 0, 8)[0].sum() == 0
    assert prepared.path_of("svhn", root).read_bytes() == before


def test_a_large_file_is_verified(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "MAPPED", 0)
    path = prepared.path_of("svhn", root)
    whole = path.read_bytes()
    for place in range(600, len(whole), len(whole) // 50):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        prepared._verified.clear()
        with pytest.raises(Refused, match="svhn.h5 is damaged .*attn data prepare svhn"):
            prepared.read("svhn", root)
    assert prepared.read("svhn", root, verify=False).labels["train"].shape == (60, 6)
    with pytest.raises(Refused, match="svhn.h5 is damaged"):  # was not taken for verified
        prepared.read("svhn", root)
    path.write_bytes(whole[:-5000])
    with pytest.raises(Refused, match="svhn.h5 is damaged"):
        prepared.read("svhn", root)


def test_digits_in_place_of_house_numbers(root: Path) -> None:
    """A forged file of another form is refused when it is read, not when it is used."""
    images, labels = ({s: np.zeros((4, *shape), np.uint8) for s in prepared.SPLITS} for shape in ((9, 9), ()))
    store(root, Prepared("svhn", "", ("0",), images, labels))
    with pytest.raises(Refused, match=r"train_labels has shape \(4,\), expected 2 dimensions"):
        prepared.read("svhn", root)
    store(root, dataclasses.replace(house_numbers("svhn"), name="digits"))
    with pytest.raises(Refused, match=r"train_labels has shape \(60, 6\), expected 1 dimensions"):
        prepared.read("digits", root)
    labels = {"train": np.full((60, 6), 12, np.uint8), "test": np.zeros((9, 6), np.uint8)}
    store(root, dataclasses.replace(house_numbers("svhn"), labels=labels))
    with pytest.raises(Refused, match="train has a label 12"):
        prepared.read("svhn", root)


def test_the_last_image_and_the_last_corner() -> None:
    pool = torch.arange(3 * 2 * 5 * 7, dtype=torch.uint8).view(3, 2, 5, 7)
    cut = crops(pool, torch.tensor([2, 0, 2]), np.array([[2, 3], [0, 0], [0, 3]]), 3, 4)
    assert torch.equal(cut[0], pool[2, :, 2:, 3:])
    assert torch.equal(cut[1], pool[0, :, :3, :4])
    assert torch.equal(cut[2], pool[2, :, :3, 3:])
    assert torch.equal(crops(pool, torch.tensor([1]), np.zeros((1, 2), int), 5, 7), pool[1:2])


@pytest.mark.gpu
def test_the_same_batches_on_a_gpu(root: Path) -> None:
    for name in registry.SVHN:
        cpu, gpu = opened(root, name), opened(root, name).to("cuda")
        for one, other in zip(cpu.train_batch(1, 2, 1, 16), gpu.train_batch(1, 2, 1, 16), strict=True):
            assert other.is_cuda and torch.equal(one, other.cpu())
        assert cpu.digest("validation") == gpu.digest("validation")


@pytest.mark.gpu
def test_what_does_not_fit_on_the_gpu_stays_outside(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    cpu, gpu = opened(root), opened(root).to("cuda")
    assert not gpu.images["train"].is_cuda
    for one, other in zip(cpu.train_batch(1, 2, 1, 16), gpu.train_batch(1, 2, 1, 16), strict=True):
        assert other.is_cuda and torch.equal(one, other.cpu())
    assert gpu.fixed("test")[0].is_cuda and cpu.digest("test") == gpu.digest("test")


def test_the_defaults_are_those_of_the_paper() -> None:
    assert config_of("svhn") == Svhn()
