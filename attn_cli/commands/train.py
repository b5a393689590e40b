"""`attn train`: one run, from a configuration to result.json; or the rest of one, with resume=FOLDER."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any, cast

from attn_cli import places, processes
from attn_cli.commands import launch
from attn_cli.config import schema
from attn_cli.data.batches import open_data
from attn_cli.data.splits import Data
from attn_cli.devices import choose_device, prepare_cpu
from attn_cli.errors import Refused, Terminated
from attn_cli.games.players import compared
from attn_cli.inference.monte_carlo import evaluate
from attn_cli.learning.checkpoints import load, newest_valid
from attn_cli.learning.guards import Checkpoints, SignalGuard, Stopped, explain_oom
from attn_cli.learning.learner import Learner
from attn_cli.learning.reporting import MetricsFile, ProgressReport, check_logger, make_logger
from attn_cli.learning.restore import fill_trunk, initialise, load_model, pretrain, share
from attn_cli.learning.training import fit, make_learner
from attn_cli.models.timm_net import TimmNet
from attn_cli.pictures import tables
from attn_cli.pictures.curves import learning_curves
from attn_cli.runs import Run, commit, create, open_run, versions

REPEATS = 5  # seeds of the random first location in the final evaluation


def run(config: schema.Config) -> dict[str, Any]:
    """Train, evaluate the best checkpoint, write and print the result; returns it with the run's folder.

    One of several processes where torchrun, srun or commands/launch.py, where `attn train` begins, started them.
    """
    before = None
    if config.resume is not None:
        before, config = launch.continued(config.resume)
    place = places.place(config.trainer)
    if place is None and config.trainer.devices > 1:
        raise ValueError("runs on several devices begin in commands/launch.py")
    with processes.joined(place, config.trainer.accelerator):
        return _run(config, before, places.threads(config.trainer.threads, place))


def _run(config: schema.Config, before: Run | None, threads: int | None) -> dict[str, Any]:
    """What each process does; `before` is the run to continue."""
    first = processes.rank() == 0
    resume = None
    if before is not None:
        resume = processes.from_first(newest_valid(before.checkpoints))
    threads = prepare_cpu(threads)
    device = choose_device(config.trainer.accelerator)
    check_logger(config.logger)
    data = open_data(config.data).to(device)
    batch = min(config.trainer.batch_size, data.info.train)
    if batch % processes.size():
        raise Refused(
            f"A batch of all {data.info.train} training images has no equal parts for {processes.size()} processes: "
            f"set trainer.batch_size={max(batch - batch % processes.size(), processes.size())}."
        )
    learner = make_learner(config, data)
    shared = getattr(config.model, "share_glimpse_from", None)
    if shared is not None:
        share(learner.model.get_submodule("glimpse_network"), "glimpse_network", open_run(shared))
    report = initialise(learner.model, open_run(config.init_from)) if config.init_from and resume is None else None
    if isinstance(config.model, schema.Timm) and config.model.weights is not None and resume is None and report is None:
        report = pretrain(cast(TimmNet, learner.model), config.model.weights)
    trunk = getattr(learner.model, "trunk", None)
    if trunk is not None and resume is None:
        fill_trunk(trunk, config)
    processes.wait()  # all of them have accepted what they were given
    folder = processes.from_first(before or (create(config) if first else None))
    assert folder is not None
    try:
        if first:
            launch.tell_run(folder.path)
            folder.set_status("running")
        print(f"Run folder: {folder.path}", flush=True)
        if report is not None:
            print(report, flush=True)
            if first:
                (folder.path / "log.txt").write_text(report + "\n")
        result = _train(folder, config, data, learner, resume, threads)
    except BaseException as error:
        if first:
            _record(folder, learner, error)
        refusal = explain_oom(error, config.trainer.batch_size)
        if refusal is not None:
            raise refusal from error
        raise
    if first:
        folder.set_status("finished", epoch=config.trainer.epochs, step=learner.global_step)
    tables.show(tables.result_table(result))
    return result


def _train(
    folder: Run, config: schema.Config, data: Data, learner: Learner, resume: Path | None, threads: int
) -> dict[str, Any]:
    first = processes.rank() == 0
    progress = ProgressReport(config.trainer.epochs, folder.path / "log.txt" if first else None)
    metrics = MetricsFile(folder.path / "metrics.csv")
    logger: Any = make_logger(config.logger, folder.path) if first else False
    if config.logger.name != "none":
        learner.listeners.append(metrics.add)
    if logger:

        def log(row: dict[str, Any]) -> None:
            logger.log_metrics({key: value for key, value in row.items() if value is not None}, row["step"])

        learner.listeners.append(log)

    def keep_status(row: dict[str, Any]) -> None:
        folder.set_status("running", epoch=row["epoch"], step=row["step"])

    learner.listeners += [progress.epoch, keep_status]
    if not first:  # one writer
        learner.listeners.clear()
    every, seconds = config.trainer.checkpoint_every, config.trainer.checkpoint_seconds
    checkpoints = Checkpoints(folder.checkpoints, every, seconds, learner.finite)
    with SignalGuard(checkpoints) as signals:
        try:
            fit(learner, config, data, [progress, checkpoints, signals], resume=resume, logger=logger)
        finally:
            progress.stop()
            if metrics.rows and first:
                learning_curves(metrics.path, folder.path / "curves.png")
        result = _evaluated(folder, config, data, learner, threads)
        if first:
            folder.write_result(result)
        return result


def _evaluated(folder: Run, config: schema.Config, data: Data, learner: Learner, threads: int) -> dict[str, Any]:
    """Errors of the best checkpoint by validation, with the mean-location policy, over seeds of the first location."""
    best = folder.checkpoint("best")
    load_model(learner.model, load(best)["state_dict"], best)
    batch = config.trainer.eval_batch_size
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
        "size": config.glimpses.size,
        "scales": config.scales.count,
        "epochs": config.trainer.epochs,
        "seed": config.seed,
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
        "commit": commit(),
        "versions": versions(),
        "digests": {split: data.digest(split) for split in outcomes},
    }
    if game is not None:
        frames = learner.images * game.frames
        result |= {"frames": frames, "frames_per_second": frames / max(learner.seconds, 1e-9)}
        result |= {"caught": 100 - test.error(), "players": compared(data.fixed("test")[1])}
    return result


def _record(folder: Run, learner: Learner, error: BaseException) -> None:
    """Say in status.json how the run ended."""
    status = "failed"
    if isinstance(error, Stopped):
        status = error.status
    elif isinstance(error, KeyboardInterrupt):
        status = "terminated" if isinstance(error, Terminated) else "interrupted"
    message = str(error) if isinstance(error, Refused) else "".join(traceback.format_exception_only(error)).strip()
    folder.set_status(status, message)
