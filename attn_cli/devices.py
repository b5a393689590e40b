"""Which device, how many threads."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    _convolve_in_fp32()
    return torch.device("cuda")


@functools.cache
def _convolve_in_fp32() -> None:
    """Once a process: a device is chosen again within a run that has asked for less."""
    torch.backends.cudnn.allow_tf32 = False


def explain_oom(error: BaseException, batch_size: int, key: str = "trainer.batch_size") -> Refused | None:
    """A refusal that says what to set, if `error` is a GPU, or a CPU, that ran out of memory; else None."""
    on_cpu = "DefaultCPUAllocator" in str(error)
    if not isinstance(error, torch.OutOfMemoryError) and "CUBLAS_STATUS_ALLOC_FAILED" not in str(error) and not on_cpu:
        return None
    training = key.startswith("trainer.")
    least = "choose a smaller model or image" if training or on_cpu else "set device=cpu"
    smaller = f"set {key}={batch_size // 2}" if batch_size > 1 else least
    kept = "; the checkpoints written so far are kept" if training else ""
    where = "machine" if on_cpu else "GPU"
    return Refused(f"The {where} ran out of memory with {key}={batch_size}: {smaller} and start again{kept}.")


@contextmanager
def explaining_oom(batch_size: int, key: str = "batch_size") -> Iterator[None]:
    """Work in batches, whose refusal says what to set where memory runs out."""
    try:
        yield
    except Exception as error:
        refused = explain_oom(error, batch_size, key)
        if refused is None:
            raise
        raise refused from error


def within_memory(run: Callable[..., T]) -> Callable[..., T]:
    """A command with batches of `batch_size` images, or of `trainer.batch_size`."""

    @functools.wraps(run)
    def command(config: Any, *others: Any) -> T:
        trainer = getattr(config, "trainer", None)
        holder, key = (config, "batch_size") if trainer is None else (trainer, "trainer.batch_size")
        with explaining_oom(holder.batch_size, key):
            return run(config, *others)

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
