"""Bounded dataclass fields, and a builder that turns plain values into a frozen dataclass or refuses in one sentence.

A field is declared with `bounded`, `choice` or a plain default; `build` checks names, types and bounds. A person's
own package declares its `Config` with the same helpers.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from attn_cli.errors import Refused, nearest

T = TypeVar("T")

REQUIRED = "???"  # the value of a key that a person must give; OmegaConf's own mark, so that YAML may carry it


def bounded(default: Any, low: float, high: float, *, above: bool = False) -> Any:
    """A number in [low, high], or in (low, high] with `above`. For a tuple the bounds hold for each item."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "above": above})


def choice(default: str | None, *names: str) -> Any:
    """One of a few names (or each item of a tuple one of them)."""
    return dataclasses.field(default=default, metadata={"choices": names})


def build(cls: type[T], values: Any, where: str = "", *, given: Mapping[str, Any] | None = None) -> T:
    """An instance of the dataclass `cls` from plain `values`; missing keys take the dataclass's defaults.

    `where` is the full key of the section ("model", or "" at the top), for the messages. `given` are fields that are
    already built. Raises Refused for an unknown key, a wrong type or a value out of range.
    """
    if not isinstance(values, Mapping):
        raise Refused(f"{where or 'The configuration'} must be a group of keys, not {values!r}.")
    names = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise unknown_key(full_key(where, str(key)), (full_key(where, n) for n in names))
    hints = typing.get_type_hints(cls)
    built: dict[str, Any] = dict(given or {})
    for name, field in names.items():
        if name in values and name not in built:
            built[name] = checked(values[name], hints[name], field.metadata, full_key(where, name))
        elif name not in built and field.default == REQUIRED:
            raise required_key(full_key(where, name))
    return cls(**built)


def full_key(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def unknown_key(key: str, valid: Iterable[str]) -> Refused:
    """The refusal of a key that does not exist; names near the key, or near its last part in other sections."""
    return Refused(f"{key} is not a known key.{nearest_key(key, valid)}")


def nearest_key(key: str, valid: Iterable[str]) -> str:
    """Like `errors.nearest` for full keys: 'sigma' finds 'model.sigma', 'model.sigmaa' only keys of the model."""
    known = [k for k in valid if k != key]
    section, _, last = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == section] if section else []
    for pool in (siblings, known):
        by_last: dict[str, list[str]] = {}
        for k in pool:
            by_last.setdefault(k.rpartition(".")[2], []).append(k)
        close = [k for part in difflib.get_close_matches(last, by_last, n=3, cutoff=0.6) for k in by_last[part]]
        if close:
            return " Did you mean " + " or ".join(repr(k) for k in close[:3]) + "?"
    return nearest(last, {k.rpartition(".")[2] for k in siblings} or {k.partition(".")[0] for k in known})


def required_key(key: str) -> Refused:
    return Refused(f"{key} must be given: write {key}=VALUE.")


def checked(value: Any, hint: Any, metadata: Mapping[str, Any], key: str) -> Any:
    """`value` as the type `hint`, within the bounds of `metadata`; raises Refused naming `key`."""
    if value == REQUIRED and isinstance(value, str):
        raise required_key(key)
    allowed = _alternatives(hint)
    if value is None and type(None) in allowed:
        return None
    for kind in allowed:
        if dataclasses.is_dataclass(kind):
            return build(typing.cast(type, kind), value, key)
        if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple, str, int)):
            items = value if isinstance(value, (list, tuple)) else [value]  # one item needs no brackets
            return tuple(checked(v, typing.get_args(kind)[0], metadata, f"{key}[{i}]") for i, v in enumerate(items))
        if kind in (str, int, float, bool):
            found, converted = _scalar(value, kind, metadata)
            if found:
                _check_range(converted, metadata, key)
                return converted
    if "choices" in metadata:
        raise _not_a_choice(value, metadata, key)
    wanted = " or ".join(_words(kind) for kind in allowed)
    numeral = str in allowed and isinstance(value, (int, float))  # quotes for Hydra within quotes for the shell
    hint = f": write {key}='\"{value}\"'" if numeral else ""
    raise Refused(f"{key} must be {wanted}, not {value!r}{hint}.")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _scalar(value: Any, kind: type, metadata: Mapping[str, Any]) -> tuple[bool, Any]:
    """(it fits, the value as that type)."""
    if kind is str and "choices" in metadata:
        # YAML 1.1 reads `on` as true and `32` as a number; both are names here.
        if isinstance(value, bool):
            value = "on" if value else "off"
        return str(value) in metadata["choices"], str(value)
    if kind is bool or kind is str:
        return isinstance(value, kind), value
    if isinstance(value, bool):
        return False, value
    if kind is float and isinstance(value, (int, float)):
        try:
            return True, float(value)
        except OverflowError:
            return True, math.inf  # which is refused
    if kind is float:
        return False, value
    return isinstance(value, int), value


def _check_range(value: Any, metadata: Mapping[str, Any], key: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused(f"{key} must be a finite number, not {value!r}.")
    if "low" not in metadata or isinstance(value, (bool, str)):
        return
    low, high, above = metadata["low"], metadata["high"], metadata["above"]
    if not (low < value <= high if above else low <= value <= high):
        lower = f"above {low}" if above else f"at least {low}"
        raise Refused(f"{key} must be {lower} and at most {high}, not {value!r}.")


def _not_a_choice(value: Any, metadata: Mapping[str, Any], key: str) -> Refused:
    return Refused(f"{key} has no choice {value!r}.{nearest(str(value), metadata['choices'])}")


def _words(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "a list"
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return plain.get(kind, str(kind))
