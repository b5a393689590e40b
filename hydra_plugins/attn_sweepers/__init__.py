"""The sweepers of `attn` for Hydra, which takes plugins from the package hydra_plugins only.

Importing this changes nothing; `attn` puts them in the places of conf/hydra/sweeper when it starts.
"""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from attn_cli.sweeps import sweepers


class GridSweeper(sweepers.Grid):
    pass


class RandomSweeper(sweepers.Random):
    pass


class OptunaSweeper(sweepers.Optuna):
    pass


def register() -> None:
    """Tells Hydra about the sweepers; calling it again changes nothing.

    The files of conf/hydra/sweeper hold the values and build upon these, which name the class.
    """
    store = ConfigStore.instance()
    for name, sweeper in (("basic", GridSweeper), ("attn_random", RandomSweeper), ("attn_optuna", OptunaSweeper)):
        Plugins.instance().register(sweeper)
        node = {"_target_": f"{sweeper.__module__}.{sweeper.__name__}", "params": None}
        store.store(group="hydra/sweeper", name=name, node=node, provider="attn")
