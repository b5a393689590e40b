"""What commands that evaluate write into a run folder, and what it is called: other settings, another file."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from attn_cli.commands.data import config_of
from attn_cli.config import schema
from attn_cli.config.command_sections import Combine, Evaluate
from attn_cli.errors import Refused
from attn_cli.files import write_atomically
from attn_cli.pictures import tables


def file_name(what: str, config: Evaluate | Combine, *others: str) -> str:
    """evaluation-test-mean.json, combined-test-flip-mean-OTHER.json; what differs from the defaults is added.

    Settings that change no number (batch_size, device, threads) have no part in it.
    """
    parts = [what, config.data.name if config.data else "", config.split, getattr(config, "rule", "")]
    parts.append(f"mc{config.mc_samples}" if config.mc_samples else "mean")
    if config.focus:
        parts.append(f"focus{config.focus_size}" if changes(config, "focus_size") else "focus")
    if getattr(config, "ten_crops", False):
        parts.append("ten-crops")
    parts += others
    parts += changes(config, "checkpoint", "seed", "repeats", *(["average"] if config.mc_samples else []))
    if config.data is not None and not _as_shipped(config.data):
        settings = json.dumps(schema.to_dict(config.data), sort_keys=True)
        parts.append(hashlib.sha256(settings.encode()).hexdigest()[:8])
    return joined(*parts) + ".json"


def joined(*parts: str) -> str:
    """One name of these parts, of those that are not empty."""
    return "-".join(part for part in parts if part)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write and show what was measured; show it even where it cannot be written, as on a full disk."""
    try:
        write_atomically(path, json.dumps(result, indent=2) + "\n")
    finally:
        tables.show(tables.result_table(result))
    print(f"Written to {path}")


def changes(config: Any, *keys: str) -> list[str]:
    """Those of these settings that differ from their defaults: a word as it is, a number after its key."""
    default = {field.name: field.default for field in fields(config) if field.name in keys}
    changed = {key: value for key in default if (value := getattr(config, key)) != default[key]}
    return [value if isinstance(value, str) else f"{key}{value}" for key, value in changed.items()]


def _as_shipped(data: Any) -> bool:
    """Whether a data section is as conf/data has it; your own images, whose path must be given, never are."""
    with suppress(Refused):
        return bool(config_of(data.name) == data)
    return False
