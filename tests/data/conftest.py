"""Small prepared digits, so that the tests of scenes and batches render nothing and need no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from attn_cli.data import prepared, writing
from attn_cli.data.keys import draws
from attn_cli.data.prepared import Prepared
from attn_cli.data.splits import Data

COUNTS = {"train": 60, "validation": 20, "test": 30}


def small_digits(shape: tuple[int, int] = (28, 28), name: str = "digits") -> Prepared:
    """Noise in place of digits: 60, 20 and 30 images, class 7 only in the test split."""
    images, labels = {}, {}
    for split, count in COUNTS.items():
        images[split] = (draws((count, *shape), "test digits", split) >> 23).astype(np.uint8)
        labels[split] = (np.arange(count) % 10).astype(np.uint8)
        if split != "test":
            labels[split][labels[split] == 7] = 1
    return Prepared(name, "made for a test", tuple("0123456789"), images, labels)


@pytest.fixture
def digit_root(tmp_path: Path) -> Path:
    """A data folder with the small digits prepared as "digits"."""
    root = tmp_path / "data"
    root.mkdir()
    writing.write(small_digits(), prepared.path_of("digits", root))
    return root


def assert_batches_are_pure(first: Data, second: Data) -> None:
    """Two instances of a set give the same batches in any order, and different ones for different arguments."""
    wanted = [(0, 0, 0), (0, 0, 2), (0, 1, 1), (1, 0, 0)]
    made = [first.train_batch(*w, 16) for w in wanted]
    for at, (images, labels) in reversed(list(zip(wanted, made, strict=True))):
        again = second.train_batch(*at, 16)
        assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
    for i, (images, _) in enumerate(made):
        assert all(not torch.equal(images, other) for other, _ in made[i + 1 :])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread waits for the first where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
