"""What stops a run that has gone wrong, and that nothing wrong is ever saved."""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from attn_cli.devices import explain_oom
from attn_cli.errors import Refused
from attn_cli.learning.checkpoints import load, save
from attn_cli.learning.guards import (
    Checkpoints,
    FiniteGuard,
    SignalGuard,
    Stopped,
    VerifiedCheckpointIO,
    random_states,
    restore_random_states,
)
from attn_cli.learning.loader import EpochBatches

STEPS = 10

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pytorch_lightning")


class Points:
    def steps_per_epoch(self, batch_size: int) -> int:
        return STEPS

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        points = torch.randn(batch_size, 2, generator=torch.Generator().manual_seed(100 * epoch + step))
        return points, (points.sum(1) > 0).long()


class Learner(pl.LightningModule):
    """`spoil` is called with (self, loss, step) and returns the loss; `errors` are the epochs' validation errors."""

    def __init__(self, spoil: Any = None, errors: tuple[float, ...] = ()):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 2)
        self.spoil, self.errors = spoil, errors
        self.score: float | None = None
        self.weights: list[Tensor] = []  # before each step
        self.finite = FiniteGuard()

    def training_step(self, batch: tuple[Tensor, Tensor, int, int], batch_idx: int) -> Tensor:
        points, labels, _, step = batch
        self.weights.append(torch.cat([p.detach().flatten() for p in self.parameters()]).clone())
        loss = nn.functional.cross_entropy(self.second(torch.tanh(self.first(points))), labels)
        loss = self.spoil(self, loss, step) if self.spoil else loss
        self.loss = loss.detach()
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.finite.check(self.loss, optimizer, self.global_step)

    def on_train_epoch_end(self) -> None:
        if self.current_epoch < len(self.errors):
            self.score = self.errors[self.current_epoch]

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01, fused=True)


def fit(
    folder: Path, learner: Learner, finite: FiniteGuard | None = None, epochs: int = 2, seconds: float | None = None
) -> Checkpoints:
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    learner.finite = finite or FiniteGuard()
    checkpoints = Checkpoints(folder, 1, seconds, finite)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[learner.finite, checkpoints],
        plugins=[VerifiedCheckpointIO(learner)],
    )
    trainer.fit(learner, EpochBatches(Points(), 0, 4))
    return checkpoints


def nan_loss(learner: Learner, loss: Tensor, step: int) -> Tensor:
    return loss * math.nan if step == 13 else loss


def inf_loss(learner: Learner, loss: Tensor, step: int) -> Tensor:
    return loss + math.inf if step == 13 else loss  # its gradient is finite


def inf_gradient(learner: Learner, loss: Tensor, step: int) -> Tensor:
    if step == 13:
        learner.second.weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(1), math.inf))
    return loss


def huge_gradients(learner: Learner, loss: Tensor, step: int) -> Tensor:
    """Each number is finite, the sum of their squares is not."""
    if step == 13:
        for p in (learner.first.bias, learner.second.bias):
            p.register_hook(lambda gradient: torch.full_like(gradient, 1e30))
    return loss


FAULTS = [
    (nan_loss, r"loss is nan at step 13 \(and gradient norm of first\.weight is nan\)"),
    (inf_loss, r"loss is inf at step 13:"),
    (inf_gradient, r"^gradient norm of second\.weight is inf at step 13:"),
    (huge_gradients, r"^gradient norm of first\.bias is inf at step 13:"),
]


@pytest.mark.parametrize("spoil, words", FAULTS, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_stopped_before_the_step_with_its_quantity(
    tmp_path: Path, spoil: Any, words: str, deferred: bool, clip: float | None
) -> None:
    clean = Learner()
    fit(tmp_path / "clean", clean, FiniteGuard(clip))
    learner = Learner(spoil)
    finite = FiniteGuard(clip, read_every=5, deferred=deferred)
    with pytest.raises(Refused, match=words) as refused:
        fit(tmp_path / "spoilt", learner, finite)
    assert refused.value.exit_code != 0 and "\n" not in str(refused.value)
    after = torch.cat([p.detach().flatten() for p in learner.parameters()])
    torch.testing.assert_close(after, clean.weights[13], rtol=1e-5, atol=1e-6)
    for before, unspoilt in zip(learner.weights[:14], clean.weights[:14], strict=True):
        torch.testing.assert_close(before, unspoilt, rtol=1e-5, atol=1e-6)
    assert len(learner.weights) == (15 if deferred else 14)  # flags are read after steps 4, 9 and 14
    assert load(tmp_path / "spoilt" / "last.ckpt")["global_step"] == STEPS


@pytest.mark.parametrize("deferred", [False, True])
def test_no_checkpoint_is_written_after_a_bad_step(tmp_path: Path, deferred: bool) -> None:
    finite = FiniteGuard(read_every=10**9, deferred=deferred)
    with pytest.raises(Refused, match="at step 13"):
        fit(tmp_path, Learner(nan_loss), finite, seconds=1e-9)
    assert load(tmp_path / "last.ckpt")["global_step"] == 13
    assert load(tmp_path / "previous.ckpt")["global_step"] == 12


def test_deferred_flags_are_read_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="at step 13"):
        fit(tmp_path, Learner(nan_loss), FiniteGuard(read_every=10**9, deferred=True), epochs=3)
    assert load(tmp_path / "last.ckpt")["global_step"] == STEPS


def test_deferred_guard_changes_nothing_in_a_good_run(tmp_path: Path) -> None:
    at_once, deferred = Learner(), Learner()
    fit(tmp_path / "a", at_once, FiniteGuard(0.1))
    fit(tmp_path / "b", deferred, FiniteGuard(0.1, deferred=True))
    torch.testing.assert_close(torch.stack(at_once.weights), torch.stack(deferred.weights))


@pytest.mark.parametrize("deferred", [False, True])
def test_the_guard_needs_a_fused_optimiser(tmp_path: Path, deferred: bool) -> None:
    learner = Learner()
    learner.configure_optimizers = lambda: torch.optim.AdamW(learner.parameters(), fused=False)  # type: ignore
    with pytest.raises(TypeError, match="fused"):
        fit(tmp_path, learner, FiniteGuard(deferred=deferred))


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("clip", [0.01, 0.5, 100.0])
def test_clipping_is_that_of_torch(deferred: bool, clip: float) -> None:
    """Plain gradient descent at rate 1: what a weight loses is its clipped gradient."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    guard = FiniteGuard(clip, deferred=deferred)
    guard.watch(module)
    loss = module(torch.ones(2, 3)).square().sum()
    loss.backward()
    before = [p.detach().clone() for p in module.parameters()]
    clones = [nn.Parameter(torch.zeros_like(p)) for p in module.parameters()]
    for clone, p in zip(clones, module.parameters(), strict=True):
        assert p.grad is not None
        clone.grad = p.grad.clone()
    nn.utils.clip_grad_norm_(clones, clip)
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0, fused=True)
    guard.check(loss.detach(), optimiser, 0)
    optimiser.step()
    for old, p, clone in zip(before, module.parameters(), clones, strict=True):
        torch.testing.assert_close(old - p, clone.grad, rtol=1e-4, atol=1e-6)


# Row 15.


def test_a_validation_error_that_is_not_finite_is_never_best(tmp_path: Path) -> None:
    checkpoints = fit(tmp_path, Learner(errors=(math.nan, math.inf)))
    assert checkpoints.best is None
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]


def test_best_is_the_lowest_finite_error(tmp_path: Path) -> None:
    checkpoints = fit(tmp_path, Learner(errors=(math.nan, 7.0, 9.0, 5.0, math.nan, 5.0)), epochs=6)
    best = load(tmp_path / "best.ckpt")
    assert (checkpoints.best, best["attn"]["best"], best["epoch"]) == (5.0, 5.0, 3)
    assert load(tmp_path / "last.ckpt")["attn"]["best"] == 5.0


def go_on(folder: Path, errors: tuple[float, ...]) -> Checkpoints:
    """The rest of a run, up to the epoch of the last error."""
    learner, checkpoints = Learner(errors=errors), Checkpoints(folder)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=len(errors),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[learner.finite, checkpoints],
        plugins=[VerifiedCheckpointIO(learner)],
    )
    trainer.fit(learner, EpochBatches(Points(), 0, 4), ckpt_path=str(folder / "last.ckpt"))
    return checkpoints


def test_best_survives_a_resume(tmp_path: Path) -> None:
    fit(tmp_path, Learner(errors=(3.0,)), epochs=1)
    checkpoints = go_on(tmp_path, errors=(3.0, 4.0))
    assert (checkpoints.best, load(tmp_path / "best.ckpt")["epoch"]) == (3.0, 0)


@pytest.mark.parametrize("keep", [0.5, 0, None])
def test_a_best_checkpoint_that_cannot_be_used_is_named_and_another_takes_its_place(
    tmp_path: Path, keep: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left of best.ckpt; None: it is gone. Without another one the run could not be evaluated at its end."""
    fit(tmp_path, Learner(errors=(3.0,)), epochs=1)
    best = tmp_path / "best.ckpt"
    content = best.read_bytes()
    best.unlink()
    if keep is not None:
        best.write_bytes(content[: int(keep * len(content))])
    checkpoints = go_on(tmp_path, errors=(3.0, 5.0, 4.0, 6.0))
    assert (checkpoints.best, load(best)["epoch"]) == (4.0, 2)
    assert f"{best} " in capsys.readouterr().out


def test_epochs_of_one_step_are_saved_as_often_as_asked_for(tmp_path: Path) -> None:
    """Seconds count at an epoch's end, too: such epochs have no other step after which there could be a checkpoint."""

    def stop(learner: Learner, loss: Tensor, step: int) -> Tensor:
        if step == 7:
            raise RuntimeError("boom")
        return loss

    learner = Learner(stop)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=100,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[learner.finite, Checkpoints(tmp_path, every=1000, seconds=1e-9)],
        plugins=[VerifiedCheckpointIO(learner)],
    )
    with pytest.raises(RuntimeError, match="boom"):
        trainer.fit(learner, EpochBatches(Points(), 0, 4, limit=1))
    assert load(tmp_path / "last.ckpt")["global_step"] == 7


def test_training_without_validation_has_no_best(tmp_path: Path) -> None:
    fit(tmp_path, Learner())
    assert not (tmp_path / "best.ckpt").exists()


# Row 37.


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_says_the_batch_size_and_what_to_set(error: Exception) -> None:
    refused = explain_oom(error, 128)
    assert refused is not None and refused.exit_code != 0
    assert "trainer.batch_size=128" in str(refused) and "trainer.batch_size=64" in str(refused)
    smallest = explain_oom(error, 1)
    assert smallest is not None and "batch_size=0" not in str(smallest)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), MemoryError()])
def test_other_errors_are_not_explained_away(error: BaseException) -> None:
    assert explain_oom(error, 128) is None


def test_out_of_memory_in_a_step_keeps_the_checkpoint(tmp_path: Path) -> None:
    def spoil(learner: Learner, loss: Tensor, step: int) -> Tensor:
        if step == 13:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss

    with pytest.raises(torch.OutOfMemoryError):
        fit(tmp_path, Learner(spoil))
    assert load(tmp_path / "last.ckpt")["global_step"] == STEPS


# Random states and signals.


def draws() -> list[float]:
    return [torch.rand(()).item(), random.random(), random.gauss(0, 1), float(numpy.random.standard_normal())]


def test_random_states_survive_a_checkpoint(tmp_path: Path) -> None:
    draws()  # leaves a second Gaussian in store, in random and in numpy
    save(tmp_path / "a", random_states())
    expected = draws()
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(5)
    restore_random_states(load(tmp_path / "a"))
    assert draws() == expected


def test_signals_outside_training_stop_at_once(tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    for number, code, status in ((signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")):
        with pytest.raises(Stopped) as stopped, SignalGuard(Checkpoints(tmp_path / "checkpoints")):
            os.kill(os.getpid(), number)
            pytest.fail("went on")
        assert (stopped.value.exit_code, stopped.value.status) == (code, status)
        assert str(tmp_path) in str(stopped.value)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_no_library_swallows_a_signal(tmp_path: Path) -> None:
    with pytest.raises(Stopped), SignalGuard(Checkpoints(tmp_path / "checkpoints")):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception as error:  # as Module.load_state_dict does around each copy
            raise RuntimeError("While copying") from error


def test_guard_in_a_thread_leaves_the_signals_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with SignalGuard(Checkpoints(tmp_path)):
                assert signal.getsignal(signal.SIGINT) == before
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors and signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("deferred", [False, True])
def test_a_gradient_a_little_too_long_is_clipped(deferred: bool) -> None:
    weight = nn.Linear(1, 1, bias=False)
    guard = FiniteGuard(1.0, deferred=deferred)
    guard.watch(weight)
    before, optimiser = weight.weight.item(), torch.optim.SGD(weight.parameters(), lr=1.0, fused=True)
    loss = 1.5 * weight.weight.sum()
    loss.backward()
    guard.check(loss.detach(), optimiser, 0)
    optimiser.step()
    assert before - weight.weight.item() == pytest.approx(1.0, rel=1e-4)
