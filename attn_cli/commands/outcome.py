"""How a training run ends: the figures of result.json, or what went wrong."""

from __future__ import annotations

import traceback
from typing import Any

from attn_cli import processes
from attn_cli.config import schema
from attn_cli.data.splits import Data
from attn_cli.devices import explaining_oom
from attn_cli.errors import Refused, Terminated
from attn_cli.games.players import compared
from attn_cli.inference.monte_carlo import evaluate
from attn_cli.learning.checkpoints import load
from attn_cli.learning.guards import Stopped
from attn_cli.learning.learner import Learner
from attn_cli.learning.restore import load_model
from attn_cli.runs import Run, versions

REPEATS = 5  # seeds of the random first location in the final evaluation


def evaluated(folder: Run, config: schema.Config, data: Data, learner: Learner, threads: int) -> dict[str, Any]:
    """Errors of the best checkpoint by validation, with the mean-location policy, over seeds of the first location."""
    best = folder.checkpoint("best")
    load_model(learner.model, load(best)["state_dict"], best)
    batch = config.trainer.eval_batch_size
    with explaining_oom(batch, "trainer.eval_batch_size"):
        outcomes = {
            split: evaluate(learner.model, *data.fixed(split), repeats=REPEATS, seed=config.seed, batch_size=batch)
            for split in ("validation", "test")
        }
    test, game = outcomes["test"], data.info.game
    result: dict[str, Any] = {
        "run": str(folder.path),
        "experiment": config.experiment,
        "data": config.data.name,
        "model": config.model.name,
        "glimpses": learner.model.glimpses,
        "size": config.glimpses.size if learner.model.moves else None,  # what sees the whole image has no patches
        "scales": config.scales.count if learner.model.moves else None,
        "epochs": config.trainer.epochs,
        "seed": config.seed,
        "learning_rate": config.optimizer.lr,
        "val_error": outcomes["validation"].error(),
        "test_error": test.error(),
        "test_error_interval": list(test.interval()),
        "test_error_deviation": test.deviation(),
        "images": test.count,
        "mc_samples": 0,
        "seconds": learner.seconds,
        "images_per_second": learner.images / max(learner.seconds, 1e-9),
        "device": str(data.fixed("test")[0].device),
        "devices": processes.size(),
        "threads": threads,
        "compiled": learner.compile_step,
        "commit": ", ".join(learner.commits) or None,
        "versions": versions(),
        "digests": {split: data.digest(split) for split in outcomes},
    }
    if game is not None:
        frames = learner.images * game.frames
        result |= {"frames": frames, "frames_per_second": frames / max(learner.seconds, 1e-9)}
        result |= {"caught": 100 - test.error(), "players": compared(data.fixed("test")[1])}
    if learner.model.stops:
        result |= {"mean_glimpses": test.mean_glimpses}
    return result


def record(folder: Run, error: BaseException) -> None:
    """Say in status.json how the run ended."""
    status = "failed"
    if isinstance(error, Stopped):
        status = error.status
    elif isinstance(error, KeyboardInterrupt):
        status = "terminated" if isinstance(error, Terminated) else "interrupted"
    message = str(error) if isinstance(error, Refused) else "".join(traceback.format_exception_only(error)).strip()
    folder.set_status(status, message)
