"""What the processes of one run exchange, one process a device.

However they were started (places.py), they hold the same weights, each takes its share of every batch, and the first of
them, rank 0, does all the writing. A process that is alone is rank 0 of 1; nothing below costs it anything.

Choices:
1. All exchanges are here, as plain collectives; Lightning sees one device a process. Its own strategy wraps the model
   in DistributedDataParallel, which cuts a compiled step into buckets and, for weights that an objective leaves without
   a gradient, waits for the device in every step.
2. Gradients travel as one buffer after the backward pass. They are small here; overlap would gain little.
3. An exchange with a process that has ended raises `Lost` on a CPU (gloo). On a GPU (NCCL) it waits: what started the
   processes ends those that are left.
4. R processes take the same steps as one with the same batches, but for the order of additions, for dropout masks, and
   for the squared error of a baseline learned on sequences, a mean over the actions that count in a share.

Legend: R processes (`size`), r the rank of this one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from attn_cli.devices import choose_device
from attn_cli.errors import Refused
from attn_cli.places import Place, check_devices

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # for one exchange: the first one waits until all have prepared their data


class Lost(Refused):
    """An exchange failed because another process has ended; why it did stands in its own message."""


@contextlib.contextmanager
def joined(place: Place | None, accelerator: str) -> Iterator[None]:
    """This process as one of its run's, on the device with its local rank; only the first one's output is shown."""
    if place is None:
        yield
        return
    backend = "gloo"
    if choose_device(accelerator).type == "cuda":
        check_devices(place.local_size, accelerator)
        torch.cuda.set_device(place.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    with contextlib.ExitStack() as stack:
        if place.rank:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        with _exchange():
            dist.init_process_group(
                backend, init_method=place.meeting, rank=place.rank, world_size=place.size, timeout=PATIENCE
            )
        try:
            yield
            wait()  # the first one may still be writing, and torchrun's processes meet at it
        finally:
            if sys.exc_info()[0] is None or backend == "gloo":  # NCCL would wait for those that are gone
                dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(count: int) -> slice:
    """Which of `count` images this process evaluates: contiguous parts, each image in exactly one of them."""
    r, R = rank(), size()
    return slice(count * r // R, count * (r + 1) // R)


def average_(tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes its mean over the processes, in one exchange; without a host-device sync."""
    if size() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _exchange():
        dist.all_reduce(flat)
    flat /= size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def give(tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes the first process's."""
    if size() > 1:
        with _exchange():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def total(tensor: Tensor) -> Tensor:
    """The sum over the processes, int64 of the same shape; made for counts."""
    tensor = tensor.long()
    if size() > 1:
        with _exchange():
            dist.all_reduce(tensor)
    return tensor


class Summed(torch.autograd.Function):
    """The sum of a tensor over the processes, and of its gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        sums = tensor.clone(memory_format=torch.contiguous_format)
        with _exchange():
            dist.all_reduce(sums)
        return sums

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return summed(gradient)


def summed(tensor: Tensor) -> Tensor:
    """A new tensor, the sum over the processes, through which gradients pass."""
    sums: Tensor = Summed.apply(tensor)
    return sums


def anywhere(wanted: bool) -> bool:
    """Whether it is so in any process."""
    return bool(total(torch.tensor([wanted])).item()) if size() > 1 else wanted


def from_first(value: T) -> T:
    """The first process's value, in all of them."""
    values = [value]
    if size() > 1:
        with _exchange():
            dist.broadcast_object_list(values)
    return values[0]


def gathered(value: T) -> list[T]:
    """Everybody's value, by rank."""
    values: list[Any] = [value]
    if size() > 1:
        values *= size()
        with _exchange():
            dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Until all processes are here."""
    anywhere(False)


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # also torch.distributed.DistError
        raise Lost(
            "The connection to the other processes of the run was lost, because one of them has ended."
        ) from error
