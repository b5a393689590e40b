"""From a command's name and words to its function: composed by Hydra, validated, then imported and called.

A command is one line in `HYDRA_COMMANDS`: its conf/*.yaml, the dataclass its configuration must fit, and the function
`run(config)` of its module. The module (and with it torch) is imported after the configuration has been accepted.
"""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import attn_cli
from attn_cli.commands import sweeps
from attn_cli.config import arguments, hydra_errors, plugin_source, schema
from attn_cli.errors import Refused


@dataclass(frozen=True)
class HydraCommand:
    name: str  # as typed
    config_name: str  # conf/NAME.yaml
    config: type  # the dataclass in config/schema.py
    run: str  # "module:function"; the function takes the dataclass and returns the result

    @property
    def prog(self) -> str:
        return f"attn {self.name}"


HYDRA_COMMANDS = {
    command.name: command
    for command in (
        HydraCommand("train", "train", schema.Config, "attn_cli.commands.train:run"),
        HydraCommand("eval", "eval", schema.Evaluate, "attn_cli.commands.evaluate:run"),
        HydraCommand("mc-average", "mc_average", schema.McAverage, "attn_cli.commands.mc_average:run"),
        HydraCommand("combine", "combine", schema.Combine, "attn_cli.commands.combine:run"),
        HydraCommand("attend", "attend", schema.Attend, "attn_cli.commands.attend:run"),
        HydraCommand("show", "show", schema.Show, "attn_cli.commands.show:run"),
        HydraCommand("bench", "bench", schema.Bench, "attn_cli.commands.bench:run"),
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
    if not given.multirun:
        compose(command, given.words(), given.overrides, task)
        if task.error is not None:
            raise task.error
        return 0
    folder = sweep_folder(command, given.overrides)
    ended: BaseException | None = None
    try:
        compose(command, [*given.words(), f"hydra.sweep.dir={str(folder)!r}"], given.overrides, task)
    except BaseException as error:  # also a launcher whose worker was killed: what is done is still worth a table
        ended = error
    return sweeps.finish(folder, ended)


def compose(
    command: HydraCommand, words: Sequence[str], overrides: Sequence[str], task: Task, program: str | None = None
) -> None:
    """Hands `words` to Hydra, which calls `task` with each composed configuration; raises Refused if none composes."""
    plugin_source.register()
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
        self.error: Exception | None = None

    def __call__(self, composed: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        overrides = cast(list[str], OmegaConf.to_container(hydra_config.overrides.task, resolve=False))
        sweep = hydra_config.mode == RunMode.MULTIRUN
        folder, number = hydra_config.runtime.output_dir, hydra_config.job.num if sweep else 0
        # Lightning starts the other processes of `trainer=ddp` from sys.argv, and differently where it sees Hydra.
        # This very job's own words, and no Hydra, make each process this job and nothing else.
        own_words = [*self.program, self.command.name, *overrides]
        with _arguments(own_words), _without_hydra_config():
            if sweep:
                return sweeps.run_job(Path(folder), number, overrides, lambda: self._validated_run(composed))
            try:
                return self._validated_run(composed)
            except Exception as error:  # raised again by hydra_command, free of Hydra's own report
                self.error = error
                return None

    def _validated_run(self, composed: DictConfig) -> Any:
        cls = self.command.config
        config = schema.load(composed) if cls is schema.Config else schema.load_as(cls, composed)
        module, _, function = self.command.run.partition(":")
        return getattr(importlib.import_module(module), function)(config)


def sweep_folder(command: HydraCommand, overrides: Sequence[str]) -> Path:
    """A new name in outputs/sweeps; the folder is made when the first job is known to compose."""
    outputs = "outputs"
    for override in overrides:
        if override.startswith("outputs="):
            try:
                value = OverridesParser.create().parse_override(override).value()
            except Exception as error:
                raise hydra_errors.refusal(error, command.config, conf_folder(), overrides) from error
            if not isinstance(value, str):
                raise Refused("outputs must be one folder in a sweep.")
            outputs = value
    return Path(outputs) / "sweeps" / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


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


@contextmanager
def _without_hydra_config() -> Iterator[None]:
    state = HydraConfig.instance()
    before, state.cfg = state.cfg, None
    try:
        yield
    finally:
        state.cfg = before
