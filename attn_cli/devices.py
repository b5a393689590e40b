"""Which device, how many threads."""

from __future__ import annotations

import torch

from attn_cli.errors import Refused


def choose_device(name: str) -> torch.device:
    """`auto` takes the GPU if there is one; `gpu` without one is refused."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Refused(
            "This build of torch finds no GPU: use trainer=cpu (device=cpu for evaluation) or install a CUDA build."
        )
    return torch.device("cuda")


def set_threads(threads: int | None) -> int:
    """CPU threads of this process; None leaves what torch found. Returns the number in force."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
