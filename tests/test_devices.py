"""What is said of a device that is too small."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from attn_cli.commands import attend, combine, evaluate, mc_average
from attn_cli.config.command_sections import Attend, Combine, Evaluate, McAverage
from attn_cli.errors import Refused


@pytest.mark.parametrize(
    ("command", "config"),
    [
        (evaluate, Evaluate(batch_size=64)),
        (mc_average, McAverage(batch_size=64)),
        (combine, Combine("forward", "backward", batch_size=64)),
        (attend, Attend(output="regions.h5", batch_size=64)),
    ],
)
def test_a_gpu_that_runs_out_of_memory_in_an_evaluation_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, command: ModuleType, config: Any
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(command, "prepare_cpu", full)
    with pytest.raises(Refused, match="with batch_size=64: set batch_size=32 and start again"):
        command.run(config)
