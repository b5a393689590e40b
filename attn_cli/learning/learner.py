"""The LightningModule that every model shares, and the one for RAM.

A learner wraps a model and names its objective; the mathematics is in `objectives`. Batches come as (images, labels,
epoch, step) from `EpochBatches`. A training step makes no host-device sync on a GPU: the numbers for the log are added
up on the device, and the guard against non-finite numbers reads its flags only now and then. Of several processes each
has its share of a batch and of its noise; loss, log and gradients are averaged, so all of them take the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from attn_cli import processes
from attn_cli.config.schema import Config
from attn_cli.data.splits import Data
from attn_cli.devices import explaining_oom
from attn_cli.inference.monte_carlo import Evaluation, evaluate
from attn_cli.learning import optimisers
from attn_cli.learning.compiling import compiled
from attn_cli.learning.guards import FiniteGuard
from attn_cli.learning.loader import EpochBatches
from attn_cli.learning.objectives import (
    Losses,
    control,
    hybrid,
    repulsion,
    sequence_hybrid,
    still_counting,
    stopping,
    supervised,
    supervised_steps,
)
from attn_cli.models.model import GlimpseModel
from attn_cli.models.rollout import compact_rollout, draw_noise, play, rollout
from attn_cli.models.soft_ram import SoftRAM
from attn_cli.models.trace import Trace
from attn_cli.runs import commit

LOGGED = ("loss", "cross_entropy", "reinforce", "baseline", "reward", "error")


class Learner(pl.LightningModule):
    """Shared: noise, optimiser, sums for the log, validation. A subclass gives `losses`."""

    model: GlimpseModel
    config: Config
    data: Data
    listeners: list[Callable[[dict[str, Any]], None]]
    totals: Tensor

    def __init__(self, model: GlimpseModel, config: Config, data: Data, compile_step: bool = False):
        super().__init__()
        self.model = model
        self.config = config
        self.data = data
        self.automatic_optimization = False
        self.finite = FiniteGuard(config.optimizer.clip)  # clips, too
        self.compile_step = compile_step
        self.samples = getattr(config.model, "samples", 1)  # M, paths per image
        self.listeners = []  # called with the row of each finished epoch
        self.seconds = 0.0  # spent in training steps, over all attempts
        self.images = 0
        self.commits = [own for own in (commit(),) if own]  # of the code that trained, over all attempts
        self.score: float | None = None  # what the best checkpoint has least of; None: not measured in this epoch
        self.register_buffer("totals", torch.zeros(len(LOGGED) + 1), persistent=False)  # the last one counts steps
        self._since = time.perf_counter()
        self._loss_and_row = self.loss_and_row
        if compile_step:
            self._loss_and_row = compiled(self.loss_and_row, config.trainer.compile == "graph")

    def losses(self, images: Tensor, noise: Tensor, labels: Tensor) -> Losses:
        raise TypeError("a learner names its objective")

    def loss_and_row(self, images: Tensor, noise: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss to minimise, and one detached row for the log: `LOGGED`, then a 1."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.lowered(images.device)):
            parts = self.losses(images, noise, labels)
        values = (parts.total.detach(), parts.cross_entropy, parts.reinforce, parts.baseline, parts.reward, parts.error)
        return parts.total, torch.stack([v.float() for v in values] + [torch.ones_like(parts.error)])

    def lowered(self, device: torch.device) -> bool:
        """Whether a step runs under autocast; what else a lower precision does, `training.precision` tells."""
        return self.config.trainer.precision == "bf16" and device.type == "cuda" and self.model.halves

    def loss(self, batch: tuple[Tensor, Tensor, int, int]) -> Tensor:
        """The loss of one batch, or of this process's share of it; its row for the log is added up on the device."""
        images, labels, _, step = batch
        R = processes.size()
        shape = (self.samples, images.shape[0] * R, self.model.steps)
        noise = draw_noise(self.config.seed, step, shape, images.device, self.model.noises)
        loss, row = self._loss_and_row(images, noise[:, processes.rank() :: R], labels)
        self.totals += row
        self.images += images.shape[0] * R
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor, int, int], batch_idx: int) -> None:
        """One step by hand: what Lightning's automatic optimisation does around it costs as much as a small model."""
        _, _, epoch, step = batch
        if step % self._steps_per_epoch == 0:
            self.begin_epoch(epoch)
        self.model.zero_grad()  # first: the memory of the gradients is free, and a CUDA graph overwrites them
        loss = self.loss(batch)
        self.manual_backward(loss)
        loss = loss.detach()
        gradients = self.shared_gradients() if processes.size() > 1 else []
        processes.average_([loss, self.totals, *gradients])
        self.finite.check(loss, self._optimiser, step)
        self._optimiser.step()
        self._schedule.step()
        self._progress.increment_ready()  # Lightning's count of optimiser steps: trainer.global_step
        self._progress.increment_completed()

    def shared_gradients(self) -> list[Tensor]:
        """The gradients of this process, those to be averaged: of the same weights in all of them. On a CPU a step
        leaves out what does not count, so a weight may have one in some processes alone; the others give zeros.
        """
        weights = list(self.model.parameters())
        if self.totals.device.type == "cpu":
            found = processes.total(torch.tensor([weight.grad is not None for weight in weights])).tolist()
            for weight, count in zip(weights, found, strict=True):
                if count and weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
        return [weight.grad for weight in weights if weight.grad is not None]

    def batches(self, rank: int = 0, world_size: int = 1) -> Any:
        """What training iterates over."""
        trainer = self.config.trainer
        limit = trainer.limit_train_steps
        return EpochBatches(self.data, self.config.seed, trainer.batch_size, limit, rank=rank, world_size=world_size)

    def begin_epoch(self, epoch: int) -> None:
        """Before the first step of an epoch, counted from 0; a resumed run comes here only for epochs it begins."""

    @property
    def changes_between_epochs(self) -> bool:
        """Whether `begin_epoch` does anything."""
        return type(self).begin_epoch is not Learner.begin_epoch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # it is there

    def configure_optimizers(self) -> Any:
        trainer = self.config.trainer
        per_epoch = self.data.steps_per_epoch(trainer.batch_size)
        if trainer.limit_train_steps is not None:
            per_epoch = min(per_epoch, trainer.limit_train_steps)
        self._steps_per_epoch = per_epoch
        optimiser, schedule = optimisers.build(
            self.config.optimizer, self.parameter_groups(), per_epoch * trainer.epochs, per_epoch
        )
        return {"optimizer": optimiser, "lr_scheduler": schedule}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser changes, and the learning rate of each group: the first of all but attention."""
        rate, share = self.config.optimizer.lr, self.config.optimizer.attention
        if share == 1:
            return [{"params": list(self.model.parameters()), "lr": rate}]
        slow = self.model.attention_parameters()
        apart = {id(parameter) for parameter in slow}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in apart]
        return [{"params": others, "lr": rate}, {"params": slow, "lr": rate * share}]

    def on_train_start(self) -> None:
        optimiser: Any = self.optimizers(use_pl_optimizer=False)
        optimisers.match_layouts(optimiser)
        self._optimiser = optimiser
        self._schedule: Any = self.lr_schedulers()
        self._progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        self._since = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Close the epoch: means for the log, validation, then whoever listens. Checkpoints are written after this."""
        self.seconds += self._elapsed()
        row = self.close_epoch(self.current_epoch + 1, self.global_step, self._optimiser.param_groups[0]["lr"])
        for listener in self.listeners:
            listener(row)
        self._since = time.perf_counter()

    def close_epoch(self, done: int, step: int, rate: float) -> dict[str, Any]:
        """The row of the epoch for the log, after validation; errors in %."""
        trainer, self.score = self.config.trainer, None
        found: Evaluation | None = None
        *sums, count = self.totals.tolist()  # the one transfer to the host in an epoch
        self.totals.zero_()
        if done % trainer.validate_every == 0 or done == trainer.epochs:
            found = self.validate()
            self.score = found.error() + self.price(found)
        means = {name: value / max(count, 1) for name, value in zip(LOGGED, sums, strict=True)}
        row = {"epoch": done, "step": step, **means, "lr": rate, "seconds": round(self.seconds, 2)}
        row["train_loss"], row["train_error"], row["val_error"] = (
            row.pop("loss"),
            100 * row.pop("error"),
            found and found.error(),
        )
        if self.model.game is not None:
            row["caught"] = found and 100 - found.error()
        if self.model.stops:
            row["mean_glimpses"] = found and found.mean_glimpses
        return row

    def _elapsed(self) -> float:
        since, self._since = self._since, time.perf_counter()
        return self._since - since

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds += self._elapsed()
        checkpoint["learner"] = self.state()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the learner beside weights."""
        state = {"seconds": self.seconds, "images": self.images, "totals": self.totals.tolist()}
        return {**state, "compiled": self.compile_step, "commits": self.commits}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["learner"]
        self.seconds, self.images = state["seconds"], state["images"]
        self.totals.copy_(torch.tensor(state["totals"]))
        self.commits = list(dict.fromkeys([*state.get("commits", []), *self.commits]))  # older ones have none

    def price(self, found: Evaluation) -> float:
        """What the glimpses of a model that stops by itself cost, in points of the error, as in training; else 0."""
        return 100 * getattr(self.config.model, "glimpse_cost", 0.0) * found.mean_glimpses if self.model.stops else 0.0

    def validate(self) -> Evaluation:
        """With the mean-location policy on the validation images."""
        images, labels = self.data.fixed("validation")
        batch = self.config.trainer.eval_batch_size
        with explaining_oom(batch, "trainer.eval_batch_size"):
            return evaluate(self.model, images, labels, batch_size=batch)


class RamLearner(Learner):
    """RAM, section 3.2: the hybrid supervised loss."""

    def losses(self, images: Tensor, noise: Tensor, labels: Tensor) -> Losses:
        options: Any = self.config.model
        logits, trace = rollout(self.model, images, noise)
        names = ("reward", "discount", "baseline", "reinforce_weight", "baseline_weight")
        chosen = {name: getattr(options, name) for name in names}
        if self.model.stops:
            return stopping(logits, trace, labels, **chosen, glimpse_cost=options.glimpse_cost)
        return hybrid(logits, trace, labels, **chosen)


class GameLearner(Learner):
    """RAM in a dynamic environment, sections 3.2 and 4.2: `images` are the first screens, `labels` the starts."""

    def losses(self, images: Tensor, noise: Tensor, labels: Tensor) -> Losses:
        options: Any = self.config.model
        return control(
            play(self.model, labels, noise),
            discount=options.discount,
            location_weight=options.location_weight,
            baseline_weight=options.baseline_weight,
            entropy_weight=options.entropy_weight,
        )


class DramLearner(Learner):
    """DRAM: eq. 13 for one target, eqs. 15 and 16 for a sequence."""

    def losses(self, images: Tensor, noise: Tensor, labels: Tensor) -> Losses:
        options: Any = self.config.model
        weights = {"reinforce_weight": options.reinforce_weight, "baseline_weight": options.baseline_weight}
        if not self.model.sequence:
            logits, trace = rollout(self.model, images, noise)
            return hybrid(logits, trace, labels, reward=options.reward, baseline=options.baseline, **weights)
        targets = self.model.order(labels)
        if self.compile_step or images.device.type != "cpu":  # fixed shapes, no sync: what does not count is masked
            logits, trace = rollout(self.model, images, noise)
        else:
            logits, trace = compact_rollout(
                self.model, images, noise, still_counting(targets, self.samples, options.stop_at_mistake)
            )
        return sequence_hybrid(
            logits,
            trace,
            targets,
            reward=options.reward,
            cumulative_reward=options.cumulative_reward,
            stop_at_mistake=options.stop_at_mistake,
            baseline=options.baseline,
            **weights,
        )


class SoftRamLearner(Learner):
    """Semeniuta & Barth: cross-entropy, and the repulsion of eq. 5 where centres are relative."""

    model: SoftRAM

    def losses(self, images: Tensor, noise: Tensor, labels: Tensor) -> Losses:
        options: Any = self.config.model
        logits, trace = rollout(self.model, images, noise)
        losses = answered(trace, logits, self.model.order(labels))
        if options.centre == "relative" and options.repulsion and trace.shifts is not None:
            shift = trace.shifts[:, :, options.repulsion_step - 1]
            total = losses.total + repulsion(shift, options.repulsion, options.repulsion_width)
            return replace(losses, total=total)
        return losses

    def begin_epoch(self, epoch: int) -> None:
        """The switch from the simple glimpse network to the real one, and the resets of the classifier."""
        options: Any = self.config.model
        if options.pretrain_glimpse:
            self.model.pretrain(epoch < options.pretrain_glimpse)
        every = options.reset_every
        if every and epoch and epoch % every == 0 and epoch // every <= options.resets:
            weights = self.model.reset_classifier()
            processes.give([weight.detach() for weight in weights])  # each process draws others
            optimisers.forget(self._optimiser, weights)

    @property
    def changes_between_epochs(self) -> bool:
        options: Any = self.config.model
        return bool(options.pretrain_glimpse or options.reset_every)


class SupervisedLearner(Learner):
    """Cross-entropy of all answers, for a model that chooses nothing."""

    def losses(self, images: Tensor, noise: Tensor, labels: Tensor) -> Losses:
        logits, trace = rollout(self.model, images, noise)
        return answered(trace, logits, self.model.order(labels))


def answered(trace: Trace, logits: Tensor, targets: Tensor) -> Losses:
    """Cross-entropy of the answers after every glimpse where the trace has them, else of the answers alone."""
    if trace.step_logits is not None:
        return supervised_steps(trace.step_logits, logits, targets)
    return supervised(logits, targets)
