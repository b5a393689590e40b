"""`attn <command> …`: picks the command and hands it the rest. Imports neither torch nor, for --help, Hydra.

Exit codes: 0 done · 1 refused, or a job of a sweep failed · 130 interrupted · 141 broken pipe · 143 SIGTERM.
Set ATTN_TRACEBACK=1 to see where a refusal came from.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from attn_cli import __version__
from attn_cli.errors import Refused, Terminated, nearest
from attn_cli.papers.index import TABLES

# name → (what it does, whether Hydra composes its configuration, words that may follow it)
COMMANDS: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    "train": ("train a model, or a sweep of models with -m", True, ()),
    "eval": ("error of a finished run", True, ()),
    "mc-average": ("error against the number of sampled paths", True, ()),
    "combine": ("error of a forward and a backward reader together", True, ()),
    "attend": ("a data set of what a run looked at", True, ()),
    "show": ("pictures and animations of where a run looked", True, ()),
    "data": ("list, prepare and inspect data sets", False, ("list", "prepare", "info")),
    "runs": ("list runs: model, data, error, time, status", False, ()),
    "reproduce": ("the papers' tables beside ours; runs what is missing", False, tuple(TABLES)),
    "cost": ("parameters and multiply-adds of a model", True, ()),
    "bench": ("speed of the training step", True, ()),
}

HELP = """attn: train, evaluate and look into visual attention models.

usage: attn COMMAND [key=value …] [flags]

{commands}

  attn COMMAND --help    keys and examples of a command
  attn -sc install=bash  tab completion: eval "$(attn -sc install=bash)"; also fish, zsh
  attn --version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    prog = f"attn {words[0]}" if words and words[0] in COMMANDS else "attn"
    try:
        with orderly_sigterm():
            try:
                return dispatch(words)
            finally:
                sys.stdout.flush()
    except Refused as refused:
        if os.environ.get("ATTN_TRACEBACK") == "1":
            raise
        print(f"{prog}: {refused}", file=sys.stderr)
        return refused.exit_code
    except Terminated:
        print(f"{prog}: terminated.", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"{prog}: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `attn train --cfg job | head` has read enough
        _drop_output()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        # Files of runs and data refuse by themselves; what is left is `attn train > log` on a full disk.
        print(f"{prog}: The output cannot be written ({error.strerror}): make room where it goes.", file=sys.stderr)
        _drop_output()
        return 1


def _drop_output() -> None:
    """Else Python would write what is left when it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run() -> int:
    """`main` as the process's own command, whatever its output is: a closed one goes nowhere, and characters that it
    cannot write become question marks. A signal after its end, while Python shuts down, prints no traceback.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 – until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


@contextmanager
def orderly_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated within."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python allows no handlers
        yield
        return

    def on_signal(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if words[0] == "--version":
        print(f"attn {__version__}")
        return 0
    if "-sc" in words or "--shell-completion" in words:
        return _shell_completion(words)
    name, *rest = words
    if name not in COMMANDS:
        raise Refused(f"{name} is not a command.{nearest(name, COMMANDS)}")
    if not COMMANDS[name][1]:
        return int(importlib.import_module(f"attn_cli.commands.{name}").main(rest))
    from attn_cli.commands import entry

    return entry.hydra_command(entry.HYDRA_COMMANDS[name], rest)


def help_text() -> str:
    return HELP.format(commands="\n".join(f"  {name:<12} {about}" for name, (about, _, _) in COMMANDS.items()))


def _shell_completion(words: list[str]) -> int:
    """`attn -sc install=bash`, with or without a sub-command before it, and the shell's own `attn -sc query=bash`."""
    from attn_cli.commands import entry
    from attn_cli.config import completion

    request = completion.shell_request(words)
    assert request is not None  # dispatch saw the flag
    action, shell = request
    command, line = "train", ""
    if action == "query":
        configs = {name: command.config for name, command in entry.HYDRA_COMMANDS.items()}
        subcommands = {name: following for name, (_, _, following) in COMMANDS.items()}
        answer = completion.complete(os.environ.get("COMP_LINE", ""), subcommands, configs, entry.conf_folder())
        if not answer.command:
            print("\n".join(answer.words))
            return 0
        command, line = answer.command, answer.line
        os.environ.update(COMP_LINE=line, COMP_POINT=str(len(line)))
    hydra_command = entry.HYDRA_COMMANDS[command]
    task = entry.Task(hydra_command, ())  # never called: Hydra only completes
    entry.compose(hydra_command, ["-sc", f"{action}={shell}"], (), task, program="attn")
    return 0
