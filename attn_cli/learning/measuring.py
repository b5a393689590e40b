"""Time and memory of what a program does, for comparisons within one run."""

from __future__ import annotations

import contextlib
import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback


def in_turns(functions: dict[str, Callable[[], None]], seconds: float, device: torch.device) -> dict[str, float]:
    """Median seconds of one call of each function: short bursts of each, one after the other, for `seconds` in
    total.
    """

    def burst(function: Callable[[], None], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    for function in functions.values():
        burst(function, 2)  # compile, allocate
    calls = {name: max(1, int(0.1 / burst(function, 3))) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for name, function in functions.items():
            times[name].append(burst(function, calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


class Clock(Callback):
    """Notes the time at which one step in `every` starts, when a GPU has done all before it."""

    def __init__(self, every: int = 1):
        self.every, self.times = every, list[float]()

    def on_train_batch_start(self, trainer: object, module: Any, batch: object, number: int) -> None:
        if number % self.every:
            return
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def seconds(self) -> float:
        """Median of a step, without the first tenth, which may compile and allocate."""
        warm = self.times[len(self.times) // 10 + 1 :]
        return statistics.median(b - a for a, b in zip(warm, warm[1:], strict=False)) / self.every


def start_memory(device: torch.device) -> None:
    """Forget the largest memory so far: of the GPU, or where the system can of the process."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """Largest memory in MB: on a GPU what tensors took, on a CPU the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
