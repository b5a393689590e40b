"""Optuna's study of a sweep, in an SQLite file; its trials are the sweep's jobs, by number.

Trial n is proposed by a sampler seeded with (seed, n), so that a study that was broken off and resumed proposes what
the uninterrupted one would have. Needs the extra "sweeps".
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from attn_cli.errors import Refused, install
from attn_cli.sweeps import space

NAME = "sweep"


class Study:
    """A new study, or the one in the file; raises Refused if the file is not one that this version of Optuna reads, or
    has fewer than the `begun` trials that the sweep has begun.
    """

    def __init__(self, path: Path, swept: Mapping[str, Override], seed: int, begun: int) -> None:
        import optuna
        from sqlalchemy.engine import URL
        from sqlalchemy.exc import SQLAlchemyError

        lost = f"{path} is gone or lacks trials that this sweep has begun: restore it, or start a new sweep."
        if begun and not path.exists():  # before Optuna makes a new one
            raise Refused(lost)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.seed = optuna, seed
        self.space = {key: distribution(override) for key, override in swept.items()}
        try:
            url = URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
            storage = optuna.storages.RDBStorage(url)
            self.study = optuna.create_study(
                study_name=NAME, storage=storage, direction="minimize", load_if_exists=True
            )
            asked = self.study.get_trials(deepcopy=False)
        except (SQLAlchemyError, RuntimeError, AssertionError) as error:  # RuntimeError: the tables of another version
            raise Refused(
                f"{path} is not a study that optuna {optuna.__version__} reads (another version or a damaged file): "
                f"install the version that wrote it, upgrade it with `optuna storage upgrade --storage {url}`, "
                "or start a new sweep."
            ) from error
        if len(asked) < begun:
            raise Refused(lost)
        for trial in asked:
            if {**self.space, **trial.distributions} != self.space or set(trial.params) - set(self.space):
                raise Refused(f"{path} is a study of other keys or values than this sweep: start a new sweep.")

    @staticmethod
    def check_installed() -> None:
        if find_spec("optuna") is None:
            raise Refused(f"hydra/sweeper=optuna needs Optuna, which is not installed: {install('sweeps')}.")

    def asked(self) -> int:
        return len(self.study.get_trials(deepcopy=False))

    def ask(self) -> int:
        """The number of a new trial."""
        number = self.asked()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=self.optuna.exceptions.ExperimentalWarning)
            # Trials that run now, or never finished, count as bad: a batch is spread, a region that fails is left.
            seed = random.Random(f"{self.seed} {number}").getrandbits(32)
            self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return self.study.ask(self.space).number

    def words(self, number: int) -> list[str]:
        """The overrides of a trial, swept keys only."""
        params = self.study.get_trials(deepcopy=False)[number].params
        return [f"{key}={_word(params[key])}" for key in self.space]

    def tell(self, number: int, error: float | None) -> None:
        """The validation error of a trial, unless it was told before; one that is not a number counts as a failure."""
        state = self.optuna.trial.TrialState
        if error is None or not math.isfinite(error):
            self.study.tell(number, state=state.FAIL, skip_if_finished=True)
        else:
            self.study.tell(number, error, skip_if_finished=True)


def distribution(override: Override) -> Any:
    """Choices and globs are categories; ranges and intervals have an order."""
    from optuna import distributions

    if (span := space.ordered(override)) is not None:
        low, high, step = span
        if all(isinstance(number, int) for number in span):
            return distributions.IntDistribution(int(low), int(high), step=int(step))
        return distributions.FloatDistribution(float(low), float(high), step=float(step))
    choices = space.values(override)
    if isinstance(choices, tuple):
        return distributions.CategoricalDistribution(choices)
    if choices.whole:
        return distributions.IntDistribution(int(choices.low), int(choices.high), log=choices.log)
    return distributions.FloatDistribution(choices.low, choices.high, log=choices.log)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else space.written(value)
