"""Tab completion, as far as it needs no shell; tests/cli/test_dispatch.py asks a real bash."""

from __future__ import annotations

from pathlib import Path

import pytest

from attn_cli.commands import entry
from attn_cli.config import completion
from attn_cli.errors import Refused

SUBCOMMANDS = {"train": (), "eval": (), "data": ("list", "prepare", "info")}
CONFIGS = {name: command.config for name, command in entry.HYDRA_COMMANDS.items()}


def complete(line: str) -> completion.Answer:
    return completion.complete(line, SUBCOMMANDS, CONFIGS, Path(entry.conf_folder()))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("attn ", ("train", "eval", "data")),
        ("attn tr", ("train",)),
        ("./bin/attn e", ("eval",)),
        ("attn data p", ("prepare",)),
        ("attn eval --mc", ("--mc-samples",)),
        ("attn train experiment=ram/table1a_r", ("experiment=ram/table1a_random",)),
        ("attn nonsense x", ()),
        ("", ("train", "eval", "data")),
    ],
)
def test_answered_here(line: str, words: tuple[str, ...]) -> None:
    assert complete(line) == completion.Answer(words=words)


@pytest.mark.parametrize(
    ("line", "command", "hydra_line"),
    [
        ("attn train mod", "train", "attn mod"),
        ("attn train ", "train", "attn "),
        ("attn train -m glimpses=2,4 model.", "train", "attn --multirun glimpses.count=2,4 model."),
        ("attn eval --mc-samples 3 ru", "eval", "attn mc_samples=3 ru"),
        ("attn train --wrong 3 mod", "train", "attn mod"),
    ],
)
def test_handed_to_hydra_without_the_sub_command(line: str, command: str, hydra_line: str) -> None:
    assert complete(line) == completion.Answer(command=command, line=hydra_line)


def test_requests() -> None:
    assert completion.shell_request(["train", "-sc", "install=bash"]) == ("install", "bash")
    assert completion.shell_request(["--shell-completion", "query=fish"]) == ("query", "fish")
    assert completion.shell_request(["train", "install=bash"]) is None
    for words in (["-sc"], ["-sc", "install=csh"]):
        with pytest.raises(Refused, match="attn -sc"):
            completion.shell_request(words)
