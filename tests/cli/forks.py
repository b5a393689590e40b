"""`python forks.py`: command lines of `attn`, each in a process forked from this one, which has paid for the imports.

A request is a line of JSON on stdin, its answer one on stdout. To start: the words, the folder, the environment, and
the files for stdout and stderr; the answer is the process's number. To ask how it ended: `pid`, and whether to `wait`;
the answer is the exit code (of a signal, negative) and the processor time in seconds, or null while it runs.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys

import attn_cli.commands


def run(words: list[str], folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    """`python -m attn_cli` with these words, as this process."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in enumerate(outputs, 1):
        os.dup2(os.open(name, os.O_WRONLY), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, wherever the tests run
    sys.argv = ["attn", *words]
    runpy.run_module("attn_cli", run_name="__main__", alter_sys=True)


for module in pkgutil.iter_modules(attn_cli.commands.__path__):
    importlib.import_module(f"attn_cli.commands.{module.name}")
gc.freeze()
for line in sys.stdin:
    request = json.loads(line)
    if "pid" in request:
        pid, status, used = os.wait4(request["pid"], 0 if request["wait"] else os.WNOHANG)
        answer = [os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime] if pid else None
    else:
        answer = os.fork()
        if answer == 0:
            run(**request)
    print(json.dumps(answer), flush=True)
