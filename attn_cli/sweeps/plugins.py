"""Makes the sweepers known to Hydra; `attn` does so before it hands over to Hydra."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from attn_cli.sweeps import sweepers

# Hydra takes a sweeper only under a name in its own package for plugins, whatever the class is called.
PACKAGE = "hydra_plugins.attn"
SWEEPERS: dict[str, type[sweepers.Planned]] = {
    "basic": sweepers.Grid,
    "attn_random": sweepers.Random,
    "attn_optuna": sweepers.Optuna,
}


def register() -> None:
    """Calling it again changes nothing. The files of conf/hydra/sweeper hold the values and build upon these, which
    name the class.
    """
    plugins, store = Plugins.instance(), ConfigStore.instance()
    for name, sweeper in SWEEPERS.items():
        plugins.register(sweeper)
        target = f"{PACKAGE}.{sweeper.__name__}"
        plugins.class_name_to_class[target] = sweeper
        store.store(group="hydra/sweeper", name=name, node={"_target_": target, "params": None}, provider="attn")
