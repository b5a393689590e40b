"""How Hydra's sweepers of `attn` choose jobs: every combination, at random, or by Optuna.

All three write the plan of the sweep before the first job (plan.py), give a resumed sweep only those jobs that are not
finished, and share the processor among jobs that run at once.

 1. The grid takes the place of Hydra's own `basic`, which knows neither how many jobs there are in all nor which are
    done. `max_batch_size` is left out: nothing here needs batches.
 2. A job's number travels as Hydra's job name, job-007: launchers number what they are given from 0, and a resumed
    sweep has gaps.
 3. Optuna is used directly. hydra-optuna-sweeper 1.3 needs optuna < 3, numbers jobs from 0 again when a study is
    resumed, and forgets trials that were running.
"""

from __future__ import annotations

import itertools
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from attn_cli.config.arguments import number_as_value
from attn_cli.config.fields import bounded, build
from attn_cli.errors import Refused
from attn_cli.sweeps import jobs, plan, space

NUMBER = "hydra.job.name=job-"
WITH_ERROR = ("train", "eval", "combine")  # commands whose result has a validation error
BLIND = "hydra/sweeper=optuna goes by the validation error"


@dataclass(frozen=True)
class Settings:
    """Keys of conf/hydra/sweeper; a sweeper has those that its file names."""

    n_trials: int = bounded(20, 1, 1_000_000)
    seed: int = bounded(0, 0, 2**32 - 1)
    n_jobs: int = bounded(1, 1, 10_000)


class Planned(Sweeper):
    """What the sweepers share; `params` are swept keys of the configuration, which the command line overrides."""

    name: str
    hydra_context: HydraContext
    config: DictConfig

    def __init__(self, params: Mapping[str, str] | None = None, **settings: Any) -> None:
        if not isinstance(params, Mapping | None):
            raise Refused(f"hydra.sweeper.params must be a group of keys, not {params!r}.")
        self.params = params or {}
        self.settings = build(Settings, settings, "hydra.sweeper")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.config = config
        self.task: Any = task_function  # commands/entry.py: Task
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.folder = Path(config.hydra.sweep.dir)
        if config.hydra.launcher.get("n_jobs") == 0:  # joblib says so only after the plan is written
            raise Refused("hydra.launcher.n_jobs must be at least 1, or -1 for one job a core.")

    def sweep(self, arguments: list[str]) -> None:
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        words = [*(number_as_value(f"{key}={value}") for key, value in self.params.items()), *arguments]
        self.run({override.get_key_element(): override for override in parser.parse_overrides(words)})

    @abstractmethod
    def run(self, overrides: Mapping[str, Override]) -> None:
        """Run every job that is not finished; `overrides` by key, swept and fixed."""

    def begin(self, listed: Sequence[Sequence[str]], total: int, words: Sequence[str] = ()) -> plan.Plan:
        """Compose all that can be composed by now, then write the plan; see plan.begin."""
        for job in listed:
            self.check(self.hydra_context.config_loader.load_sweep_config(self.config, list(job)))
        own = tuple(map(tuple, listed)) if not words else ()
        flags, overrides = self.task.words
        made = plan.Plan(self.task.command.name, flags, overrides, self.name, own, tuple(words), total)
        made = plan.begin(self.folder, made)
        self.task.begun = True
        if not (self.folder / "multirun.yaml").exists():
            OmegaConf.save(self.config, self.folder / "multirun.yaml")
        return made

    def check(self, job: DictConfig) -> None:
        """Raise Refused for a job that does not belong in this sweep."""
        if OmegaConf.select(job, "trainer.parallel_lrs"):
            raise Refused("trainer.parallel_lrs is for a single run: in a sweep write optimizer.lr=RATE,RATE instead.")

    def launch(self, numbered: Sequence[tuple[int, Sequence[str]]]) -> None:
        """Run jobs, given as (number, overrides), with the launcher that was chosen."""
        if not numbered:
            return
        settings = self.config.hydra.launcher
        threads = threads_per_job(settings, len(numbered), len(os.sched_getaffinity(0)))
        self.task.threads = threads
        if "submitit_folder" in settings:
            print(f"What the jobs print is in {settings.submitit_folder.replace('/%j', '')}.", flush=True)
        with _shared_processor(threads):
            batch = [[*words, f"{NUMBER}{number:03d}"] for number, words in numbered]
            for ended in self.launcher.launch(batch, initial_job_idx=0):
                _ = ended.return_value  # raises what no job recorded: a status file that could not be written

    def waiting(self, numbered: Sequence[tuple[int, Sequence[str]]]) -> list[tuple[int, Sequence[str]]]:
        done = {job["job"] for job in jobs.read_jobs(self.folder) if job["status"] == "finished"}
        left = [(number, words) for number, words in numbered if number not in done]
        if done:
            print(f"{self.folder}: {len(done)} of {len(numbered)} jobs are done.", flush=True)
        return left


class Grid(Planned):
    """Every combination of the values."""

    name = "grid"

    def run(self, overrides: Mapping[str, Override]) -> None:
        columns = [
            [f"{key}={value}" for value in space.listed(override)]
            if override.is_sweep_override()
            else [space.fixed(override)]
            for key, override in overrides.items()
        ]
        combinations = [list(words) for words in itertools.product(*columns)]
        made = self.begin(combinations, len(combinations))
        self.launch(self.waiting(list(enumerate(made.jobs))))


class Random(Planned):
    """Values drawn independently (Bergstra, Bengio 2012): what the RAM paper used."""

    name = "random"

    def run(self, overrides: Mapping[str, Override]) -> None:
        constant, swept = split(overrides, self.name)
        choices = [(key, space.values(override)) for key, override in swept.items()]
        drawn = [
            [*constant, *space.draw(choices, self.settings.seed, number)] for number in range(self.settings.n_trials)
        ]
        made = self.begin(drawn, len(drawn))
        self.launch(self.waiting(list(enumerate(made.jobs))))


class Optuna(Planned):
    """Values proposed by Optuna's tree-structured Parzen estimator from the validation errors of earlier jobs.

    The study is study.db (SQLite) in the sweep's folder; its trial n is job n. A trial is told once its job has
    finished; one whose job did not stays open and is run again when the sweep is resumed.
    """

    name = "optuna"

    def check(self, job: DictConfig) -> None:
        super().check(job)
        command = self.task.command.name
        if command not in WITH_ERROR:
            raise Refused(f"{BLIND}, and attn {command} has none: leave the sweeper out, or use hydra/sweeper=random.")
        if job.get("split") == "test":
            raise Refused(f"{BLIND}: set split=validation.")

    def run(self, overrides: Mapping[str, Override]) -> None:
        from attn_cli.sweeps.study import Study

        trials, seed, at_once = self.settings.n_trials, self.settings.seed, self.settings.n_jobs
        constant, swept = split(overrides, self.name)
        choices = [(key, space.values(override)) for key, override in swept.items()]
        if "split" in swept:
            raise Refused(f"{BLIND}: set split=validation.")
        Study.check_installed()
        example = [*constant, *space.draw(choices, seed, 0)]
        words = sorted(override.input_line or "" for override in overrides.values())
        self.begin([example], trials, [*words, f"hydra.sweeper.n_trials={trials}"])
        begun = max((job["job"] + 1 for job in jobs.read_jobs(self.folder)), default=0)
        study = Study(self.folder / "study.db", swept, seed, begun)
        self._tell(study)
        left = self.waiting([(number, [*constant, *study.words(number)]) for number in range(study.asked())])
        while left or study.asked() < trials:
            batch, left = left[:at_once], left[at_once:]
            while len(batch) < at_once and study.asked() < trials:
                number = study.ask()
                batch.append((number, [*constant, *study.words(number)]))
            self.launch(batch)
            self._tell(study)

    def _tell(self, study: Any) -> None:
        for job in jobs.read_jobs(self.folder):
            if job["status"] == "finished":
                study.tell(job["job"], (job.get("result") or {}).get("val_error"))


def split(overrides: Mapping[str, Override], name: str) -> tuple[list[str], dict[str, Override]]:
    """(overrides that are the same in every job, swept overrides by key); raises Refused where nothing is swept."""
    swept = {key: override for key, override in overrides.items() if override.is_sweep_override()}
    if not swept:
        raise Refused(
            f"hydra/sweeper={name} needs a key to search, such as 'optimizer.lr=tag(log,interval(1e-4,1e-2))'."
        )
    return [space.fixed(override) for override in overrides.values() if not override.is_sweep_override()], swept


def threads_per_job(launcher: Mapping[str, Any], jobs: int, cores: int) -> int | None:
    """CPU threads of each of `jobs` jobs, so that those that run at once share the processor; None leaves them as they
    are, as for jobs that run one after another.
    """
    at_once = launcher.get("n_jobs")  # joblib
    if at_once is not None:
        at_once = at_once if at_once > 0 else max(1, cores + 1 + at_once)
        return max(1, cores // min(at_once, jobs))
    if launcher.get("cpus_per_task") is not None:  # submitit
        return int(launcher["cpus_per_task"])
    if str(launcher.get("_target_")).endswith(".LocalLauncher"):  # submitit starts all at once here
        return max(1, cores // jobs)
    return None


@contextmanager
def _shared_processor(threads: int | None) -> Iterator[None]:
    """What processes that are started meanwhile find in their environment, unless the person has set it: as many
    threads for OpenMP, which do not spin while they wait.
    """
    wanted = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
