"""Where a process stands among those of its run, and whether this machine has as many devices as they need.

A run has one process a device. `attn` starts those of one machine itself (commands/launch.py), torchrun or srun those
of several; each tells its processes by environment variables. Imports no torch, so that the process that only starts
the others is ready at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from attn_cli.config import schema
from attn_cli.errors import Refused

LAUNCH = "ATTN_LAUNCH"  # names the folder in which commands/launch.py and its processes meet
FIRST_PORT = 15000  # of Slurm jobs, plus the last four digits of the job's number


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
        found = Place(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment["LOCAL_RANK"]),
            local_size=int(environment["LOCAL_WORLD_SIZE"]),
            meeting=f"file://{environment[LAUNCH]}/meeting" if own else "env://",
            starter="attn" if own else "torchrun",
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


def check_devices(wanted: int, accelerator: str) -> None:
    """Raises Refused if this machine has fewer devices than wanted; on a CPU a process needs a core of its own."""
    there, what = usable_cores(), "CPU core"
    if accelerator != "cpu":
        import torch

        from attn_cli.devices import choose_device

        if choose_device(accelerator).type == "cuda":
            there, what = torch.cuda.device_count(), "GPU"
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
