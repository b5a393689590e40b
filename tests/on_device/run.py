"""`python run.py < CASES`: what training steps and commands find on the CPU and on the device of strict.py.

CASES may have `steps` and `runs`, words for `attn train`, and `commands`, each under its name; a command names a run by
the name that it has there. Prints JSON: by the name of steps or a command what both devices found, or a traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import strict

from attn_cli.commands import entry, train
from attn_cli.commands.reproducing import composed
from attn_cli.data.batches import open_data
from attn_cli.learning import learner as learners
from attn_cli.learning import parallel
from attn_cli.learning.training import make_learner
from attn_cli.models.rollout import draw_noise


def noise(seed: int, step: int, shape: Any, device: Any = "cpu", numbers: int = 2) -> Tensor:
    """The CPU's, on either device: there is no generator for the other."""
    drawn = draw_noise(seed, step, shape, "cpu", numbers)
    return strict.OnDevice(drawn) if strict.is_device(device) else drawn


def steps(words: list[str], on_device: bool) -> dict[str, Any]:
    """Losses and where they are, the sum of all weights after two steps, and what made the host wait in the second."""
    config = composed("train", ["trainer=smoke", *words])
    data = open_data(config.data, log=lambda line: None)
    members = [make_learner(own, data) for own in config.alone()]
    if on_device:
        data.to(strict.DEVICE)
        for member in members:
            strict.move(member, strict.DEVICE)
    learner = members[0] if len(members) == 1 else parallel.ParallelLearner(members, [{}] * len(members))
    optimiser = learner.configure_optimizers()["optimizer"]
    learner.finite.watch(learner)
    losses = []
    for step in range(2):
        strict.waits.clear()
        learner.model.zero_grad()
        batches = [data.train_batch(member.config.seed, 0, step, 16) for member in members]
        images, labels = map(torch.stack, zip(*batches, strict=True)) if len(members) > 1 else batches[0]
        loss = learner.loss((images, labels, 0, step))
        loss.sum().backward()
        if isinstance(learner, parallel.ParallelLearner):
            learner.stack.hand_out_gradients()
        learner.finite.check(loss.detach(), optimiser, step)
        optimiser.step()
        losses.append(loss.detach())
    waited = [line for line in strict.waits if not line.startswith("copied: devices.py")]  # a GPU does not wait there
    weights = [strict.numbers_of(weight.detach()).double().abs().sum().item() for weight in learner.model.parameters()]
    where = sorted({str(loss.device) for loss in losses})
    return {
        "where": where,
        "losses": [strict.numbers_of(loss).tolist() for loss in losses],
        "weights": weights,
        "waits": waited,
    }


def command(words: list[str], on_device: bool) -> dict[str, Any]:
    """What a command returns or, of pictures, nothing."""
    known = entry.HYDRA_COMMANDS[words[0]]
    name, _, function = known.run.partition(":")
    module = importlib.import_module(name)
    device = strict.DEVICE if on_device else torch.device("cpu")
    with patch.object(module, "choose_device", lambda name: device), contextlib.redirect_stdout(io.StringIO()):
        result = getattr(module, function)(composed(words[0], words[1:]))
    return result if isinstance(result, dict) else {}


def on_both(work: Any, words: list[str]) -> list[Any]:
    found = []
    for on_device in (False, True):
        try:
            with strict.present() if on_device else contextlib.nullcontext():
                found.append(work(words, on_device))
        except Exception:
            found.append(traceback.format_exc())
    return found


def main() -> None:
    learners.draw_noise = parallel.draw_noise = noise  # type: ignore[assignment]
    own = torch.nn.Module.to

    def to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], torch.device) and strict.is_device(args[0]):
            return strict.move(module, args[0])
        return own(module, *args, **kwargs)

    torch.nn.Module.to = to  # type: ignore[method-assign]
    cases = json.load(sys.stdin)
    found = {name: on_both(steps, words) for name, words in cases.get("steps", {}).items()}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, words in cases.get("runs", {}).items():
            options = ["trainer=smoke", "trainer.limit_train_steps=2", "trainer.threads=1", f"outputs=of-{name}"]
            with contextlib.redirect_stdout(io.StringIO()):
                train.run(composed("train", [*options, *words]))
            os.rename(next(Path(f"of-{name}").iterdir()), name)
        found |= {name: on_both(command, words) for name, words in cases.get("commands", {}).items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
