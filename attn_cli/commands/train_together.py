"""`attn train` with `trainer.parallel_seeds` or `parallel_lrs`: runs that differ in seed or learning rate alone, as one
stacked computation.

Each has a run folder as if it had been trained alone, and is continued, evaluated and shown alone. One that fails, here
or in its final evaluation, says so in its status.json; the others go on, and at the end the command is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from attn_cli.commands.outcome import evaluated, record
from attn_cli.commands.runs import row as listed
from attn_cli.config import schema
from attn_cli.data.batches import open_data
from attn_cli.devices import choose_device, explain_oom, prepare_cpu, within_memory
from attn_cli.errors import PartlyRefused, Refused
from attn_cli.files import append
from attn_cli.learning.guards import SignalGuard
from attn_cli.learning.parallel import MemberCheckpoints, ParallelLearner
from attn_cli.learning.random_states import random_states
from attn_cli.learning.reporting import MetricsFile, ProgressReport, epoch_line
from attn_cli.learning.restore import check_sources, note_images
from attn_cli.learning.training import begin, fit, make_learner, should_compile
from attn_cli.pictures import tables
from attn_cli.pictures.curves import learning_curves
from attn_cli.runs import Run, commit, create


@within_memory
def run(config: schema.Config) -> dict[str, Any]:
    """Train and evaluate all, write and print their results; returns the mean of those that finished. Raises Refused
    at the end if any failed.
    """
    commit()  # as in train.py
    threads = prepare_cpu(config.trainer.threads)
    device = choose_device(config.trainer.accelerator)
    check_sources(config)
    data = open_data(config.data).to(device)
    compile_step = should_compile(config, data)
    data.fixed("validation")  # before an epoch is trained: it may be refused
    members, states, reports = [], [], []
    for own in config.alone():
        members.append(make_learner(own, data, compile_step))
        reports.append(begin(members[-1], own, data))
        states.append(random_states())
        members[-1].model.to(device)
    learner = ParallelLearner(members, states, compile_step)
    learner.try_out()
    folders: list[Run] = []
    results: dict[int, dict[str, Any]] = {}
    try:
        for member, report in zip(members, reports, strict=True):
            folders.append(create(member.config, glimpses=member.model.glimpses))
            note_images(folders[-1], member.config, data)
            print(f"Run folder: {folders[-1].path} ({_differs(member.config, config)})", flush=True)
            if report is not None:
                print(report, flush=True)
                append(folders[-1].path / "log.txt", report)
        _train(learner, folders, results, threads)
    except BaseException as error:
        refusal = explain_oom(error, config.trainer.batch_size)
        for number, folder in enumerate(folders):
            if number not in results and number not in learner.failed:
                record(folder, refusal or error)
        if refusal is not None:
            raise refusal from error
        raise
    rows = [
        {**listed(folder), "run": f"{folder.name} ({_differs(member.config, config)})"}
        for folder, member in zip(folders, members, strict=True)
    ]
    tables.show(tables.runs_table(rows))
    result = together(list(results.values()))
    if learner.failed:
        number, refused = next(iter(learner.failed.items()))
        raise PartlyRefused(
            f"{len(learner.failed)} of {len(members)} runs failed, {folders[number].path} first: {refused}", result
        )
    return result


def together(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result for several runs: the mean, and in `each` the figures of every run."""
    first, found = results[0], [str(result["run"]) for result in results]
    keys = [key for key in ("val_error", "test_error", "glimpses", "mean_glimpses", "seconds") if key in first]
    means: dict[str, Any] = {key: fmean(result[key] for result in results) for key in keys}
    same = {key: first[key] for key in ("threads",) if key in first}
    each = [{key: result[key] for key in ("run", "seed", *keys)} for result in results]
    return {"run": " ".join(found), "runs": found, "each": each, **same, **means}


def _differs(own: schema.Config, config: schema.Config) -> str:
    seed, rate = f"seed {own.seed}", f"optimizer.lr {own.optimizer.lr:g}"
    return ", ".join([seed] * (config.trainer.parallel_seeds > 1) + [rate] * (len(config.trainer.parallel_lrs) > 1))


def _train(learner: ParallelLearner, folders: list[Run], results: dict[int, dict[str, Any]], threads: int) -> None:
    """Adds the result of each run that finishes."""
    config = learner.config
    curves = []
    for folder, member in zip(folders, learner.members, strict=True):
        metrics = MetricsFile(folder.path / "metrics.csv")
        if config.logger.name != "none":
            member.listeners.append(metrics.add)
            curves.append(metrics)
        member.listeners.append(_keeper(folder, config.trainer.epochs))

    def fail(number: int, refused: Refused) -> None:
        record(folders[number], refused)
        print(f"{folders[number].path}: {refused}", file=sys.stderr, flush=True)

    learner.on_failure = fail
    progress = ProgressReport(config.trainer.epochs)  # of the mean
    learner.listeners.append(progress.epoch)
    every, seconds = config.trainer.checkpoint_every, config.trainer.checkpoint_seconds
    checkpoints = MemberCheckpoints(learner, [folder.checkpoints for folder in folders], every, seconds)
    with SignalGuard(checkpoints) as signals:
        try:
            fit(learner, config, [progress, checkpoints, signals])
        finally:
            progress.stop()
            for metrics in curves:
                if metrics.rows:
                    learning_curves(metrics.path, metrics.path.with_name("curves.png"))
        for number in learner.going:
            folder, member = folders[number], learner.members[number]
            try:
                result = evaluated(folder, member.config, learner.data, member, threads)
            except Refused as refused:  # such as no checkpoint with a finite error
                learner.give_up(number, refused)
                continue
            folder.write_result({**result, "trained_together": len(folders)})
            folder.set_status("finished", epoch=config.trainer.epochs, step=learner.global_step)
            results[number] = result
            checkpoints.finished.add(number)


def _keeper(folder: Run, epochs: int) -> Callable[[dict[str, Any]], None]:
    """Writes down where a run stands."""

    def keep(row: dict[str, Any]) -> None:
        append(folder.path / "log.txt", epoch_line(row, epochs))
        folder.set_status("running", epoch=row["epoch"], step=row["step"])

    return keep
