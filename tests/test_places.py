"""Where processes stand, told by torchrun, Slurm or `attn` itself, and what they are refused for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from attn_cli import places
from attn_cli.config import schema
from attn_cli.errors import Refused
from attn_cli.places import LAUNCH, Place, place

DDP = schema.Trainer(name="ddp", accelerator="cpu", devices=2, strategy="ddp")
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"}
SLURM = {
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "1234567",
}  # fmt: skip


def test_place_by_torchrun_and_slurm() -> None:
    four = replace(DDP, devices=4)
    assert place(four, TORCHRUN) == Place(5, 8, 1, 4, "env://", "torchrun")
    assert place(four, {**TORCHRUN, LAUNCH: "/x"}) == Place(5, 8, 1, 4, "file:///x/meeting", "attn")
    assert place(four, SLURM) == Place(5, 8, 1, 4, "tcp://node07:19567", "srun")
    at = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    assert place(four, {**SLURM, **at}) == Place(5, 8, 1, 4, "tcp://10.0.0.1:1234", "srun")


def test_jobs_of_slurm_that_are_not_one_run() -> None:
    batch_script = {key: value for key, value in SLURM.items() if "STEP" not in key} | {"SLURM_NTASKS": "8"}
    assert place(replace(DDP, devices=4), batch_script) is None
    assert place(schema.Trainer(), SLURM) is None  # such as srun -n 8 attn train seed=…
    assert place(DDP, {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    "trainer, environment, says",
    [
        (schema.Trainer(), TORCHRUN, "torchrun started 8 processes of one run: add trainer=ddp trainer.devices=4"),
        (DDP, TORCHRUN, "started 4 processes on this machine and trainer.devices=2: set trainer.devices=4"),
        (DDP, SLURM, "srun started 4 processes on this machine and trainer.devices=2"),
        (DDP, {**SLURM, "SLURM_STEP_NUM_NODES": "3"}, "8 processes on 3 machines"),
        (replace(DDP, devices=4, batch_size=12), TORCHRUN, "batch_size=12 must be a multiple of the 8 processes"),
    ],
)
def test_starts_that_do_not_fit_are_refused(trainer: schema.Trainer, environment: dict[str, str], says: str) -> None:
    with pytest.raises(Refused, match=says):
        place(trainer, environment)


def test_fewer_devices_than_asked_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "usable_cores", lambda: 2)
    places.check_devices(2, "cpu")
    with pytest.raises(Refused, match="devices=4 is more than the 2 CPU cores that can be used.*devices=2"):
        places.check_devices(4, "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Refused, match="devices=2 is more than the 1 GPU that can be used here: leave trainer=ddp"):
        places.check_devices(2, "gpu")


def test_threads_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "usable_cores", lambda: 16)
    somewhere = place(replace(DDP, devices=4), TORCHRUN)
    assert (places.threads(None, somewhere), places.threads(3, somewhere)) == (4, 3)
    assert (places.threads(None, None), places.threads(3, None)) == (None, 3)


def test_a_process_started_alone() -> None:
    assert place(schema.Trainer(), {}) is None and place(DDP, {}) is None


def test_what_starts_the_others_imports_no_torch() -> None:
    code = "import sys, attn_cli.commands.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
