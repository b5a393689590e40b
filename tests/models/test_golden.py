"""Twenty seeded steps of each model against stored losses: a refactor leaves them as they are.

After a change that is meant to alter them, run `ATTN_WRITE_GOLDEN=1 pytest tests/models/test_golden.py` and commit
the files.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_cli.config import schema
from attn_cli.data.splits import DataInfo
from attn_cli.devices import prepare_cpu
from attn_cli.learning.training import make_learner

FOLDER = Path(__file__).parent / "golden"
CASES = {
    "ram": schema.Ram(),
    "ram_paper": schema.Ram(
        samples=1, baseline="learned", reward="correct", reinforce_weight=0.01, policy_gradient="detached"
    ),
    "ram_lstm": schema.Ram(name="ram_lstm", core="lstm"),
    "ram_grid": schema.Ram(policy="grid", reward="log_likelihood", discount=0.9),
    "ram_stop": schema.Ram(stop="learned", discount=0.9),
    "ram_scale": schema.Ram(scale="learned", largest_magnification=3.0),
    "soft_ram": schema.SoftRam(features=64, hidden=64, filters=(4, 4, 8), centre="relative", limit=0.6),
    "rsam": schema.Rsam(hidden=120),
    "draw_reader": schema.DrawReader(hidden=64),
    "stn": schema.Stn(features=64, hidden=64, filters=(4, 4, 8)),
    "dram": schema.Dram(glimpse="fc", filters=(8, 8, 16), features=64, hidden=64, reward="probability"),
}


class FixedBatch:
    """Stripes whose direction is the class, so that there is something to learn in twenty steps; with a grain, so that
    no two places tie in a max-pooling, where rounding would decide.
    """

    info = DataInfo("stripes", 1, 24, 20, 2, ("across", "down"), 0, 32, 32, 32)

    def steps_per_epoch(self, batch_size: int) -> int:
        return 20

    def batch(self):
        labels = torch.arange(32) % 2
        phase = torch.arange(32)[:, None, None] // 2
        y, x = torch.meshgrid(torch.arange(24), torch.arange(20), indexing="ij")
        along = torch.where(labels[:, None, None] == 0, y, x)
        grain = (31 * y + 17 * x + 7 * phase) % 59
        return (((along + phase) % 4 < 2) * 196 + grain).to(torch.uint8)[:, None], labels


def losses(model: Any) -> list[float]:
    data = FixedBatch()
    config = schema.Config(
        model=model,
        glimpses=schema.Glimpses(1, 12) if isinstance(model, schema.Stn) else schema.Glimpses(4, 6),
        scales=schema.Scales(1 if isinstance(model, (schema.SoftRam, schema.DrawReader, schema.Stn)) else 2),
        trainer=schema.Trainer(epochs=1, batch_size=32, compile="off"),
        seed=3,
    )
    learner = make_learner(config, data)
    if isinstance(model, schema.Rsam):  # batch normalisation lets the last bits of float32 grow to a percent
        learner.model.double()
    made = learner.configure_optimizers()
    optimiser, schedule = made["optimizer"], made["lr_scheduler"]
    seen = []
    for step in range(20):
        loss = learner.loss((*data.batch(), 0, step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_give_the_stored_losses(case):
    before = torch.get_num_threads()
    prepare_cpu(1)
    try:
        seen = losses(CASES[case])
    finally:
        prepare_cpu(before)
    path = FOLDER / f"{case}.json"
    if os.environ.get("ATTN_WRITE_GOLDEN"):
        path.write_text(json.dumps([round(value, 6) for value in seen]) + "\n")
    assert seen == pytest.approx(json.loads(path.read_text()), rel=2e-3, abs=2e-4)
    assert seen[-1] < seen[0]
