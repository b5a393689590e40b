"""Tab completion of `attn <command> …` on top of Hydra's, which knows only programs without sub-commands.

The shell calls `attn -sc query=SHELL` with the line so far in COMP_LINE. Sub-commands and flags are completed here;
for keys and groups the sub-command is taken out of the line and Hydra is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from attn_cli.config import arguments
from attn_cli.config.hydra_errors import choices
from attn_cli.errors import Refused

SHELLS = ("bash", "fish", "zsh")


@dataclass(frozen=True)
class Answer:
    """Either `words` to print, or `line` for Hydra to complete for `command`."""

    words: tuple[str, ...] = ()
    command: str = ""
    line: str = ""


def shell_request(words: list[str]) -> tuple[str, str] | None:
    """("query", "bash") for `-sc query=bash`, also after the words of a sub-command; None for anything else."""
    if not {"-sc", "--shell-completion"} & set(words):
        return None
    for word in words:
        action, _, shell = word.partition("=")
        if action in ("install", "uninstall", "query"):
            if shell not in SHELLS:
                raise Refused(f"attn -sc {action}={shell}: the shells are {', '.join(SHELLS)}.")
            return action, shell
    raise Refused("attn -sc needs install=SHELL or uninstall=SHELL, such as install=bash.")


def complete(line: str, subcommands: Mapping[str, Iterable[str]], configs: Mapping[str, type], conf: Path) -> Answer:
    """What to offer for the command line `line`.

    `subcommands` are all commands with the words that may follow those which are not Hydra's; `configs` the dataclasses
    of those which are; `conf` the folder of configs.
    """
    words = line.split()
    current = "" if not words or line[-1:].isspace() else words[-1]
    before = words[1:] if not current else words[1:-1]  # words[0] is the program
    if not before:
        return _starting(current, subcommands)
    command, *before = before
    if command not in configs:
        return _starting(current, subcommands.get(command, ()))
    if current.startswith("-"):
        return _starting(current, arguments.all_flags(configs[command]))
    if current.startswith("experiment="):
        return _starting(current, [f"experiment={name}" for name in choices(conf, "experiment")])
    try:
        given = arguments.parse(before, configs[command]).words()
    except Refused:  # an unfinished or mistaken word earlier in the line must not stop completion of this one
        given = []
    return Answer(command=command, line=" ".join(["attn", *given, current]))


def _starting(current: str, words: Iterable[str]) -> Answer:
    return Answer(words=tuple(word for word in words if word.startswith(current)))
