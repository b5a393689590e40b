from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from attn_cli.commands import train
from attn_cli.commands.data import config_of
from attn_cli.config import registry
from attn_cli.config.schema import Arrays, Config, Pairs, Ram, Scenes, Tracks, Trainer
from attn_cli.data import prepared, splits, writing
from attn_cli.data.batches import Digits, Images, open_data
from attn_cli.data.prepared import Prepared
from attn_cli.data.splits import digest_of
from attn_cli.errors import Refused


def small(root: Path, **keys: Any) -> Digits:
    data = open_data(Scenes("digits", "digits", root=str(root), **keys))
    assert isinstance(data, Digits)
    return data


def images_of(count: int, classes: int = 3) -> Images:
    """Image i is filled with i."""
    images = {
        s: np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(6, 2).repeat(5, 3) for s in prepared.SPLITS
    }
    labels = {s: np.arange(count) % classes for s in prepared.SPLITS}
    return Images("own", images, labels, tuple(map(str, range(classes))), 9)


@pytest.mark.parametrize("name", registry.SCENES)
def test_every_configured_scene(name: str, digit_root: Path) -> None:
    config = dataclasses.replace(config_of(name), source="digits", root=str(digit_root))
    data = open_data(config)
    info = data.info
    side = {"mnist": 28, "digits": 28, "cluttered_single": 100}.get(name, 100 if name.endswith("100") else 60)
    assert (info.name, info.channels, info.height, info.width, info.classes) == (name, 1, side, side, 10)
    assert (info.train, info.validation, info.test, info.background) == (60, 20, 30, 0)
    images, labels = data.train_batch(0, 0, 0, 16)
    assert images.dtype == torch.uint8 and images.shape == (16, 1, side, side)
    assert labels.dtype == torch.int64 and labels.shape == (16,)
    fixed, targets = data.fixed("test")
    assert fixed.shape == (30, 1, side, side) and targets.shape == (30,) and fixed.dtype == torch.uint8
    assert data.digest("test") == digest_of(fixed, targets) != data.digest("validation")


def test_scenes_that_no_memory_holds_are_refused(digit_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a run has a folder; what comes in batches does without."""
    root = str(digit_root)
    too_large = [
        Scenes("digits", "digits", 100, 100, translate=True, root=root),
        Pairs(source="digits", pieces=0, root=root),
    ]
    monkeypatch.setattr(splits, "memory", lambda device: 50 * 100 * 100 - 1)
    for config in too_large:
        data = open_data(config)
        assert len(data.train_batch(0, 0, 0, 16)[0]) == 16
        with pytest.raises(Refused, match="The 50 images of 100×100 that validate and test take .* GB of memory: make"):
            data.fixed("validation")
        for seeds in (1, 2):
            trainer = Trainer(accelerator="cpu", epochs=1, batch_size=16, compile="off", parallel_seeds=seeds)
            with pytest.raises(Refused, match="of memory"):
                train.run(Config(data=config, model=Ram(hidden=8), trainer=trainer, outputs=str(digit_root / "runs")))
    assert not (digit_root / "runs").exists()
    assert open_data(Tracks(source="digits", root=root)).fixed("test")[0][:2].shape == (2, 20, 1, 100, 100)
    monkeypatch.setattr(splits, "memory", lambda device: 50 * 100 * 100)
    assert all(len(open_data(config).fixed("test")[0]) == 30 for config in too_large)


def test_a_batch_is_a_pure_function_of_its_arguments(digit_root: Path) -> None:
    keys: dict[str, Any] = dict(height=40, width=50, pieces=2, translate=True)
    first, second = small(digit_root, **keys), small(digit_root, **keys)
    wanted = [(0, 0, 0), (0, 0, 2), (0, 1, 1), (1, 0, 0)]
    made = [first.train_batch(*w, 16) for w in wanted]
    for place, (images, labels) in reversed(list(zip(wanted, made, strict=True))):
        again = second.train_batch(*place, 16)
        assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
    for i, (images, _) in enumerate(made):
        assert all(not torch.equal(images, other) for other, _ in made[i + 1 :])


def test_order_and_places_change_with_seed_epoch_and_step(tmp_path: Path) -> None:
    plain = images_of(50)  # only the order is random
    orders = [plain.train_batch(seed, epoch, 0, 50)[0][:, 0, 0, 0].tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    flat = {split: np.full((32, 28, 28), 9, np.uint8) for split in prepared.SPLITS}  # only the places are random
    labels = {split: np.zeros(32, np.uint8) for split in prepared.SPLITS}
    writing.write(Prepared("digits", "flat", ("0",), flat, labels), prepared.path_of("digits", tmp_path))
    data = small(tmp_path, height=60, width=60, translate=True)
    for one, other in (((0, 0, 0), (1, 0, 0)), ((0, 0, 0), (0, 1, 0)), ((0, 0, 0), (0, 0, 1))):
        assert not torch.equal(data.train_batch(*one, 16)[0], data.train_batch(*other, 16)[0])


def test_an_epoch_shows_every_image_once_and_drops_the_last_partial_batch() -> None:
    data = images_of(50)
    assert data.steps_per_epoch(16) == 3
    seen = torch.cat([data.train_batch(0, 4, step, 16)[0][:, 0, 0, 0] for step in range(3)])
    assert len(seen.unique()) == 48
    assert data.steps_per_epoch(10) == 5
    seen = torch.cat([data.train_batch(0, 4, step, 10)[0][:, 0, 0, 0] for step in range(5)])
    assert sorted(seen.tolist()) == list(range(50))
    with pytest.raises(IndexError):
        data.train_batch(0, 4, 3, 16)


def test_labels_stay_with_their_images() -> None:
    images, labels = images_of(50).train_batch(3, 1, 0, 50)
    assert torch.equal(images[:, 0, 0, 0] % 3, labels.to(torch.uint8))


def photos(**keys: Any) -> Images:
    """60 images 2×6×5 of noise for each split."""
    drawn = np.random.default_rng(0)
    images = {s: drawn.integers(10, 256, (60, 2, 6, 5)).astype(np.uint8) for s in prepared.SPLITS}
    labels = {s: np.arange(60) for s in prepared.SPLITS}
    return Images("own", images, labels, tuple(map(str, range(60))), 9, **keys)


def moved(image: torch.Tensor, down: int, right: int, background: int) -> torch.Tensor:
    """Pixel by pixel."""
    made = torch.full_like(image, background)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            if 0 <= y - down < image.shape[1] and 0 <= x - right < image.shape[2]:
                made[:, y, x] = image[:, y - down, x - right]
    return made


@pytest.mark.parametrize("shift, mirror", [(2, False), (0, True), (2, True), (4, False)])
def test_training_images_are_moved_and_mirrored_as_asked(shift: int, mirror: bool) -> None:
    """Each is one of those that a loop makes of its image, all kinds occur, other splits stay as they are."""
    data = photos(shift=shift, mirror=mirror)
    steps = range(-shift, shift + 1)
    seen = set()
    for epoch in range(20):
        images, labels = data.train_batch(0, epoch, 0, 60)
        for image, label in zip(images[:20], labels.tolist()[:20], strict=True):
            original = data.images["train"][label]
            kinds = [
                (down, right, flipped)
                for flipped in {False, mirror}
                for down in steps
                for right in steps
                if torch.equal(image, (lambda m: m.flip(-1) if flipped else m)(moved(original, down, right, 9)))
            ]
            assert len(kinds) == 1
            seen.add(kinds[0])
    assert len(seen) > 0.95 * len(steps) ** 2 * (1 + mirror)
    again = photos(shift=shift, mirror=mirror).train_batch(0, 19, 0, 60)[0]
    assert torch.equal(images, again)
    for split in prepared.SPLITS:
        assert torch.equal(data.fixed(split)[0], photos().fixed(split)[0])


def test_a_configuration_asks_for_it(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(40) % 2)
    for keys, moved in (({}, False), ({"shift": 3}, True), ({"mirror": True}, True)):
        data = open_data(Arrays(path=str(tmp_path / "own.npz"), **keys))
        batch = data.train_batch(0, 0, 0, 16)[0]
        originals = {tuple(image.flatten().tolist()) for image in images}
        assert all(tuple(image.flatten().tolist()) in originals for image in batch) != moved


def test_a_shift_out_of_the_image_is_refused() -> None:
    with pytest.raises(Refused, match="data.shift=5 moves images of 6×5 out of sight: at most 4"):
        photos(shift=5)


def test_fewer_images_than_a_batch_and_a_batch_of_one(digit_root: Path) -> None:
    data = small(digit_root, height=40, width=40, pieces=1, translate=True)
    assert data.steps_per_epoch(1000) == 1 and data.train_batch(0, 0, 0, 1000)[0].shape[0] == 60
    assert data.steps_per_epoch(1) == 60 and data.train_batch(0, 0, 59, 1)[0].shape == (1, 1, 40, 40)


def test_train_limit_uses_the_first_images_only(digit_root: Path) -> None:
    everything, few = small(digit_root), small(digit_root, train_limit=7)
    assert few.info.train == 7 and few.info.test == 30
    images, _ = few.train_batch(0, 0, 0, 128)
    assert {tuple(i.flatten().tolist()) for i in images} == {
        tuple(i.flatten().tolist()) for i in everything.images["train"][:7]
    }
    assert small(digit_root, train_limit=1_000_000).info.train == 60
    assert few.digest("test") == everything.digest("test")
    cluttered = small(digit_root, train_limit=1, pieces=3, height=60, width=60, translate=True)
    assert cluttered.train_batch(0, 0, 0, 8)[0].shape == (1, 1, 60, 60)


def test_every_split_has_its_own_digits_and_clutter(tmp_path: Path) -> None:
    grey = {"train": 10, "validation": 90, "test": 250}
    images = {split: np.full((20, 28, 28), value, np.uint8) for split, value in grey.items()}
    labels = {split: np.zeros(20, np.uint8) for split in grey}
    writing.write(Prepared("digits", "flat", ("0",), images, labels), prepared.path_of("digits", tmp_path))
    data = small(tmp_path, height=60, width=60, pieces=1, translate=True)
    assert set(data.train_batch(0, 0, 0, 20)[0].unique().tolist()) <= {0, 10, 20}
    assert set(data.fixed("validation")[0].unique().tolist()) <= {0, 90, 180}
    assert set(data.fixed("test")[0].unique().tolist()) <= {0, 250, 255}


def test_fixed_scenes_do_not_depend_on_the_run(digit_root: Path) -> None:
    keys: dict[str, Any] = dict(height=60, width=60, pieces=4, translate=True)
    first = small(digit_root, **keys)
    first.train_batch(5, 5, 0, 32)
    torch.manual_seed(123)
    torch.set_num_threads(2)
    assert first.digest("test") == small(digit_root, **keys).digest("test")
    assert first.digest("test")[:16] == "7f94ac18446f55de"
    assert first.digest("validation")[:16] == "2c851a05143f9c22"


def test_cluttered_single_has_the_scenes_of_cluttered_mnist_100(digit_root: Path) -> None:
    one, other = (
        open_data(dataclasses.replace(config_of(name), source="digits", root=str(digit_root)))
        for name in ("cluttered_single", "cluttered_mnist_100")
    )
    assert [one.digest(split) for split in ("validation", "test")] == [
        other.digest(split) for split in ("validation", "test")
    ]
    assert torch.equal(one.train_batch(1, 2, 0, 16)[0], other.train_batch(1, 2, 0, 16)[0])


def test_a_class_that_never_occurs(digit_root: Path) -> None:
    data = small(digit_root)
    assert data.info.classes == 10 and 7 not in data.labels["train"] and 7 in data.labels["test"]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (dict(height=27), "27×28"),
        (dict(width=20, translate=True), "28×20"),
        (dict(pieces=1, piece_size=29, height=60, width=60), "piece_size=29"),
    ],
)
def test_sizes_that_cannot_work_are_refused(keys: dict[str, Any], named: str, digit_root: Path) -> None:
    with pytest.raises(Refused, match=named):
        small(digit_root, **keys)


def test_missing_data_is_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"attn data prepare mnist --root {tmp_path}"):
        open_data(Scenes(root=str(tmp_path), download=False))
    assert list(tmp_path.iterdir()) == []


def test_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATTN_DATA", str(tmp_path / "env"))
    assert prepared.data_root(None) == tmp_path / "env"
    assert prepared.data_root(str(tmp_path / "given")) == tmp_path / "given"
    assert prepared.rebuild_command("mnist", tmp_path / "env") == "attn data prepare mnist"
    monkeypatch.delenv("ATTN_DATA")
    assert prepared.data_root(None).name == "attn"


def test_a_data_set_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is registered under another name is called with its configuration."""
    monkeypatch.setattr(registry, "load", lambda kind, name: lambda config, log: (kind, name, config.answer))
    assert open_data(OmegaConf.create({"name": "theirs", "answer": 42})) == ("data", "theirs", 42)


@pytest.mark.gpu
def test_batches_and_digests_are_the_same_on_a_gpu(digit_root: Path) -> None:
    keys: dict[str, Any] = dict(height=60, width=60, pieces=4, translate=True)
    here, there = small(digit_root, **keys), small(digit_root, **keys).to("cuda")
    assert here.digest("test") == there.digest("test")
    for step in range(3):
        ours, theirs = here.train_batch(0, 1, step, 16), there.train_batch(0, 1, step, 16)
        assert theirs[0].is_cuda and torch.equal(ours[0], theirs[0].cpu()) and torch.equal(ours[1], theirs[1].cpu())
    assert here.to("cuda").fixed("test")[0].is_cuda


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["cluttered_digits", "digits_pairs", "digits_scales", "digits_sequence", "house_numbers"]
)
def test_the_host_does_not_wait_for_a_batch_on_a_gpu(name: str, digit_root: Path) -> None:
    data = open_data(dataclasses.replace(config_of(name), root=str(digit_root))).to("cuda")
    data.train_batch(0, 0, 0, 16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        data.train_batch(0, 0, 1, 16)
    finally:
        torch.cuda.set_sync_debug_mode("default")
