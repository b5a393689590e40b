"""Which device, how many threads."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from attn_cli.errors import Refused

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def choose_device(name: str) -> torch.device:
    """`auto` takes the GPU if there is one; `gpu` without one is refused. Convolutions on a GPU are fp32 from then on,
    unless a training run asks for less (training.precision): torch rounds their operands unasked.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Refused(
            "This build of torch finds no GPU: use trainer=cpu (device=cpu for evaluation) or install a CUDA build."
        )
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def within_memory(run: Callable[[Any], T]) -> Callable[[Any], T]:
    """A command that evaluates, whose refusal says what to set where a GPU runs out of memory."""

    @functools.wraps(run)
    def command(config: Any) -> T:
        try:
            return run(config)
        except torch.OutOfMemoryError as error:
            size = config.batch_size
            smaller = f"set batch_size={size // 2}" if size > 1 else "set device=cpu"
            raise Refused(f"The GPU ran out of memory with batch_size={size}: {smaller} and start again.") from error

    return command


def send(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same values as a tensor on the device. From pinned memory a GPU takes them when it comes to them, and the
    host need not wait.
    """
    tensor = torch.as_tensor(values)
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def memory(device: torch.device) -> float:
    """Bytes that the device has; without bound where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def prepare_cpu(threads: int | None) -> int:
    """Set the CPU threads of this process (None leaves what torch found) and return the number in force; have memory
    that is freed kept for the next step.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    try:  # of glibc: without it every large tensor costs a page fault per 4 KiB
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    except (OSError, AttributeError, TypeError):  # another C library
        pass
    return torch.get_num_threads()
