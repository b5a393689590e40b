"""`attn train`: one run, from a configuration to result.json; or the rest of one, with resume=FOLDER."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attn_cli import places, processes
from attn_cli.commands import launch, train_together
from attn_cli.commands.outcome import evaluated, record
from attn_cli.config import schema
from attn_cli.data.batches import open_data
from attn_cli.data.splits import Data
from attn_cli.devices import choose_device, explain_oom, prepare_cpu, within_memory
from attn_cli.errors import Refused
from attn_cli.files import append
from attn_cli.learning.batch_norm import check_batch
from attn_cli.learning.checkpoints import newest_valid
from attn_cli.learning.guards import Checkpoints, SignalGuard
from attn_cli.learning.learner import Learner
from attn_cli.learning.reporting import MetricsFile, ProgressReport, check_logger, make_logger
from attn_cli.learning.restore import check_images, check_sources, note_images, open_own
from attn_cli.learning.training import begin, fit, make_learner
from attn_cli.pictures import tables
from attn_cli.pictures.curves import learning_curves
from attn_cli.runs import Run, commit, create


def run(config: schema.Config) -> dict[str, Any]:
    """Train, evaluate the best checkpoint, write and print the result; returns it with the run's folder.

    One of several processes where torchrun, srun or commands/launch.py, where `attn train` begins, started them.
    """
    if config.trainer.parallel > 1 and config.resume is None:
        return train_together.run(config)
    before = None
    if config.resume is not None:
        before, config = launch.continued(config.resume)
    place = places.place(config.trainer)
    if place is None and config.trainer.devices > 1:
        raise ValueError("runs on several devices begin in commands/launch.py")
    with processes.joined(place, config.trainer.accelerator):
        return _run(config, before, places.threads(config.trainer.threads, place))


@within_memory
def _run(config: schema.Config, before: Run | None, threads: int | None) -> dict[str, Any]:
    """What each process does; `before` is the run to continue."""
    first = processes.rank() == 0
    commit()  # of the code that runs now, not of what is there when the result is written
    resume = None
    if before is not None:
        resume = processes.from_first(newest_valid(before.checkpoints))
    threads = prepare_cpu(threads)
    device = choose_device(config.trainer.accelerator)
    check_logger(config.logger)
    if before is None:
        check_sources(config)
    data = (open_data(config.data) if before is None else open_own(before, config.data)).to(device)
    if before is not None:
        check_images(before, data, "start a new run, with init_from from the weights of this one")
    batch = min(config.trainer.batch_size, data.info.train)
    if batch % processes.size():
        raise Refused(
            f"A batch of all {data.info.train} training images has no equal parts for {processes.size()} processes: "
            f"set trainer.batch_size={max(batch - batch % processes.size(), processes.size())}."
        )
    learner = make_learner(config, data)
    check_batch(learner.model, config.model.name, batch)
    data.fixed("validation")  # before an epoch is trained: it may be refused
    report = begin(learner, config, data, resumed=resume is not None)
    processes.wait()  # all of them have accepted what they were given
    folder = processes.from_first(before or (create(config, glimpses=learner.model.glimpses) if first else None))
    assert folder is not None
    try:
        if first:
            if before is None:
                note_images(folder, config, data)
            launch.tell_run(folder.path)
            folder.set_status("running")
        print(f"Run folder: {folder.path}", flush=True)
        if report is not None:
            print(report, flush=True)
            if first:
                append(folder.path / "log.txt", report)
        result = _train(folder, config, data, learner, resume, threads)
    except BaseException as error:
        refusal = explain_oom(error, config.trainer.batch_size)
        if isinstance(error, processes.Lost):
            refusal = processes.Lost(f"{str(error).removesuffix('.')}: {folder.advice()}.")
        if first:
            record(folder, refusal or error)
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
            fit(learner, config, [progress, checkpoints, signals], resume=resume, logger=logger)
        finally:
            progress.stop()
            if metrics.rows and first:
                learning_curves(metrics.path, folder.path / "curves.png")
        result = evaluated(folder, config, data, learner, threads)
        if first:
            folder.write_result(result)
        return result
