"""One fit: where it leaves the model, and when a step forgets the gradients of the one before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attn_cli.commands import outcome, train
from attn_cli.config import schema
from attn_cli.data.splits import DataInfo
from attn_cli.devices import explain_oom
from attn_cli.errors import Refused
from attn_cli.inference.monte_carlo import evaluate
from attn_cli.learning.guards import Checkpoints
from attn_cli.learning.learner import Learner
from attn_cli.learning.parallel import ParallelLearner
from attn_cli.learning.training import fit, make_learner
from attn_cli.runs import all_runs, create


class Noise:
    """One batch of eight images of noise, again and again."""

    info = DataInfo("noise", 1, 28, 28, 2, ("0", "1"), 0, 16, 8, 8)

    def __init__(self, device: str = "cpu"):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8, generator=generator)
        self.images, self.labels = images.to(device), torch.arange(8, device=device) % 2

    def steps_per_epoch(self, batch_size: int) -> int:
        return 2

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images, self.labels

    def fixed(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images, self.labels


def settings(accelerator: str = "cpu", lr: float = 0.01) -> schema.Config:
    return schema.Config(
        model=schema.Ram(hidden=16, glimpse_hidden=8, glimpse_features=16, samples=2),
        glimpses=schema.Glimpses(3, 8),
        trainer=schema.Trainer(epochs=1, batch_size=8, compile="off", accelerator=accelerator),
        optimizer=schema.Optimizer(lr=lr),
    )


def test_the_model_is_on_its_device_after_training(monkeypatch):
    """Lightning moves it to the CPU at the end of a fit; the final evaluation has its images on the device."""
    learner, moves = make_learner(settings(), Noise()), []
    monkeypatch.setattr(Learner, "cpu", lambda self: moves.append("Lightning's end"))
    monkeypatch.setattr(Learner, "to", lambda self, device: moves.append(device))
    fit(learner, settings())
    assert moves[-2:] == ["Lightning's end", torch.device("cpu")]


def test_out_of_memory_in_an_evaluation_says_what_to_set_there(tmp_path: Path, monkeypatch):
    """Whether in validation or at the end: the batch of training is not what was too large."""

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    config, says = settings(), r"with trainer\.eval_batch_size=1000: set trainer\.eval_batch_size=500 and start again"
    learner, run = make_learner(config, Noise()), create(config, tmp_path)
    fit(learner, config, [Checkpoints(run.checkpoints)])
    monkeypatch.setattr(outcome, "evaluate", full)
    with pytest.raises(Refused, match=says):
        outcome.evaluated(run, config, learner.data, learner, 1)
    monkeypatch.setattr("attn_cli.learning.learner.evaluate", full)
    with pytest.raises(Refused, match=says):
        fit(make_learner(config, Noise()), config)


def test_a_cpu_without_memory_is_told_as_a_gpu_is():
    with pytest.raises(RuntimeError) as full:
        torch.empty(2**55)
    told = explain_oom(full.value, 128)
    assert told is not None and str(told).startswith(
        "The machine ran out of memory with trainer.batch_size=128: set trainer.batch_size=64 and start again"
    )
    assert "choose a smaller model or image" in str(explain_oom(full.value, 1, "batch_size"))


@pytest.mark.parametrize("seeds", [1, 2])
def test_out_of_memory_in_a_step_is_recorded_as_it_is_told(tmp_path: Path, monkeypatch, seeds: int):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    images, labels = np.zeros((40, 16, 16), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    small = settings()
    config = replace(
        small,
        data=schema.Arrays(path=str(tmp_path / "images.npz")),
        trainer=replace(small.trainer, parallel_seeds=seeds),
        outputs=str(tmp_path / "outputs"),
    )
    monkeypatch.setattr(Learner, "training_step", full)
    with pytest.raises(Refused, match="ran out of memory with trainer.batch_size=8: set trainer.batch_size=4") as told:
        train.run(config)
    statuses = [run.status() for run in all_runs(config.outputs)]
    assert [(status["status"], status["message"]) for status in statuses] == seeds * [("failed", str(told.value))]


@pytest.mark.gpu
def test_training_on_a_gpu_and_what_follows():
    learner = make_learner(settings("gpu"), Noise("cuda"))
    for _ in range(2):
        fit(learner, settings("gpu"))
        evaluate(learner.model, *learner.data.fixed("test"))
        assert {parameter.device.type for parameter in learner.parameters()} == {"cuda"}


@pytest.mark.parametrize("rates", [(), (0.01, 0.02)])
def test_no_gradient_is_left_when_a_step_begins(rates, monkeypatch):
    """Their memory serves the forward pass, and a CUDA graph that is replayed or recorded writes over them."""
    seen: list[bool] = []
    learner: Any = make_learner(settings(), Noise())
    if rates:
        learner = ParallelLearner([make_learner(settings(lr=rate), Noise()) for rate in rates], [{}, {}])

    def looking(draw: Any) -> Any:
        def noise(*args: Any) -> torch.Tensor:  # what a step draws before its forward pass
            groups = learner._optimiser.param_groups
            held = [*learner.parameters(), *(p for group in groups for p in group["params"])]
            seen.append(any(p.grad is not None for p in held))
            return draw(*args)

        return noise

    for module in ("learner", "parallel"):
        name = f"attn_cli.learning.{module}.draw_noise"
        monkeypatch.setattr(name, looking(__import__(f"attn_cli.learning.{module}", fromlist="x").draw_noise))
    fit(learner, settings())
    assert seen == [False] * 2 * max(1, len(rates))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_convolutions_go_on_with_the_same_bits(optimizer: str, tmp_path: Path):
    """Their weights have the channels last in memory, what a checkpoint holds has not."""

    def trained(epochs: int, resume: Path | None = None) -> Learner:
        net = schema.ConvNet(
            filters=(4, 6), kernels=(5, 3), strides=(1, 1), pools=(2, 2), hidden=(8,), dropout=0.0, norm=False
        )
        config = replace(settings(), model=net, optimizer=schema.Optimizer(optimizer, lr=0.05))
        config = replace(config, trainer=replace(config.trainer, epochs=epochs))
        torch.manual_seed(0)
        learner = make_learner(config, Noise())
        weight = next(p for p in learner.parameters() if p.dim() == 4 and min(p.shape) > 1)
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        fit(learner, config, [Checkpoints(tmp_path, 1, 1e9, learner.finite)], resume=resume)
        return learner

    trained(1)
    rest = trained(2, tmp_path / "last.ckpt")
    whole = trained(2)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name


def logged(config: schema.Config) -> tuple[list[dict[str, Any]], list[Any]]:
    """The rows of the log, and the losses of every step."""
    learner, rows, seen = make_learner(config, Noise()), [], []
    losses = learner.losses
    learner.losses = lambda *batch: seen.append(losses(*batch)) or seen[-1]
    learner.listeners.append(rows.append)
    fit(learner, config)
    return rows, seen


def test_a_row_of_the_log_has_the_means_of_its_epoch():
    config = settings()
    rows, seen = logged(replace(config, trainer=replace(config.trainer, epochs=2)))
    for row, steps in zip(rows, (seen[:2], seen[2:]), strict=True):
        for name, field in (
            ("train_loss", "total"),
            *((n, n) for n in ("cross_entropy", "reinforce", "baseline", "reward")),
        ):
            mean = sum(getattr(losses, field).item() for losses in steps) / 2
            assert row[name] == pytest.approx(mean, rel=1e-5), name
        assert row["train_error"] == pytest.approx(100 * sum(losses.error.item() for losses in steps) / 2)


def test_the_rate_of_a_run_with_fewer_steps_falls_in_those():
    config = settings()
    trainer = replace(config.trainer, epochs=3, limit_train_steps=1)
    rows, seen = logged(replace(config, trainer=trainer, optimizer=schema.Optimizer("adam", lr=0.1, decay=0.5)))
    assert len(seen) == 3 and [row["lr"] for row in rows] == pytest.approx([0.05, 0.025, 0.0125])
    rows, _ = logged(replace(config, trainer=trainer, optimizer=schema.Optimizer("adam_onecycle", lr=0.1)))
    assert rows[-1]["lr"] < 1e-4
