"""Which device, how many threads."""

from __future__ import annotations

import ctypes

import torch

from attn_cli.errors import Refused

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def choose_device(name: str) -> torch.device:
    """`auto` takes the GPU if there is one; `gpu` without one is refused."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Refused(
            "This build of torch finds no GPU: use trainer=cpu (device=cpu for evaluation) or install a CUDA build."
        )
    return torch.device("cuda")


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
