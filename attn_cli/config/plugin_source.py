"""Lets Hydra choose what installed packages offer: `attn train model=their_model` with their Config's defaults.

A Hydra config source that writes the YAML of a plugin out of its `Config` dataclass, when it is asked for it and
not before: listing names for --help or completion imports nobody's package.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from attn_cli.config import registry, schema

SCHEME = "attn"


def register() -> None:
    """Tells Hydra about this source; calling it again changes nothing."""
    Plugins.instance().register(PluginSource)
    Plugins.instance().register(PluginSearchPath)


class PluginSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("installed packages", f"{SCHEME}://plugins")


class PluginSource(ConfigSource):
    """Paths are "model/NAME" and "data/NAME", with or without ".yaml"."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in ("model", "data")

    def is_config(self, config_path: str) -> bool:
        kind, _, name = config_path.strip("/").removesuffix(".yaml").partition("/")
        return kind in ("model", "data") and name in registry.plugin_names(kind)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        place = config_path.strip("/")
        if place == "":
            return [] if results_filter == ObjectType.CONFIG else ["data", "model"]
        if results_filter == ObjectType.GROUP or not self.is_group(place):
            return []
        return registry.plugin_names(place)

    def load_config(self, config_path: str) -> ConfigResult:
        if not self.is_config(config_path):
            raise ConfigLoadError(f"{config_path} not found")
        kind, _, name = config_path.strip("/").removesuffix(".yaml").partition("/")
        values = {**schema.to_dict(registry.config_class(kind, name)()), "name": name}
        return ConfigResult(
            provider=self.provider,
            path=f"{SCHEME}://{kind}/{name}",
            config=OmegaConf.create(values),
            header={"package": None},
        )
