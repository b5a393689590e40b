"""`attn runs`: the runs in a folder, as a table."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path
from typing import Any

from attn_cli.config.arguments import Parser
from attn_cli.errors import Refused
from attn_cli.files import kind_of
from attn_cli.pictures.tables import runs_table, show
from attn_cli.runs import Run, all_runs


def main(argv: list[str]) -> int:
    """Print the table; `argv` is what follows `attn runs`. Returns the exit code."""
    parser = Parser("attn runs", description="List runs, oldest first.", allow_abbrev=False)
    parser.add_argument("--outputs", metavar="DIR", help="folder of run folders (default: outputs)")
    outputs = parser.parse_args(argv).outputs
    if outputs is not None and kind_of(Path(outputs)) != "folder":
        raise Refused(f"There is no folder {outputs}: --outputs must name a folder of run folders.")
    runs = all_runs(outputs or "outputs")
    if not runs:
        print(f"No runs in {outputs or 'outputs'} yet: start one with `attn train`.")
        return 0
    show(runs_table(map(row, runs)))
    return 0


def row(run: Run) -> dict[str, Any]:
    """One run as a row of `runs_table`; what a damaged run folder does not tell is None."""
    config: dict[str, Any] = {}
    result: dict[str, Any] = {}
    status: dict[str, Any] = {"status": "damaged"}
    with contextlib.suppress(Refused):
        status = run.status()
    try:
        config, result = run.raw_config(), run.result() or {}
    except Refused:
        status = {"status": "damaged"}
    if not all(isinstance(result.get(key), int | float | None) for key in ("val_error", "test_error", "seconds")):
        result, status = {}, {"status": "damaged"}
    seconds = result.get("seconds")
    return {
        "run": run.name,
        "data": _value(config, "data", "name"),
        "model": _value(config, "model", "name"),
        # those of the model: a network that sees the whole image has one, a game one a frame
        "glimpses": result.get("glimpses", _value(config, "glimpses", "count")),
        "seed": config.get("seed"),
        "learning_rate": _value(config, "optimizer", "lr"),
        "val_error": result.get("val_error"),
        "test_error": result.get("test_error"),
        "seconds": _elapsed(status) if seconds is None else seconds,
        "status": status.get("status"),
    }


def _value(config: dict[str, Any], group: str, key: str) -> Any:
    section = config.get(group)
    return section.get(key) if isinstance(section, dict) else None


def _elapsed(status: dict[str, Any]) -> float | None:
    """Seconds between a status's two times, until now for a run that is still running."""
    try:
        running = status.get("status") == "running"
        end = datetime.now().astimezone() if running else datetime.fromisoformat(status["ended"])
        return (end - datetime.fromisoformat(status["started"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None
