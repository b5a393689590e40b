"""From a command's name and words to its function: composed by Hydra, validated, then imported and called.

A command is one line in `HYDRA_COMMANDS`: its conf/*.yaml, the dataclass its configuration must fit, and the function
`run(config)` of its module. The module (and with it torch) is imported after the configuration has been accepted.
"""

from __future__ import annotations

import importlib
import os
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import attn_cli
from attn_cli.config import arguments, command_sections, hydra_errors, plugin_source, schema
from attn_cli.errors import PartlyRefused, Refused
from attn_cli.sweeps import jobs, plan, plugins, report


@dataclass(frozen=True)
class HydraCommand:
    name: str  # as typed
    config_name: str  # conf/NAME.yaml
    config: type  # the dataclass in config/
    run: str  # "module:function"; the function takes the dataclass and returns the result

    @property
    def prog(self) -> str:
        return f"attn {self.name}"


HYDRA_COMMANDS = {
    command.name: command
    for command in (
        HydraCommand("train", "train", schema.Config, "attn_cli.commands.launch:run"),
        HydraCommand("eval", "eval", command_sections.Evaluate, "attn_cli.commands.evaluate:run"),
        HydraCommand("mc-average", "mc_average", command_sections.McAverage, "attn_cli.commands.mc_average:run"),
        HydraCommand("combine", "combine", command_sections.Combine, "attn_cli.commands.combine:run"),
        HydraCommand("attend", "attend", command_sections.Attend, "attn_cli.commands.attend:run"),
        HydraCommand("show", "show", command_sections.Show, "attn_cli.commands.show:run"),
        HydraCommand("cost", "cost", schema.Cost, "attn_cli.commands.cost:run"),
        HydraCommand("bench", "bench", command_sections.Bench, "attn_cli.commands.bench:run"),
    )
}


def conf_folder() -> Path:
    """Absolute: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(attn_cli.__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def hydra_command(command: HydraCommand, words: Sequence[str]) -> int:
    """Runs `attn COMMAND WORDS…`, once or as a sweep, and returns the exit code; raises Refused for bad input."""
    given = arguments.parse(list(words), command.config)
    if "--version" in given.flags:
        print(f"attn {attn_cli.__version__}")
        return 0
    task = Task(command, tuple(sys.argv[:1]))
    resumed, overrides = plan.resumed(given.overrides)
    dirs = ("hydra.run.", "hydra.run=", "hydra.sweep.", "hydra.sweep=")
    if given_dirs := [word for word in overrides if word.lstrip("+").startswith(dirs)]:
        raise Refused(
            f"{given_dirs[0]} has no effect: a run makes its own folder in outputs, a sweep in outputs/sweeps, with "
            "outputs=FOLDER in FOLDER and FOLDER/sweeps."
        )
    if given.multirun:
        return sweep(command, task, resumed, given.flags, overrides)
    if resumed is not None:
        raise Refused(f"{plan.KEY}={resumed} is for a sweep: add -m.")
    compose(command, given.words(), overrides, task)
    if task.error is not None:
        raise task.error
    return 0


def sweep(
    command: HydraCommand, task: Task, resumed: Path | None, flags: Sequence[str], overrides: Sequence[str]
) -> int:
    """Runs the jobs of a new sweep, or those of the folder `resumed` that are not finished; returns the exit code."""
    flags = tuple(flag for flag in flags if flag != "--multirun")
    if resumed is None:
        folder = sweep_folder(command, overrides)
    else:
        folder, recorded = resumed, plan.read(resumed)
        plan.check_command(resumed, recorded, command.name)
        plan.check_working_folder(resumed)
        flags, overrides = flags or recorded.flags, plan.continued(recorded, overrides)
    task.words = (flags, tuple(overrides))
    ended: BaseException | None = None
    try:
        words = ["--multirun", *flags, *overrides, f"hydra.sweep.dir={str(folder)!r}"]
        compose(command, words, overrides, task)
    except BaseException as error:  # also a launcher whose worker was killed: what is done is still worth a table
        if resumed is not None and not task.begun:
            raise
        ended = error
    return report.finish(folder, ended, new=resumed is None)


def compose(
    command: HydraCommand, words: Sequence[str], overrides: Sequence[str], task: Task, program: str | None = None
) -> None:
    """Hands `words` to Hydra, which calls `task` with each composed configuration; raises Refused if none composes."""
    plugin_source.register()
    plugins.register()
    main = hydra.main(config_path=str(conf_folder()), config_name=command.config_name, version_base="1.3")(task)
    with _arguments([program or command.prog, *words]), _errors_propagate():
        try:
            main()
        except hydra_errors.ERRORS as error:
            raise hydra_errors.refusal(error, command.config, conf_folder(), overrides) from error


class Task:
    """What Hydra calls for each job; keeps an error of a single run for the dispatcher, records those of a sweep."""

    def __init__(self, command: HydraCommand, program: tuple[str, ...]):
        self.command = command
        self.program = program
        self.words: tuple[plan.Words, plan.Words] = ((), ())  # of a sweep: flags and overrides, as typed
        self.begun = False  # whether a sweep got as far as its jobs
        self.threads: int | None = None  # that a sweep gives to each of its jobs
        self.error: Exception | None = None

    def __call__(self, composed: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        overrides = cast(list[str], OmegaConf.to_container(hydra_config.overrides.task, resolve=False))
        if hydra_config.mode == RunMode.MULTIRUN:
            name = re.fullmatch(r"job-(\d+)", hydra_config.job.name)  # see sweeps/sweepers.py
            number = int(name[1]) if name else hydra_config.job.num
            folder = Path(hydra_config.runtime.output_dir)
            return jobs.run_job(folder, number, overrides, partial(self._job, composed, overrides))
        try:
            return self._run(self._config(composed), overrides)
        except Exception as error:  # raised again by hydra_command, free of Hydra's own report
            self.error = error
            return None

    def _job(self, composed: DictConfig, overrides: list[str], earlier: list[Path]) -> Any:
        """One job of a sweep; `earlier` are the run folders that earlier attempts left."""
        config = with_threads(self._config(composed), self.threads)
        if not earlier or not isinstance(config, schema.Config):
            return self._run(config, overrides)
        left = jobs.going_on(config, earlier)
        results: list[Any] = []
        refused: list[Refused] = []
        for rest in left:
            if isinstance(rest, dict):  # it had finished
                results.append(rest)
                continue
            try:
                results.append(self._run(rest, [f"resume={rest.resume}"] if rest.resume else overrides))
            except Refused as error:  # of several runs the others go on
                if error.exit_code in jobs.STOPPED or len(left) == 1:
                    raise
                refused.append(error)
        if len(left) == 1:
            return results[0]
        if len(refused) == len(left):
            raise Refused(f"None of {len(left)} runs is left; the first: {refused[0]}")
        from attn_cli.commands.train_together import together  # torch takes its time

        if refused:
            said = f"{len(refused)} of {len(left)} runs failed; the first: {refused[0]}"
            raise PartlyRefused(said, together(results))
        return together(results)

    def _config(self, composed: DictConfig) -> Any:
        cls = self.command.config
        return schema.load(composed) if cls is schema.Config else schema.load_as(cls, composed)

    def _run(self, config: Any, overrides: list[str]) -> Any:
        module, _, function = self.command.run.partition(":")
        # A job of a sweep sees its own words, as if it had been started alone.
        with _arguments([*self.program, self.command.name, *overrides]):
            return getattr(importlib.import_module(module), function)(config)


def with_threads(config: Any, threads: int | None) -> Any:
    """`config` with so many CPU threads, if it leaves them open."""
    if threads is None:
        return config
    if isinstance(config, schema.Config):
        return replace(config, trainer=with_threads(config.trainer, threads))
    return replace(config, threads=threads) if getattr(config, "threads", threads) is None else config


def sweep_folder(command: HydraCommand, overrides: Sequence[str]) -> Path:
    """A new name in outputs/sweeps; the folder is made when the first job is known to compose."""
    outputs = "outputs"
    for override in overrides:
        if override.startswith("outputs="):
            try:
                value = OverridesParser.create().parse_override(override).value()
                if isinstance(value, str):
                    value = OmegaConf.create({"outputs": value}).outputs  # fills in ${oc.env:HOME}
            except Exception as error:
                raise hydra_errors.refusal(error, command.config, conf_folder(), overrides) from error
            if not isinstance(value, str):
                raise Refused("outputs must be one folder in a sweep.")
            outputs = value
    return Path(outputs) / "sweeps" / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


@contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _errors_propagate() -> Iterator[None]:
    """Hydra prints errors and exits unless this variable is set."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
