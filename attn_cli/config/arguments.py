"""What a person types after `attn train`, as what Hydra understands. Pure functions on lists of words.

Hydra takes flags first and `key=value` last, knows no `--mc-samples 10`, and refuses a bare number as the choice of
a group (`glimpses=6`). Everything else is left to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import typing
from dataclasses import dataclass

from attn_cli.errors import Refused, nearest

# Hydra's own flags and whether a value follows. Left out: --experimental-rerun, which
# unpickles a file, and --run, which is what happens anyway and would hide the key `run`.
FLAGS = {
    "--help": False,
    "--hydra-help": False,
    "--version": False,
    "--cfg": True,
    "--resolve": False,
    "--package": True,
    "--multirun": False,
    "--shell-completion": False,
    "--config-dir": True,
    "--info": False,  # its value is optional
}
SHORT = {
    "-h": "--help",
    "-c": "--cfg",
    "-p": "--package",
    "-m": "--multirun",
    "-sc": "--shell-completion",
    "-cd": "--config-dir",
    "-i": "--info",
}
VALUES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
EXCLUSIVE = ("--help", "--hydra-help", "--cfg", "--info", "--multirun", "--shell-completion")
NUMBERED_GROUPS = ("glimpses", "scales")

_NUMBERED = re.compile(rf"\+{{0,2}}({'|'.join(NUMBERED_GROUPS)})=(.*)", re.DOTALL)
_NOT_TEXT = re.compile(r"[+-]?(\.?\d[\d._]*(e[+-]?[\d_]+)?|inf|nan)|true|false", re.IGNORECASE)
_SWEEP_WORDS = re.compile(
    r"\b(range|choice|interval|tag|log|int|float|shuffle|sort|start|stop|end|step|reverse|true|false)\b"
)


class Parser(argparse.ArgumentParser):
    """Of the commands that Hydra does not compose; refuses in one sentence."""

    def error(self, message: str) -> typing.NoReturn:
        raise Refused(f"{message[:1].upper()}{message[1:]}; see `{self.prog} --help`.")


@dataclass(frozen=True)
class Arguments:
    flags: tuple[str, ...]  # long names, each followed by its value if it takes one
    overrides: tuple[str, ...]  # key=value

    @property
    def multirun(self) -> bool:
        return "--multirun" in self.flags

    def words(self) -> list[str]:
        return [*self.flags, *self.overrides]


def parse(words: list[str], config: type) -> Arguments:
    """Sorts `words` into flags and overrides; `config` is the dataclass whose keys serve as long flags.

    Raises Refused for an unknown flag, a flag without its value, or a word that is neither flag nor key=value.
    """
    multirun = "-m" in words or "--multirun" in words
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(_override(word, config))
            continue
        name, equals, value = word.partition("=")
        name = SHORT.get(name, name)
        if name in FLAGS:
            flags += _hydra_flag(name, value if equals else None, rest)
        else:
            overrides.append(_flag_as_override(name, value if equals else None, rest, config, multirun))
    chosen = [f for f in dict.fromkeys(flags) if f in EXCLUSIVE]
    if len(chosen) > 1:
        raise Refused(f"{' and '.join(chosen)} do not go together.")
    return Arguments(tuple(flags), tuple(overrides))


def number_as_value(word: str) -> str:
    """`glimpses=6`, `+scales=1,2`, `glimpses=range(2,8)` as `glimpses.count=…`; any other word as it is."""
    match = _NUMBERED.fullmatch(word)
    if match:
        group, value = match.groups()
        numbers = _SWEEP_WORDS.sub("", value)
        if re.fullmatch(r"[\d\s,()=.+-]*", numbers) and any(c.isdigit() for c in numbers):
            return f"{group}.count={value}"
    return word


def options(config: type) -> dict[str, str]:
    """Long flag → key, for every key of `config` without a dot: {"--mc-samples": "mc_samples", …}."""
    hints = typing.get_type_hints(config)
    fields = dataclasses.fields(config)
    return {"--" + f.name.replace("_", "-"): f.name for f in fields if not _has_section(hints[f.name])}


def all_flags(config: type) -> list[str]:
    return sorted([*FLAGS, *options(config)])


def _override(word: str, config: type) -> str:
    if "=" not in word and not word.startswith("~"):
        raise Refused(f"{word!r} is neither a flag nor KEY=VALUE.")
    hints = typing.get_type_hints(config)
    return number_as_value(word) if all(g in hints for g in NUMBERED_GROUPS) else word


def _hydra_flag(name: str, value: str | None, rest: list[str]) -> list[str]:
    choices = VALUES.get(name)
    if name == "--info" and value is None:
        return [name, rest.pop(0)] if rest and rest[0] in VALUES["--info"] else [name]
    if not FLAGS[name] and name != "--info":
        if value is not None:
            raise Refused(f"{name} takes no value.")
        return [name]
    if value is None:
        if not rest:
            raise Refused(f"{name} needs a value{': ' + ', '.join(choices) if choices else ''}.")
        value = rest.pop(0)
    if choices and value not in choices:
        raise Refused(f"{name} has no choice {value!r}.{nearest(value, choices)}")
    return [name, value]


def _flag_as_override(name: str, value: str | None, rest: list[str], config: type, multirun: bool) -> str:
    key = options(config).get(name)
    if key is None:
        raise Refused(f"There is no flag {name}.{_instead_of(name, config)}")
    hint = typing.get_type_hints(config)[key]
    if value is None and hint is bool:
        value = "true"
    elif value is None:
        if not rest or rest[0] in FLAGS or rest[0] in SHORT or rest[0] in options(config):
            raise Refused(f"{name} needs a value.")
        value = rest.pop(0)
    text = str in (typing.get_args(hint) or (hint,))
    return f"{key}={value if multirun or not text else _quoted(value)}"


def _instead_of(name: str, config: type) -> str:
    key = name.lstrip("-").replace("-", "_")
    hints = typing.get_type_hints(config)
    if key in hints:
        return f" Write {key}=NAME."
    owners = [s for s, hint in hints.items() if key in _section_keys(hint)]
    if owners:
        return " Write " + " or ".join(f"{owner}.{key}=VALUE" for owner in owners) + "."
    return nearest(name, all_flags(config))


def pasted(key: str, path: object) -> str:
    """`KEY=PATH` as it can be pasted into a shell."""
    return shlex.quote(f"{key}={_quoted(str(path))}")


def _quoted(value: str) -> str:
    """A text that Hydra's grammar would take apart (commas, brackets, quotes, spaces) or for a number, quoted."""
    if value in ("null", "") or (re.fullmatch(r"[\w./:@%-]+", value) and not _NOT_TEXT.fullmatch(value)):
        return value
    return '"' + re.sub(r'(\\*)("|\Z)', r"\1\1\2", value).replace('"', '\\"') + '"'


def _has_section(hint: typing.Any) -> bool:
    return any(dataclasses.is_dataclass(kind) for kind in (typing.get_args(hint) or (hint,)))


def _section_keys(hint: typing.Any) -> set[str]:
    kinds = typing.get_args(hint) or (hint,)
    return {f.name for kind in kinds if dataclasses.is_dataclass(kind) for f in dataclasses.fields(kind)}
