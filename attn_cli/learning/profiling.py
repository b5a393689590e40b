"""What a training step does on its device: kernels started, time in them, and what a lower precision costs.

On a GPU the events of torch's profiler are kernels and copies; on a CPU torch's operators, with which the same code is
tested where there is no GPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler writes two lines on stderr whenever it is used

STARTS = ("LaunchKernel", "GraphLaunch")  # in the names of the calls with which the host starts work on a GPU


@dataclass(frozen=True)
class Profile:
    launches: float  # per step: kernels, and graphs of them, that the host starts; on a CPU operators
    busy_seconds: float  # per step: in which the device works on at least one of them


def profile_steps(step: Callable[[], object], device: torch.device, steps: int = 3) -> Profile:
    """Some calls of `step`, which has run before."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        for _ in range(steps):
            step()
        if gpu:
            torch.cuda.synchronize()
    events = list(profiler.events() or [])
    if gpu:
        work = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        launches = sum(any(word in event.name for word in STARTS) for event in events)
    else:
        work = [event for event in events if _outermost(event)]
        launches = len(work)
    busy = covered((event.time_range.start, event.time_range.end) for event in work)
    return Profile(launches / steps, busy / steps / 1e6)


def share_of(function: Callable[[], object], operator: str, calls: int = 30) -> float:
    """The share of a function's time on a CPU that passes in one operator itself; the function has run before."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        seconds = time.perf_counter() - start
    inside = sum(event.self_cpu_time_total for event in profiler.key_averages() if event.key == operator)
    return float(inside / 1e6 / seconds)


def _outermost(event: Any) -> bool:
    """Whether an event on the CPU is an operator that no other operator called."""
    if not event.name.startswith("aten::"):
        return False
    while (event := event.cpu_parent) is not None:
        if event.name.startswith("aten::"):
            return False
    return True


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def relative_error(values: Iterable[Tensor | None], exact: Iterable[Tensor | None]) -> float:
    """‖a − b‖ / ‖b‖ over all tensors together; None counts as nothing in both."""
    pairs = [(a.double(), b.double()) for a, b in zip(values, exact, strict=True) if a is not None and b is not None]
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return float((difference / max(sum(float(b.square().sum()) for _, b in pairs), 1e-300)) ** 0.5)
