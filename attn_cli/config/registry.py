"""Names of models and data sets, and what they stand for: a configuration chooses by name and never brings code.

Built-in names come first; an installed package adds names through the entry points `attn.models` and `attn.data`:
the entry point is an object (a class or function) with a dataclass `Config` that has a default for every field,
among them `name`. Nothing is imported before it is chosen.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from attn_cli.errors import Refused, nearest

SCENES = (
    "mnist",
    "translated_mnist",
    "cluttered_mnist",
    "cluttered_mnist_100",
    "cluttered_single",
    "digits",
    "translated_digits",
    "cluttered_digits",
    "cluttered_digits_100",
)
SVHN = ("svhn", "svhn_110", "svhn_64", "svhn_128")
TRACKS = ("moving_mnist_track", "moving_digits_track")
PAIRS = ("mnist_pairs", "digits_pairs", "mnist_sum", "digits_sum")
SCALED = ("mnist_scales", "digits_scales")
SEQUENCES = ("mnist_sequence", "mnist_sequence_110", "digits_sequence", "digits_sequence_110")
HOUSE_NUMBERS = ("house_numbers", "house_numbers_110")
CONVNETS = ("convnet_64_64_64_512", "convnet_10", "convnet_10_small", "convnet_5", "convnet_bn", "convnet_1", "fc")
MODELS: dict[str, str] = {
    **dict.fromkeys(("ram", "ram_lstm"), "attn_cli.models.ram:RAM"),
    "ram_catch": "attn_cli.models.ram_catch:RamCatch",
    **dict.fromkeys(("dram", "dram_small", "dram_mnist"), "attn_cli.models.dram:DRAM"),
    "soft_ram": "attn_cli.models.soft_ram:SoftRAM",
    "rsam": "attn_cli.models.rsam:RSAM",
    "draw_reader": "attn_cli.models.draw_reader:DrawReader",
    "stn": "attn_cli.models.stn:STN",
    **dict.fromkeys(CONVNETS, "attn_cli.models.convnets:ConvNet"),
    "timm": "attn_cli.models.timm_net:TimmNet",
}
_DIGITS = (*SCENES, *TRACKS, *PAIRS, *SCALED, *SEQUENCES, *HOUSE_NUMBERS)
DATA: dict[str, str] = {
    name: "attn_cli.data.batches:open_data"
    for name in (*_DIGITS, *SVHN, "cifar10", "cub200", "catch", "folder", "arrays")
}

_BUILT_IN = {"model": MODELS, "data": DATA}
_GROUPS = {"model": "attn.models", "data": "attn.data"}


def names(kind: str) -> list[str]:
    """All names of a kind ("model" or "data"), built-in first."""
    return [*_BUILT_IN[kind], *(n for n in plugin_names(kind) if n not in _BUILT_IN[kind])]


def load(kind: str, name: str) -> Any:
    """The object registered under `name`; raises Refused if there is none or its package cannot be imported."""
    if name in _BUILT_IN[kind]:
        module, _, attribute = _BUILT_IN[kind][name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    found = _plugins(kind).get(name)
    if found is None:
        raise Refused(f"{kind}={name} is not available.{nearest(name, names(kind))}")
    packages = sorted({e.dist.name if e.dist else e.value for e in found})
    if len(packages) > 1:
        raise Refused(f"{kind}={name} is offered by several packages: {', '.join(packages)}; uninstall all but one.")
    try:
        return found[0].load()
    except Exception as error:  # whatever a stranger's module raises while it is imported
        raise Refused(
            f"{kind}={name} of the installed package {packages[0]} cannot be loaded: {type(error).__name__}: {error}."
        ) from error


def config_class(kind: str, name: str) -> type:
    """The `Config` dataclass of an installed package's model or data set; raises Refused if it is not usable."""
    plugin = load(kind, name)
    config = getattr(plugin, "Config", None)
    fields = {f.name: f for f in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else {}
    no_default = [
        f.name for f in fields.values() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if not isinstance(config, type) or "name" not in fields or no_default:
        raise Refused(
            f"{kind}={name} needs a dataclass {getattr(plugin, '__name__', name)}.Config "
            "with a default for every field, among them name."
        )
    return config


def plugin_names(kind: str) -> list[str]:
    """Names that installed packages add, without importing them."""
    return sorted(_plugins(kind))


@functools.cache
def _plugins(kind: str) -> dict[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=_GROUPS[kind]):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found
