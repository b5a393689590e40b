"""The processes of one run: which of them this is, and what they exchange.

A run has one process a device. `attn` starts those of one machine itself (commands/launch.py); torchrun or srun start
those of several. However they were started, they hold the same weights, each takes its share of every batch, and the
first of them, rank 0, does all the writing. A process that is alone is rank 0 of 1; nothing below costs it anything.

Choices:
1. All exchanges are here, as plain collectives; Lightning sees one device a process. Its own strategy wraps the model
   in DistributedDataParallel, which cuts a compiled step into buckets and, for weights that an objective leaves without
   a gradient, waits for the device in every step.
2. Gradients travel as one buffer after the backward pass. They are small here; overlap would gain little.
3. An exchange with a process that has ended raises `Lost`.

Legend: R processes (`size`), r the rank of this one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from attn_cli.config import schema
from attn_cli.devices import choose_device
from attn_cli.errors import Refused

T = TypeVar("T")
LAUNCH = "ATTN_LAUNCH"  # names the folder in which commands/launch.py and its processes meet
PATIENCE = timedelta(minutes=30)  # for one exchange: the first one waits until all have prepared their data
FIRST_PORT = 15000  # of Slurm jobs, plus the last four digits of the job's number


class Lost(Refused):
    """An exchange failed because another process has ended; why it did stands in its own message."""


@dataclass(frozen=True)
class Place:
    """This process among those of the run."""

    rank: int
    size: int
    local_rank: int  # among those on this machine
    local_size: int
    meeting: str  # URL at which the processes find each other
    starter: str  # who started them, as named to the person


def place(trainer: schema.Trainer, environment: Mapping[str, str] = os.environ) -> Place | None:
    """Where this process stands, told by its environment; None for one that was started alone.

    Raises Refused if the number of processes on this machine is not `trainer.devices`.
    """
    several = trainer.devices > 1 or trainer.strategy == "ddp"
    found = None
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= environment.keys():
        own = LAUNCH in environment
        counts = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        found = Place(
            *counts, f"file://{environment[LAUNCH]}/meeting" if own else "env://", "attn" if own else "torchrun"
        )
    elif several and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # set by srun, not by sbatch
        found = _slurm(environment)
    if found is None:
        return None
    if not several and found.size > 1:
        raise Refused(
            f"{found.starter} started {found.size} processes of one run: add trainer=ddp "
            f"trainer.devices={found.local_size}, or start `attn` without it."
        )
    if found.local_size != trainer.devices:
        raise Refused(
            f"{found.starter} started {found.local_size} processes on this machine and trainer.devices="
            f"{trainer.devices}: set trainer.devices={found.local_size}."
        )
    if trainer.batch_size % found.size:
        raise Refused(f"trainer.batch_size={trainer.batch_size} must be a multiple of the {found.size} processes.")
    return found


def _slurm(environment: Mapping[str, str]) -> Place:
    from lightning_fabric.plugins.environments import SLURMEnvironment  # reads Slurm's lists of machines

    size, machines = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_STEP_NUM_NODES"])
    if size % machines:
        raise Refused(f"srun started {size} processes on {machines} machines: give it as many on each of them.")
    first = SLURMEnvironment.resolve_root_node_address(environment["SLURM_STEP_NODELIST"])
    port = environment.get("MASTER_PORT", FIRST_PORT + int(environment["SLURM_JOB_ID"][-4:]))
    meeting = f"tcp://{environment.get('MASTER_ADDR', first)}:{port}"
    ranks = int(environment["SLURM_PROCID"]), size, int(environment["SLURM_LOCALID"]), size // machines
    return Place(*ranks, meeting, "srun")


@contextlib.contextmanager
def joined(place: Place | None, accelerator: str) -> Iterator[None]:
    """This process as one of its run's, on the device with its local rank; only the first one's output is shown."""
    if place is None:
        yield
        return
    device = choose_device(accelerator)
    backend = "gloo"
    if device.type == "cuda":
        check_devices(place.local_size, device)
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


def check_devices(wanted: int, device: torch.device) -> None:
    """Raises Refused if this machine has fewer devices than wanted; on a CPU a process needs a core of its own."""
    if device.type == "cuda":
        there, what = torch.cuda.device_count(), "GPU"
    else:
        there, what = usable_cores(), "CPU core"
    if wanted > there:
        has = f"{there} {what}{'s' * (there > 1)}"
        advice = f"set trainer.devices={there}" if there > 1 else "leave trainer=ddp and trainer.devices out"
        raise Refused(f"trainer.devices={wanted} is more than the {has} that can be used here: {advice}.")


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(wanted: int | None, place: Place | None) -> int | None:
    """CPU threads for one process: as wanted, else an equal part of the machine's cores; None if it is alone."""
    if wanted is not None or place is None:
        return wanted
    return max(1, usable_cores() // place.local_size)


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


def total(tensor: Tensor) -> Tensor:
    """The sum over the processes, int64 of the same shape; made for counts."""
    tensor = tensor.long()
    if size() > 1:
        with _exchange():
            dist.all_reduce(tensor)
    return tensor


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
