"""Which device, and what is said of one that is too small."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from attn_cli import devices
from attn_cli.commands import attend, bench, combine, evaluate, mc_average, train, train_together
from attn_cli.config import schema
from attn_cli.config.command_sections import Attend, Bench, Combine, Evaluate, McAverage
from attn_cli.errors import Refused
from attn_cli.learning.training import precision


@pytest.mark.parametrize(
    ("command", "config"),
    [
        (evaluate, Evaluate(batch_size=64)),
        (mc_average, McAverage(batch_size=64)),
        (combine, Combine("forward", "backward", batch_size=64)),
        (attend, Attend(output="regions.h5", batch_size=64)),
        (bench, Bench(batch_size=64)),
    ],
)
def test_a_gpu_that_runs_out_of_memory_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, command: ModuleType, config: Any
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(command, "prepare_cpu", full)
    with pytest.raises(Refused, match="with batch_size=64: set batch_size=32 and start again"):
        command.run(config)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_gpu_without_room_for_the_data_says_what_to_set(monkeypatch: pytest.MonkeyPatch, seeds: int) -> None:
    class Full:
        def to(self, device: torch.device) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    for command in (train, train_together):
        monkeypatch.setattr(command, "check_sources", lambda config: None)
        monkeypatch.setattr(command, "open_data", lambda data: Full())
    config = schema.Config(trainer=schema.Trainer(accelerator="cpu", batch_size=64, parallel_seeds=seeds))
    with pytest.raises(Refused, match=r"with trainer\.batch_size=64: set trainer\.batch_size=32 and start again"):
        train.run(config)


def test_a_gpu_that_is_chosen_again_leaves_convolutions_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 from the first time on, less where a run asks for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    devices._convolve_in_fp32.cache_clear()
    devices.choose_device("gpu")
    assert not torch.backends.cudnn.allow_tf32
    with precision("tf32"):
        devices.choose_device("auto")
        assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
