"""Hydra's and OmegaConf's complaints, each as one sentence that says what to write instead."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from attn_cli.config import schema
from attn_cli.config.fields import nearest_key
from attn_cli.errors import Refused, install, nearest

# What Hydra raises for a configuration that does not compose; some of its checks raise plain ValueErrors.
ERRORS = (HydraException, OmegaConfBaseException, ValueError)

# Choices that installed packages bring, and the extra that installs them.
EXTRAS = {f"hydra/launcher/{name}": "sweeps" for name in ("joblib", "submitit_local", "submitit_slurm")}
EXTRAS["hydra/launcher/ray"] = "ray"


def refusal(error: Exception, config: type, folder: Path, overrides: Sequence[str]) -> Refused:
    """`error` in one sentence. `config` is the command's dataclass, `folder` the conf folder in use."""
    for cause in _causes(error):
        if isinstance(cause, Refused):  # from an installed package's config
            return cause
    message = str(error)
    if isinstance(error, MissingConfigException):
        return _missing_config(error, folder)
    if isinstance(error, OverrideParseException):
        if "=~" in error.override:
            return Refused(f"{error.override}: ~ stands for nothing here; write the folder in full, or $HOME.")
        return Refused(
            f"{error.override!r} is not understood; write KEY=VALUE, and quote a value with commas or brackets, "
            "such as \"run='a, b'\"."
        )
    if match := re.match(r"Ambiguous value for argument '(.*?)=(.*?)'\n", message, re.DOTALL):
        key, value = match.groups()
        as_list = f", or write {key}=[{value}] for a list" if key in schema.list_keys(config) else ""
        return Refused(f"{key}={value} names several values: add -m to run each{as_list}.")
    if match := re.match(r"Sweep parameters '(.*)' requires --multirun", message):
        return Refused(f"{match[1]} names several values: add -m to run each.")
    if match := re.search(r"Config group override must be a string or a list\. Got (\w+)", message):
        return _group_takes_a_name(overrides, config, folder)
    if match := re.match(r"Could not (?:override|delete(?: from config)?)\W+'?([\w./@-]+)", message):
        return _unknown_key(match[1], config, folder)
    if match := re.match(r"Could not append to config\. An item is already at '(.*?)'", message):
        return Refused(f"{match[1]} is a key already; write it without the plus sign.")
    if match := re.match(r"You must specify '(.*?)'", message):
        return Refused(f"{match[1]} must be chosen: write {match[1]}=NAME.{nearest('', choices(folder, match[1]))}")
    if match := re.search(r"Additional config directory '(.*?)' not found", message):
        return Refused(f"--config-dir: there is no folder {match[1]}.")
    if match := re.match(r"Error merging override (.*)", message):
        return Refused(f"{match[1]} does not fit the configuration: {_one_line(str(error.__cause__ or error))}.")
    return Refused(f"The configuration does not compose: {_one_line(_deepest(error))}.")


def choices(folder: Path, group: str) -> list[str]:
    """Names in a group of the conf folder, those in subfolders with a slash."""
    root = folder / group
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def groups(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "hydra")


def valid_keys(config: type, folder: Path) -> list[str]:
    """Full keys of a command's configuration, whichever data set is chosen, and its groups."""
    known = schema.keys(config)
    if config in (schema.Config, schema.Cost):
        known += [*schema.keys(schema.Folder, "data"), *groups(folder)]
    return list(dict.fromkeys(known))


def _missing_config(error: MissingConfigException, folder: Path) -> Refused:
    path = error.missing_cfg_file or ""
    top = path.partition("/")[0]
    group, _, name = path.rpartition("/") if top != "experiment" else path.partition("/")
    if not group:
        return Refused(f"There is no config {path!r} in {folder}.")
    if path in EXTRAS:
        return Refused(f"{group}={name} needs a package that is not installed: {install(EXTRAS[path])}.")
    offered = {*(error.options or ()), *choices(folder, group)}
    return Refused(f"{group}={name} is not available.{nearest(name, offered)}")


def _group_takes_a_name(overrides: Sequence[str], config: type, folder: Path) -> Refused:
    known = groups(folder)
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in known and _is_of_training(key, config):
            return _unknown_key(key, config, folder)
        for item in value.split(",") if key in known else ():
            if item.strip() in ("null", "true", "false") or not re.match(r"\s*[A-Za-z_]", item):
                return Refused(f"{key}={value}: {key} takes a name.{nearest(item, choices(folder, key))}")
    return Refused("A group takes a name, not a number.")


def _unknown_key(key: str, config: type, folder: Path) -> Refused:
    if key.startswith("hydra."):
        return _unknown_hydra_key(key, folder)
    known = valid_keys(config, folder)
    section = key.partition("/")[0]
    if _is_of_training(key.partition(".")[0], config):
        return Refused(f"{key} is a key of `attn train`; a run is taken as it was trained.")
    if "/" in key and section in groups(folder):
        return Refused(f"{key} is not a group; write {section}={key.partition('/')[2]}/NAME.")
    models = typing.get_args(typing.get_type_hints(schema.Config)["model"])
    if owners := [model().name for model in models if key in schema.keys(model, "model")]:
        return Refused(f"{key} is not a key of the model chosen here: it is for model={' or '.join(owners)}.")
    if key in known:
        return Refused(f"{key} is not a key of the {key.partition('.')[0]} chosen here.")
    return Refused(f"{key} is not a known key.{nearest_key(key, known)}")


def _is_of_training(key: str, config: type) -> bool:
    """Whether `attn train` alone has the key, and the command reads runs."""
    own, training = ({field.name for field in dataclasses.fields(of)} for of in (config, schema.Config))
    return "run" in own and key in training - own


def _unknown_hydra_key(key: str, folder: Path) -> Refused:
    """A key of a sweeper or launcher that was not chosen, or of none."""
    store = ConfigStore.instance()
    users: dict[str, list[str]] = {f"hydra.{name}": [] for name in map(str, store.load("hydra/config.yaml").node)}
    for group in ("hydra/sweeper", "hydra/launcher"):
        offered = {path.stem: yaml.safe_load(path.read_text()) for path in (folder / group).glob("*.yaml")}
        own = [name for name in store.list(group) if not name.startswith("attn_")]  # what the files build upon
        offered |= {name.removesuffix(".yaml"): store.load(f"{group}/{name}").node for name in own}
        for choice, node in offered.items():
            for name in node:
                users.setdefault(f"{group.replace('/', '.')}.{name}", []).append(f"{group}={choice}")
    if choices := users.get(key):
        return Refused(f"{key} is not a key of what is chosen here: it is for {' or '.join(sorted(choices))}.")
    for user, choices in users.items():
        if choices and key.startswith(f"{user}."):  # such as hydra.launcher.ray.remote.num_cpus
            return Refused(f"{key} is not set in {' or '.join(sorted(choices))}; write +{key}=VALUE to add it.")
    return Refused(f"{key} is not a known key.{nearest_key(key, users)}")


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in found:
        found.append(link)
        link = link.__cause__ or link.__context__
    return found


def _deepest(error: Exception) -> str:
    """The text of the first error in the chain that has one."""
    return next((str(e) for e in _causes(error) if str(e)), type(error).__name__)


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "no reason given").rstrip(".")
