"""What keeps a run of Lightning sound: finite numbers, checkpoints at step boundaries that are verified when they are
read, orderly ends on signals.

Give them to the trainer in this order, with `VerifiedCheckpointIO(module)` as a plugin:

    finite = FiniteGuard(clip)
    checkpoints = Checkpoints(run.checkpoints, every, seconds, finite)
    callbacks = [finite, …, checkpoints, SignalGuard(checkpoints)]

The last two are Lightning `Checkpoint` callbacks, so they run after all others and, at an epoch's end, after the
module's own hook: what those change is in the checkpoint. An exception never leads to a checkpoint.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.plugins import CheckpointIO
from torch import Tensor, nn

from attn_cli import processes
from attn_cli.errors import Refused
from attn_cli.learning.checkpoints import is_better, load, save, training_state
from attn_cli.learning.loader import EpochBatches
from attn_cli.learning.random_states import random_states, restore_random_states
from attn_cli.learning.weights import check_optimizers, check_weights
from attn_cli.runs import Run

ASK_EVERY = 16  # steps between two questions to the other processes; each question waits for all of them


class Stopped(Refused):
    """The run was asked to stop, and did; `status` is what the run folder records."""

    def __init__(self, sentence: str, exit_code: int, status: str):
        super().__init__(sentence, exit_code)
        self.status = status


class _AtOnce(BaseException):
    """On its way from a signal handler to the end of SignalGuard's block; libraries catch every Exception and go on."""

    def __init__(self, number: int, what: str):
        super().__init__(number, what)
        self.number, self.what = number, what


class FiniteGuard(Callback):
    """Stops before the optimiser step when the loss or a gradient is not finite; clips the gradient norm on the way.

    On a CPU every step is checked at once. Elsewhere a check makes no host-device sync: flags add up on the device, the
    optimiser skips all steps from the first bad one on (`found_inf`, as gradient scalers use it), and the host reads
    the flags every `read_every` steps, at the end of an epoch and before every checkpoint. Clipping is left to the
    optimiser, too (`grad_scale`): it divides in the pass over the gradients that it makes anyway. Only optimisers with
    fused=True do both.
    """

    def __init__(self, clip: float | None = None, read_every: int = 50, deferred: bool | None = None):
        """`clip`: largest gradient norm. `deferred`: check without syncs; None: on every device but the CPU."""
        self.clip, self.read_every, self.deferred = clip, read_every, deferred
        self._parameters: list[tuple[str, torch.nn.Parameter]] = []
        self._flags: Flags | None = None

    def watch(self, module: torch.nn.Module) -> None:
        """Guard this module's gradients from now on."""
        self._parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._flags = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch(pl_module)

    def check(self, loss: Tensor, optimizer: torch.optim.Optimizer, step: int) -> None:
        """After backward: raises Refused, at once or when flags are read, if `loss` or a gradient is not finite."""
        if not all(group["fused"] for group in optimizer.param_groups):
            raise TypeError("FiniteGuard needs an optimiser with fused=True: only it can skip a step and clip")
        gradients = [gradient for _, p in self._parameters if (gradient := p.grad) is not None]
        norms = torch._foreach_norm(gradients)
        if self.deferred or (self.deferred is None and loss.device.type != "cpu"):
            self._defer(loss, norms, optimizer, step)
            return
        value, on_host = loss.item(), [norm.item() for norm in norms]
        total = math.hypot(*on_host)
        if not math.isfinite(value + total):
            raise _not_finite(step, value, total, self._names(), on_host)
        too_long = self.clip is not None and total > self.clip
        # fp32 whatever the parameters are: fused optimisers read no other
        scale = torch.tensor((total + 1e-6) / self.clip) if too_long else None  # type: ignore[operator]
        optimizer.grad_scale = scale  # type: ignore[attr-defined]

    def _names(self) -> list[str]:
        return [name for name, p in self._parameters if p.grad is not None]

    def _defer(
        self,
        loss: Tensor,
        norms: tuple[Tensor, ...],
        optimizer: torch.optim.Optimizer,
        step: int,
    ) -> None:
        if self._flags is None or len(self._flags.names) != len(norms):
            self.read()
            self._flags = Flags(self._names(), step, loss.device)
        stacked = torch.stack(norms)
        total = torch.linalg.vector_norm(stacked)
        self._flags.update(loss, total, stacked)
        optimizer.found_inf = self._flags.found  # type: ignore[attr-defined]
        if self.clip is not None:
            optimizer.grad_scale = ((total + 1e-6) / self.clip).clamp(min=1.0).float()  # type: ignore[attr-defined]
        if self._flags.unread >= self.read_every:
            self.read()

    def read(self) -> None:
        """Read the flags, if any are waiting: one sync. Raises Refused for the first step that was not finite."""
        if self._flags is not None and self._flags.unread:
            for refused in self._flags.read().values():
                raise refused

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.read()


class Flags:
    """Device tensors that remember the first step that was not finite; every operation is in place. Of one run (losses
    and norms are scalars), or of several that are trained together (they have an axis of as many).
    """

    def __init__(self, names: list[str], step: int, device: torch.device, runs: tuple[int, ...] = ()):
        self.names, self.first_step, self.unread = names, step, 0
        self.bad = torch.zeros(runs, dtype=torch.bool, device=device)
        self.found = torch.zeros(runs, dtype=torch.float32, device=device)  # the same, as optimisers want it
        self.good_steps = torch.zeros(runs, dtype=torch.int64, device=device)
        # Loss, total norm, norm of each parameter's gradient: of the first bad step, until there is one of the last.
        self.values = torch.zeros(len(names) + 2, *runs, device=device)

    def update(self, loss: Tensor, total: Tensor, norms: Tensor) -> None:
        now = torch.cat((loss[None].float(), total[None].float(), norms.float()))
        self.values.copy_(torch.where(self.bad, self.values, now))
        self.bad.logical_or_((now[0] + now[1]).isfinite().logical_not_())
        self.found.copy_(self.bad)
        self.good_steps.add_(self.bad.logical_not())
        self.unread += 1

    def read(self) -> dict[int, Refused]:
        """What to say of each run that was not finite, by its number."""
        self.unread = 0
        together = torch.cat((self.bad.double()[None], self.good_steps.double()[None], self.values.double()))
        found = {}
        for number, column in enumerate(together.view(len(together), -1).T.tolist()):
            bad, good_steps, loss, total, *norms = column
            if bad:
                found[number] = _not_finite(self.first_step + int(good_steps), loss, total, self.names, norms)
        return found


def _not_finite(step: int, loss: float, total: float, names: list[str], norms: list[float]) -> Refused:
    not_finite = ((name, norm) for name, norm in zip(names, norms, strict=True) if not math.isfinite(norm))
    first = next((f"{name} is {norm}" for name, norm in not_finite), None)
    gradient = f"gradient norm of {first}" if first else f"gradient norm is {total}"
    if math.isfinite(loss):
        what = f"{gradient} at step {step}"
    else:
        what = f"loss is {loss} at step {step}" + (f" (and {gradient})" if first else "")
    return Refused(
        f"{what}: training stopped before it, checkpoints written so far are kept; try a lower optimizer.lr."
    )


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's reads and writes of checkpoints through `save` and `load`.

    With `module`, a checkpoint whose weights are not exactly of its keys, shapes and dtypes is refused before Lightning
    copies any of them. `storage_options={"keep_as": path}` keeps the file that was there before.
    """

    def __init__(self, module: nn.Module | None = None):
        self.module = module

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        save(path, checkpoint, **(storage_options or {}))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = training_state(path)
        if self.module is not None:
            check_weights(self.module, checkpoint["state_dict"], path)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Writes last.ckpt every `every` epochs, after the last one and every `seconds`, also within an epoch; best.ckpt
    when the module's `score`, the less the better, improves and is finite. The last.ckpt before stays as previous.ckpt.

    Beside Lightning's state a checkpoint holds, under "attn", the best score so far, the position in the training
    batches and all random states; these are restored as the last thing before training goes on. Of several processes
    the first one writes; the random states of the others are under "others", by rank, and are restored where as many
    processes go on.
    """

    def __init__(self, folder: Path, every: int = 1, seconds: float | None = None, finite: FiniteGuard | None = None):
        self.folder, self.every, self.seconds, self.finite = Path(folder), every, seconds, finite
        self.best: float | None = None  # lowest score so far
        self.saved_step: int | None = None  # of the last.ckpt that this process wrote
        self._saved_at = 0.0
        self._last_is_good = True
        self._restored: dict[str, Any] | None = None
        self._others: list[dict[str, Any]] = []  # random states of the processes after the first

    def save(self, trainer: pl.Trainer) -> None:
        """Write last.ckpt, once per step. Only for step boundaries."""
        if self.saved_step != trainer.global_step:
            # A last.ckpt that could not be read must not push a good previous.ckpt out.
            self._write(trainer, "last.ckpt", keep=self._last_is_good)
            self.saved_step, self._last_is_good = trainer.global_step, True
        self._saved_at = time.monotonic()

    def _write(self, trainer: pl.Trainer, name: str, keep: bool = False) -> None:
        if self.finite is not None:
            self.finite.read()
        self._others = processes.gathered(random_states())[1:]
        if processes.rank():
            return
        options = {"keep_as": self.folder / "previous.ckpt"} if keep else None
        trainer.save_checkpoint(self.folder / name, weights_only=False, storage_options=options)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        # After an epoch's last step comes its end, and with it the better place to save.
        if not trainer.is_last_batch and self._due(trainer, ASK_EVERY):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done = trainer.current_epoch + 1
        self._save_best(trainer, pl_module)
        if done % self.every == 0 or done == trainer.max_epochs or self._due(trainer):
            self.save(trainer)

    def _due(self, trainer: pl.Trainer, ask_every: int = 1) -> bool:
        """Whether `seconds` have passed, in any process, since the last time."""
        if self.seconds is None:
            return False
        return _any_process(trainer, time.monotonic() - self._saved_at >= self.seconds, ask_every)

    def _save_best(self, trainer: pl.Trainer, learner: Any) -> None:
        score = learner.score
        if isinstance(score, (int, float)) and is_better(score, self.best):
            self.best = float(score)
            self._write(trainer, "best.ckpt")

    def advice(self) -> str:
        """How to go on after a stop."""
        return Run(self.folder.parent).advice()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loader = trainer.train_dataloader
        position = loader.state_dict() if isinstance(loader, EpochBatches) else None
        states = {"random": random_states(), "others": self._others}
        checkpoint.setdefault("attn", {}).update(best=self.best, batches=position, **states)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        ours = checkpoint.get("attn")
        if not isinstance(ours, dict) or not {"best", "batches", "random"} <= set(ours):
            raise Refused(f"{trainer.ckpt_path} does not say where training stood: use another checkpoint of the run.")
        self._restored = {**ours, "optimizer_states": checkpoint["optimizer_states"]}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The one hook between the making of the optimisers and the restoring of their state.
        if self._restored is not None:
            check_optimizers(trainer.optimizers, self._restored["optimizer_states"], str(trainer.ckpt_path))

    def _still_there(self, best: Any) -> float | None:
        """The best score of a checkpoint that is continued, if best.ckpt, which has it, can be used."""
        if not isinstance(best, float):
            return None
        try:
            load(self.folder / "best.ckpt")
        except Refused as refused:
            print(f"{refused} The best of the epochs to come takes its place.", flush=True)
            return None
        return best

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at = time.monotonic()
        restored, self._restored = self._restored, None
        if restored is None:
            return
        source = Path(str(trainer.ckpt_path))
        self._last_is_good = source.name == "last.ckpt"
        self.best = processes.from_first(self._still_there(restored["best"]))
        loader = trainer.train_dataloader
        if isinstance(loader, EpochBatches):
            # Lightning restores loaders within an epoch only, not between two.
            loader.load_state_dict(restored["batches"] or {})
            if loader.position != trainer.global_step:
                stands = f"at step {trainer.global_step} but at batch {loader.position}"
                raise Refused(f"{source} stands {stands}: use another checkpoint of the run.")
        try:
            if processes.rank() == 0:
                restore_random_states(restored["random"])
            elif len(restored.get("others", [])) == processes.size() - 1:
                restore_random_states(restored["others"][processes.rank() - 1])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise Refused(f"{source} holds random states that do not fit this machine: {error}.") from error


class SignalGuard(Checkpoint):
    """SIGTERM and Ctrl-C end training at the next step boundary with a checkpoint; a second Ctrl-C ends it at once.

    Raises Stopped: exit code 143 and status "terminated", or 130 and "interrupted". A signal during an epoch's last
    step or during validation takes effect at the end of that epoch. As a context manager around the whole command it
    also answers before and after training, at once. It replaces Lightning's SIGTERM handler, which exits with 0.
    """

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.signal: int | None = None
        self._training = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalGuard:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self._install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
        if isinstance(error, _AtOnce):
            raise self._stopped(error.number, error.what) from None

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._training:
            raise _AtOnce(number, "The command was stopped outside training")
        if self.signal is not None and number == signal.SIGINT:
            raise _AtOnce(number, "Training was interrupted at once")
        if self.signal is None:
            self.signal = number
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            print(f"Stopping after this step, with a checkpoint{again}.", file=sys.stderr, flush=True)

    def _stopped(self, number: int, what: str) -> Stopped:
        status = "terminated" if number == signal.SIGTERM else "interrupted"
        return Stopped(f"{what}: {self.checkpoints.advice()}.", 128 + int(number), status)

    def _stop(self, trainer: pl.Trainer) -> None:
        self.checkpoints.save(trainer)
        number = self.signal or signal.SIGTERM  # with several processes it may be another one that got the signal
        self._training = False
        raise self._stopped(number, f"Training stopped after {trainer.global_step} steps, with a checkpoint")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install()  # over Lightning's handler, which it sets just before
        self._training = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if not trainer.is_last_batch and _any_process(trainer, self.signal is not None, ASK_EVERY):
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _any_process(trainer, self.signal is not None):
            self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._training = False


def _any_process(trainer: pl.Trainer, wanted: bool, every: int = 1) -> bool:
    """Whether any process of the run wants it: all must do the same thing at the same step."""
    if processes.size() == 1:
        return wanted
    return trainer.global_step % every == 0 and processes.anywhere(wanted)
