"""Batches of birds: crops, mirrors, ten crops, boxes and splits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cub200_layout import folder, layout

from attn_cli.commands.data import config_of
from attn_cli.config.schema import Cub200
from attn_cli.data import photos, prepared, writing
from attn_cli.data.batches import open_data
from attn_cli.data.keys import below, draws, permutation
from attn_cli.data.splits import digest_of
from attn_cli.errors import Refused
from tests.data.conftest import assert_batches_are_pure

COUNTS = {"train": 60, "test": 9}


def noise_birds(train: int = COUNTS["train"]) -> prepared.Prepared:
    """Noise, its classes in turn, and boxes anywhere."""
    images, labels, boxes = {}, {}, {}
    for split, count in {**COUNTS, "train": train}.items():
        images[split] = (draws((count, 3, 256, 256), "birds", split) >> 23).astype(np.uint8)
        labels[split] = (np.arange(count) % 4).astype(np.uint8)
        corners = np.sort(below(256, (count, 2, 2), "boxes", split), 1)
        boxes[split] = corners.reshape(count, 4).astype(np.uint8)
    return prepared.Prepared("cub200", "made for a test", tuple("abcd"), images, labels, boxes)


SOURCE = noise_birds()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("birds")
    writing.write(SOURCE, path / "cub200.h5")
    return path


def opened(root: Path, **keys: Any) -> photos.Birds:
    data = open_data(dataclasses.replace(config_of("cub200"), root=str(root), **keys))
    assert isinstance(data, photos.Birds)
    return data


def rows_of(split: str) -> np.ndarray:
    """Which of the images validate or train."""
    drawn = permutation(COUNTS["train"], "cub200", "validation")
    return {"validation": np.sort(drawn[:6]), "train": np.sort(drawn[6:]), "test": np.arange(COUNTS["test"])}[split]


def test_what_it_offers(root: Path) -> None:
    data = opened(root)
    info = data.info
    assert (info.name, info.channels, info.height, info.width, info.classes) == ("cub200", 3, 224, 224, 4)
    assert (info.train, info.validation, info.test, info.length) == (54, 6, 9, 0)  # a tenth validates
    images, labels = data.train_batch(0, 0, 0, 8)
    assert images.dtype == torch.uint8 and images.shape == (8, 3, 224, 224) and images.is_contiguous()
    assert labels.dtype == torch.int64 and labels.shape == (8,)
    assert data.digest("test") == digest_of(*data.fixed("test"))
    assert opened(root, train_limit=5).info.train == 5 and opened(root, train_limit=5).info.validation == 6
    assert config_of("cub200") == Cub200()
    assert_batches_are_pure(data, opened(root))


def test_training_against_a_loop_over_images(root: Path) -> None:
    """A part from anywhere, in its own direction or mirrored, image by image."""
    images, labels = opened(root).train_batch(5, 2, 1, 16)
    order = rows_of("train")[permutation(54, "order", 5, 2)[16:32]]
    corners = below(33, (16, 2), "crop", 5, 2, 1)
    mirrored = below(2, (16,), "mirror", 5, 2, 1)
    assert 0 < mirrored.sum() < 16
    for b, row in enumerate(order):
        expected = np.empty((3, 224, 224), np.uint8)
        y, x = corners[b]
        for column in range(224):
            from_column = x + (223 - column if mirrored[b] else column)
            expected[:, :, column] = SOURCE.images["train"][row, :, y : y + 224, from_column]
        np.testing.assert_array_equal(images[b].numpy(), expected)
        assert labels[b] == SOURCE.labels["train"][row]


def test_half_of_the_crops_are_mirrored(root: Path) -> None:
    """Whatever the corner; a mirror changes with seed, epoch and step."""
    data = opened(root)
    data.images["train"] = torch.arange(256, dtype=torch.uint8).expand(60, 3, 256, 256).contiguous()
    batches = [data.train_batch(seed, epoch, 0, 54)[0][:, 0, 0] for seed in range(4) for epoch in range(8)]
    falling = torch.stack([images[:, 0] > images[:, -1] for images in batches])
    assert abs(falling.float().mean() - 0.5) < 0.08  # of 1728; 6 standard deviations
    assert len({tuple(one.tolist()) for one in falling}) == len(batches)
    lefts = torch.stack([images.min(1).values for images in batches]).view(-1)
    assert lefts.min() == 0 and lefts.max() == 32
    assert abs(falling.view(-1)[lefts > 16].float().mean() - 0.5) < 0.12


def test_the_centre_is_evaluated(root: Path) -> None:
    data = opened(root)
    for split, of in (("validation", "train"), ("test", "test")):
        images, labels = data.fixed(split)
        expected = SOURCE.images[of][rows_of(split)]
        np.testing.assert_array_equal(images.numpy(), expected[:, :, 16:240, 16:240])
        assert labels.tolist() == SOURCE.labels[of][rows_of(split)].tolist()
    assert not set(rows_of("train")) & set(rows_of("validation"))


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("size", [(224, 224), (101, 64), (256, 256)])
def test_ten_crops_against_slices(split: str, size: tuple[int, int], root: Path) -> None:
    height, width = size
    data = opened(root, height=height, width=width)
    whole = SOURCE.images["test" if split == "test" else "train"][rows_of(split)]
    bottom, right = 256 - height, 256 - width
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = list(data.ten_crops(split))
    assert len(crops) == 10
    for i, (top, left) in enumerate(places):
        expected = whole[:, :, top : top + height, left : left + width]
        np.testing.assert_array_equal(crops[i].numpy(), expected)
        np.testing.assert_array_equal(crops[5 + i].numpy(), expected[:, :, :, ::-1])
    assert torch.equal(crops[4], data.fixed(split)[0])


def test_boxes_of_the_fixed_images(root: Path) -> None:
    """Against the pixels that the box covers, counted in the crop."""
    for size in (224, 100):
        data = opened(root, height=size, width=size)
        start = (256 - size) // 2
        for split, of in (("validation", "train"), ("test", "test")):
            found = data.boxes(split)
            assert found.dtype == torch.int64 and found.shape == (len(rows_of(split)), 4)
            for box, row in zip(found.tolist(), rows_of(split), strict=True):
                left, top, right, bottom = SOURCE.boxes[of][row].astype(int)
                covered = np.zeros((256, 256), bool)
                covered[top : bottom + 1, left : right + 1] = True
                covered = covered[start : start + size, start : start + size]
                again = np.zeros_like(covered)
                again[box[1] : box[3], box[0] : box[2]] = True
                np.testing.assert_array_equal(again, covered)
                assert 0 <= box[0] <= box[2] <= size and 0 <= box[1] <= box[3] <= size


def test_a_large_file_is_mapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batches, read from the file as they are needed."""
    read = opened(root)
    monkeypatch.setattr(prepared, "MAPPED", 0)
    prepared._verified.clear()
    mapped = opened(root)
    assert isinstance(prepared.read("cub200", root).images["train"], np.memmap)
    assert torch.equal(read.train_batch(1, 2, 1, 8)[0], mapped.train_batch(1, 2, 1, 8)[0])
    assert read.digest("validation") == mapped.digest("validation") and read.digest("test") == mapped.digest("test")
    assert torch.equal(read.boxes("test"), mapped.boxes("test"))


def test_a_folder_in_the_layout_of_the_archive(tmp_path: Path) -> None:
    """`data=cub200 data.path=FOLDER` needs no prepared file."""
    config = dataclasses.replace(config_of("cub200"), path=str(folder(tmp_path / "birds", layout(40, 4))))
    data = open_data(dataclasses.replace(config, root=str(tmp_path / "nowhere"), download=False))
    assert isinstance(data, photos.Birds)
    assert (data.info.train, data.info.validation, data.info.test, data.info.classes) == (27, 3, 10, 4)
    assert data.info.class_names[2] == "003.Bird_2" and data.train_batch(0, 0, 0, 8)[0].shape == (8, 3, 224, 224)
    _, labels = data.fixed("test")
    assert labels.tolist() == [i % 4 for i in range(40) if i % 4 == 3]
    assert not (tmp_path / "nowhere").exists()


def test_few_images(tmp_path: Path) -> None:
    writing.write(noise_birds(train=2), tmp_path / "cub200.h5")
    assert (opened(tmp_path).info.train, opened(tmp_path).info.validation) == (1, 1)
    writing.write(noise_birds(train=1), tmp_path / "cub200.h5")
    with pytest.raises(Refused, match="cub200 has 1 training image, and one of them must validate"):
        opened(tmp_path)


@pytest.mark.gpu
def test_the_same_batches_on_a_gpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = opened(root), opened(root).to("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    outside = opened(root).to("cuda")  # does not fit and stays where it is
    for one in (gpu, outside):
        for ours, theirs in zip(cpu.train_batch(1, 2, 1, 8), one.train_batch(1, 2, 1, 8), strict=True):
            assert theirs.is_cuda and torch.equal(ours, theirs.cpu())
        assert cpu.digest("validation") == one.digest("validation")
        for ours, theirs in zip(cpu.ten_crops("test"), one.ten_crops("test"), strict=True):
            assert theirs.is_cuda and torch.equal(ours, theirs.cpu())
        assert one.boxes("test").is_cuda
