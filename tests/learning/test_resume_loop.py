"""A run that was stopped, anywhere and anyhow, ends with the same bits as one that was not.

The reference learner draws from every global random generator, so that a lost or repeated draw shows; its batches are
pure functions of (seed, epoch, step). What is compared is the whole last checkpoint: weights, optimiser, schedule, loop
counters, position in the batches, random states, best error.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from attn_cli.errors import Refused
from attn_cli.learning.checkpoints import load, newest_valid, save
from attn_cli.learning.guards import Checkpoints, FiniteGuard, SignalGuard, Stopped, VerifiedCheckpointIO
from attn_cli.learning.loader import EpochBatches

STEPS, EPOCHS, BATCH = 5, 3, 4
EVERY_STEP = 1e-9  # seconds between checkpoints

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pytorch_lightning")


class Points:
    """Two noisy classes in the plane."""

    def steps_per_epoch(self, batch_size: int) -> int:
        return STEPS

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed + 1000 * epoch + step)
        points = torch.randn(batch_size, 2, generator=generator)
        return points, (points.sum(1) > 0).long()

    def validation(self) -> tuple[Tensor, Tensor]:
        return self.train_batch(-1, 0, 0, 10)


class Learner(pl.LightningModule):
    """A linear model, Adam, one-cycle per step; steps and validation are made by hand, as the real learner makes them.
    `at` maps (place, global step) to what shall happen there.
    """

    def __init__(self, at: dict[tuple[str, int], Any], seen: list[Any], validate_every: int, finite: FiniteGuard):
        super().__init__()
        self.automatic_optimization = False
        self.model = nn.Linear(2, 2)
        self.at, self.seen, self.validate_every, self.finite = at, seen, validate_every, finite
        self.score: float | None = None

    def happen(self, place: str) -> None:
        self.at.pop((place, self.trainer.global_step), lambda: None)()

    def training_step(self, batch: tuple[Tensor, Tensor, int, int], batch_idx: int) -> None:
        points, labels, epoch, step = batch
        self.seen.append((epoch, step, batch_idx, self.trainer.global_step))
        noise = torch.randn(points.shape) + random.gauss(0, 1) + float(numpy.random.standard_normal())
        loss = nn.functional.cross_entropy(self.model(points + 0.1 * noise), labels)
        optimiser: Any = self.optimizers(use_pl_optimizer=False)
        optimiser.zero_grad()
        self.manual_backward(loss)
        self.happen("step")
        self.finite.check(loss.detach(), optimiser, step)
        optimiser.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        done = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        done.increment_ready()
        done.increment_completed()

    def on_train_epoch_end(self) -> None:
        if (self.current_epoch + 1) % self.validate_every == 0:
            points, labels = Points().validation()
            self.score = 10.0 * int((self.model(points).argmax(1) != labels).sum())
            self.happen("validation")
            self.seen.append(("validation", self.trainer.global_step, self.score))
        self.happen("epoch end")

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def configure_optimizers(self) -> Any:
        adam = torch.optim.AdamW(self.parameters(), lr=0.05, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 0.05, total_steps=STEPS * EPOCHS + 1)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(
    folder: Path,
    at: dict[tuple[str, int], Any] | None = None,
    resume: bool = False,
    seconds: float | None = None,
    every: int = 1,
    validate_every: int = 1,
) -> list[Any]:
    """One attempt as `attn train` makes it; returns the batches and validations that it saw."""
    torch.set_num_threads(1)
    for draw in (torch.manual_seed, random.seed, numpy.random.seed):  # a resumed process starts with other states
        draw(99 if resume else 1)
    seen: list[Any] = []
    finite = FiniteGuard(clip=1.0)
    learner = Learner(at or {}, seen, validate_every, finite)
    checkpoints = Checkpoints(folder / "checkpoints", every, seconds, finite)
    checkpoints.folder.mkdir(exist_ok=True)
    with SignalGuard(checkpoints) as guard:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[finite, checkpoints, guard],
            plugins=[VerifiedCheckpointIO(learner)],
        )
        path = str(newest_valid(checkpoints.folder, log=lambda line: seen.append(line))) if resume else None
        try:
            trainer.fit(learner, EpochBatches(Points(), 0, BATCH), ckpt_path=path)
        except Stopped as stopped:
            seen.append(stopped)
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[list[Any], dict[str, Any]]:
    """What an uninterrupted run sees, and its last checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    seen = train(folder)
    return seen, load(folder / "checkpoints" / "last.ckpt")


def send(number: int) -> Any:
    return lambda: os.kill(os.getpid(), number)


def boom() -> None:
    raise RuntimeError("boom")


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ in any bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{where}.{k}" for k in a.keys() ^ b.keys()]
        return found + [d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}.{i}")]
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    return [] if type(a) is type(b) and a == b else [f"{where}: {a} {b}"]


def assert_same_end(folder: Path, whole: tuple[list[Any], dict[str, Any]], seen: list[Any]) -> None:
    expected_seen, expected = whole
    assert not differences(expected, load(folder / "checkpoints" / "last.ckpt"))
    assert [s for s in seen if isinstance(s, tuple)] == expected_seen
    assert {p.name for p in (folder / "checkpoints").iterdir()} <= {"last.ckpt", "previous.ckpt", "best.ckpt"}


def test_uninterrupted_run_sees_each_batch_and_validation_once(whole) -> None:
    seen, last = whole
    steps = [(n // STEPS, n, n % STEPS, n) for n in range(STEPS * EPOCHS)]
    assert [s for s in seen if s[0] != "validation"] == steps
    assert [s[1] for s in seen if s[0] == "validation"] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert (last["global_step"], last["attn"]["batches"]["position"]) == (STEPS * EPOCHS, STEPS * EPOCHS)
    assert last["lr_schedulers"][0]["last_epoch"] == STEPS * EPOCHS


@pytest.mark.parametrize("step", range(STEPS * EPOCHS))
def test_stopped_in_any_step_and_resumed(tmp_path: Path, whole, step: int) -> None:
    seen = train(tmp_path, {("step", step): send(signal.SIGTERM)})
    assert isinstance(seen[-1], Stopped)
    # The step was finished, and after an epoch's last one also the validation; nothing began after that.
    expected = whole[0].index((step // STEPS, step, step % STEPS, step)) + 1 + (step % STEPS == STEPS - 1)
    assert seen[:-1] == whole[0][:expected]
    assert_same_end(tmp_path, whole, seen + train(tmp_path, resume=True))


@pytest.mark.parametrize("place", ["validation", "epoch end"])
@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_stopped_in_validation_or_at_an_epochs_end(tmp_path: Path, whole, place: str, epoch: int) -> None:
    seen = train(tmp_path, {(place, epoch * STEPS): send(signal.SIGINT)})
    assert isinstance(seen[-1], Stopped) and seen[-2][:2] == ("validation", epoch * STEPS)
    assert_same_end(tmp_path, whole, seen + train(tmp_path, resume=True))


def test_stopped_after_every_single_step(tmp_path: Path, whole) -> None:
    seen = train(tmp_path, {("step", 0): send(signal.SIGTERM)})
    for step in range(1, STEPS * EPOCHS):
        seen += train(tmp_path, {("step", step): send(signal.SIGTERM)}, resume=True)
    assert_same_end(tmp_path, whole, seen)


def test_finished_run_resumes_to_nothing(tmp_path: Path, whole) -> None:
    seen = train(tmp_path)
    assert_same_end(tmp_path, whole, seen + train(tmp_path, resume=True))


@pytest.mark.parametrize("seconds, back_to", [(None, STEPS), (EVERY_STEP, 8)])
def test_exception_inside_a_step_leaves_no_checkpoint_of_it(
    tmp_path: Path, whole, seconds: float | None, back_to: int
) -> None:
    with pytest.raises(RuntimeError, match="boom"):
        train(tmp_path, {("step", 8): boom}, seconds=seconds)
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        assert load(path)["global_step"] <= back_to
    assert load(newest_valid(tmp_path / "checkpoints"))["global_step"] == back_to
    seen = whole[0][: back_to + 1] + train(tmp_path, resume=True)
    assert_same_end(tmp_path, whole, seen)


def test_checkpoints_every_second_epoch_and_rare_validation(tmp_path: Path) -> None:
    expected = train(tmp_path, every=2, validate_every=2)
    assert [s[1] for s in expected if s[0] == "validation"] == [2 * STEPS]
    end = load(tmp_path / "checkpoints" / "last.ckpt")
    assert end["global_step"] == 3 * STEPS  # the last epoch is always saved
    assert load(tmp_path / "checkpoints" / "previous.ckpt")["global_step"] == 2 * STEPS
    for step in (6, 12):
        folder = tmp_path / str(step)
        folder.mkdir()
        seen = train(folder, {("step", step): send(signal.SIGTERM)}, every=2, validate_every=2)
        seen += train(folder, resume=True, every=2, validate_every=2)
        assert_same_end(folder, (expected, end), seen)


def test_damaged_newest_checkpoint_falls_back_to_the_previous_and_keeps_it(tmp_path: Path, whole) -> None:
    train(tmp_path, {("step", 12): send(signal.SIGTERM)})
    last, previous = (tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    (tmp_path / "checkpoints" / "best.ckpt").unlink()
    last.write_bytes(last.read_bytes()[:-1])
    seen = train(tmp_path, {("step", 11): send(signal.SIGTERM)}, resume=True)
    assert "last.ckpt" in seen[0] and "previous.ckpt" in seen[1]
    assert (load(last)["global_step"], load(previous)["global_step"]) == (12, 10)  # not the damaged one
    resumed = train(tmp_path, resume=True)
    assert_same_end(tmp_path, whole, whole[0][:12] + seen + resumed)


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda c: c.pop("attn"), "where training stood"),
        (lambda c: c["attn"].pop("batches"), "where training stood"),
        (lambda c: c["attn"]["batches"].update(batch_size=5), "trainer.batch_size 5 and this run has 4"),
        (lambda c: c["attn"]["batches"].update(seed=5), "seed 5 and this run has 0"),
        (lambda c: c["attn"]["batches"].update(steps=6), "epoch 6 and this run has 5"),
        (lambda c: c["attn"]["batches"].update(position=3), "at step 7 but at batch 3"),
        (lambda c: c["attn"]["batches"].update(position="x"), "impossible position"),
        (lambda c: c["attn"].update(batches=None), "seed"),
        (lambda c: c["attn"]["random"].update(torch=torch.zeros(3, dtype=torch.uint8)), "random states"),
        (lambda c: c["attn"]["random"].pop("python"), "random states"),
        (lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(9)), r"\(9,\).*\(2, 2\)"),
        (lambda c: c["state_dict"].update({"model.bias": torch.zeros(2).double()}), "float64.*float32"),
    ],
)
def test_edited_checkpoint_is_refused(tmp_path: Path, edit: Any, words: str) -> None:
    train(tmp_path, at={("step", 6): send(signal.SIGTERM)})
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = load(path)
    edit(checkpoint)
    save(path, checkpoint)
    with pytest.raises(Refused, match=words):
        train(tmp_path, resume=True)


def test_processes_share_the_batches(tmp_path: Path) -> None:
    alone = EpochBatches(Points(), 3, 7)
    together = [EpochBatches(Points(), 3, 7, rank=rank, world_size=2) for rank in (0, 1)]
    for whole_batch, first, second in zip(alone, *together, strict=True):
        for all_of_it, even, odd in zip(whole_batch[:2], first[:2], second[:2], strict=True):
            assert torch.equal(all_of_it[::2], even) and torch.equal(all_of_it[1::2], odd)
        assert whole_batch[2:] == first[2:] == second[2:]


def test_limited_epochs() -> None:
    batches = EpochBatches(Points(), 0, 4, limit=2)
    assert len(batches) == 2
    assert [b[2:] for _ in range(3) for b in batches] == [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]


# Real processes, killed for real.

processes = multiprocessing.get_context("forkserver")  # imports torch and Lightning once for all of them
processes.set_forkserver_preload(["torch", "pytorch_lightning"])


def attempt(folder: Path, options: dict[str, Any], pause: tuple[str, int] | None, pipe: Any) -> None:
    """What the command does in a process of its own. At `pause` it tells the parent and waits for its answer."""

    sys.stderr = open(folder / "stderr.txt", "a", buffering=1)  # noqa: SIM115

    def meet() -> None:
        pipe.send("there")
        pipe.recv()

    try:
        seen = train(folder, at={pause: meet} if pause else {}, **options)
    except Refused as refused:
        print(refused, file=sys.stderr)
        sys.exit(refused.exit_code)
    pipe.send([s for s in seen if isinstance(s, tuple)])
    if isinstance(seen[-1], Stopped):
        print(seen[-1], seen[-1].status, file=sys.stderr)
        sys.exit(seen[-1].exit_code)


def run(folder: Path, options: dict[str, Any], pause: tuple[str, int] | None = None, *signals: int) -> tuple[int, Any]:
    """Run `attempt`, send it `signals` at `pause`; returns its exit code and what it saw, if it lived to tell."""
    here = Path(__file__)
    if str(here.parent) not in sys.path:  # the other process imports the target by name, whatever name pytest gave it
        sys.path.append(str(here.parent))
    target = importlib.import_module(here.stem).attempt
    ours, theirs = processes.Pipe()
    process = processes.Process(target=target, args=(folder, options, pause, theirs))
    process.start()
    theirs.close()
    if pause:
        assert ours.recv() == "there"
        for number in signals:
            os.kill(process.pid, number)  # type: ignore[arg-type]
            time.sleep(0.2)
        with contextlib.suppress(OSError):  # it may be about to end
            ours.send("go on")
    process.join(60)
    try:
        return process.exitcode, ours.recv()  # type: ignore[return-value]
    except (EOFError, ConnectionResetError):  # the latter where it ended with that unread
        return process.exitcode, []  # type: ignore[return-value]


@pytest.mark.parametrize("pause", [("step", 8), ("validation", 10), ("epoch end", 10)])
def test_killed_and_resumed_in_another_process(tmp_path: Path, whole, pause: tuple[str, int]) -> None:
    options = {"seconds": EVERY_STEP}
    code, _ = run(tmp_path, options, pause, signal.SIGKILL)
    assert code == -signal.SIGKILL
    stands = load(newest_valid(tmp_path / "checkpoints"))["global_step"]
    assert stands == pause[1] - (pause[0] != "step")  # an epoch's last step is saved with its end
    code, seen = run(tmp_path, options | {"resume": True})
    assert code == 0
    started = [s for s in whole[0] if s[0] != "validation"][:stands]
    validated = [s for s in whole[0] if s[0] == "validation" and s[1] <= stands]
    assert sorted(started + validated + seen, key=str) == sorted(whole[0], key=str)
    assert not differences(whole[1], load(tmp_path / "checkpoints" / "last.ckpt"))


@pytest.mark.parametrize(
    "number, code, status", [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_signal_ends_at_the_step_boundary_and_is_resumable(
    tmp_path: Path, whole, number: int, code: int, status: str
) -> None:
    exited, seen = run(tmp_path, {}, ("step", 7), number)
    assert exited == code
    errors = (tmp_path / "stderr.txt").read_text()
    assert f"attn train resume={tmp_path}" in errors and status in errors and "Traceback" not in errors
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 8  # the step was finished
    exited, more = run(tmp_path, {"resume": True})
    assert exited == 0
    assert_same_end(tmp_path, whole, seen + more)


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    exited, _ = run(tmp_path, {}, ("step", 7), signal.SIGINT, signal.SIGINT)
    assert exited == 130
    assert "at once" in (tmp_path / "stderr.txt").read_text().splitlines()[-1]
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == STEPS  # of the epoch's end


def test_second_termination_does_not_lose_the_checkpoint(tmp_path: Path) -> None:
    exited, _ = run(tmp_path, {}, ("step", 7), signal.SIGTERM, signal.SIGTERM)
    assert exited == 143
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 8
