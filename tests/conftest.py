"""Skips what this machine cannot run, and says where genuine data lies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# A folder with mnist/train-images-idx3-ubyte.gz and its kin.
REAL_DATA = Path(os.environ.get("ATTN_REAL_DATA", REPOSITORY.parent / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    has_data = (REAL_DATA / "mnist").is_dir()
    has_gpu = any(item.get_closest_marker("gpu") for item in items) and _has_gpu()
    for item in items:
        if item.get_closest_marker("real_data") and not has_data:
            item.add_marker(pytest.mark.skip(reason=f"no genuine data in {REAL_DATA}; set ATTN_REAL_DATA"))
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture
def real_data() -> Path:
    """The folder with mnist/ in it; for tests marked real_data."""
    return REAL_DATA


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def ended_pid() -> int:
    """A process number that is no longer in use."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
