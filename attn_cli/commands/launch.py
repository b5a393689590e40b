"""Where `attn train` begins: trains in this process, or starts those of `trainer=ddp` and watches over them.

    attn train trainer=ddp              starts the others, waits, says what went wrong
      attn_cli.commands.worker … 0      trains, prints, writes the run folder
      attn_cli.commands.worker … 1      trains; what it prints goes to a file, shown if that is what ended the run

They meet in a temporary folder: config.json, `meeting` (of torch.distributed), `run` (the path of the run folder),
result.json, and for each rank its output and the sentence with which it ended. Whoever ends early ends the run: the
others get the time to say so, then SIGTERM, then SIGKILL. Ctrl-C and SIGTERM are handed on to all of them. Imports no
torch unless GPUs have to be counted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from attn_cli.config import schema
from attn_cli.config.arguments import pasted
from attn_cli.errors import Refused, Terminated
from attn_cli.files import locked
from attn_cli.places import LAUNCH, check_devices, place
from attn_cli.runs import Run, on_create, open_run

GRACE = 10.0  # seconds for the others to end by themselves, and again after SIGTERM
LOOK_EVERY = 0.1  # seconds
STOPS = (signal.SIGINT, signal.SIGTERM)
CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)  # a process ends itself by


def run(config: schema.Config) -> dict[str, Any]:
    """`attn train`, in as many processes as the configuration, or that of the run to resume, asks for."""
    if config.resume is None:
        return _run(config, config)
    before, own = continued(config.resume)
    where = place(own.trainer)
    if where is not None and where.rank > 0:  # the first process has the lock
        return _run(config, own)
    with locked(before.path, f"{config.resume} is being continued by another process: wait until that has ended."):
        return _run(config, own)


def _run(config: schema.Config, own: schema.Config) -> dict[str, Any]:
    """`own` is the configuration of the run to resume, if there is one."""
    if place(own.trainer) is None:
        if own.trainer.devices > 1:
            return start(replace(own, resume=config.resume))
        if own.trainer.strategy == "ddp":
            raise Refused("trainer.strategy=ddp needs trainer.devices of at least 2, or torchrun or srun to start it.")
    from attn_cli.commands import train

    return train.run(config)


def continued(path: str) -> tuple[Run, schema.Config]:
    """The run to resume, and its configuration; raises Refused if it cannot go on."""
    others = [word for word in sys.argv[2:] if not word.startswith("resume=")]
    if others:
        raise Refused(f"resume={path} continues with the run's own configuration: leave out {' '.join(others)}.")
    folder = open_run(path)
    status = folder.status()["status"]
    if status == "finished":
        raise Refused(
            f"{path} is finished: evaluate it with `attn eval {pasted('run', path)}`, or start a new run from its "
            f"weights with the same settings and {pasted('init_from', path)}."
        )
    folder.check_idle()
    return folder, replace(folder.config(), resume=None)


def start(config: schema.Config) -> dict[str, Any]:
    """Train with `trainer.devices` processes of this machine and return the result; raises Refused with the sentence of
    the one that failed.
    """
    check_devices(config.trainer.devices, config.trainer.accelerator)
    with tempfile.TemporaryDirectory(prefix="attn-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(schema.to_dict(config)))
        with Workers(folder, config.trainer.devices) as workers:
            workers.watch()
        if any(workers.codes()):
            raise workers.cause()
        return dict(json.loads((folder / "result.json").read_text()))


def tell_run(path: Path) -> None:
    """Called by the first process: where its run folder is."""
    if LAUNCH in os.environ:
        (Path(os.environ[LAUNCH]) / "run").write_text(str(path))


class Workers:
    """The processes, from their start to the end of the last one."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        self.processes: list[subprocess.Popen[bytes]] = []
        self.stopped: int | None = None  # the signal that was handed on, if any was
        self.ended: set[int] = set()  # ranks that had to be ended from here
        self.announced = False  # whether a sweep that waits here knows the run folder
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Workers:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._hand_on) for number in STOPS}
        for rank in range(self.count):
            self.processes.append(self._start(rank))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()  # does nothing to one that has ended
            process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.count, "LOCAL_WORLD_SIZE": self.count}
        environment = {**os.environ, LAUNCH: str(self.folder), **{name: str(value) for name, value in ranks.items()}}
        command = [sys.executable, "-m", "attn_cli.commands.worker", str(self.folder), str(rank)]
        with (self.folder / f"output-{rank}").open("wb") as output:
            shown = None if rank == 0 else output
            # A session of its own: the terminal's Ctrl-C comes here only, and is handed on once.
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=shown, stderr=shown, start_new_session=True
            )

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.stopped = number
        self._send(number)

    def _send(self, number: int) -> list[int]:
        going = [rank for rank, process in enumerate(self.processes) if process.poll() is None]
        for rank in going:
            self.processes[rank].send_signal(number)
        return going

    def codes(self) -> list[int | None]:
        """Exit codes by rank; None while a process runs, negative if a signal killed it."""
        return [process.poll() for process in self.processes]

    def watch(self) -> None:
        """Wait for the end of all; once one has failed, for the others in a bounded time."""
        while not any(self.codes()):
            self._announce()
            if None not in self.codes():
                return
            time.sleep(LOOK_EVERY)
        self._announce()
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                self.ended.update(self._send(number))
            deadline = time.monotonic() + GRACE
            while None in self.codes() and time.monotonic() < deadline:
                time.sleep(LOOK_EVERY)

    def _announce(self) -> None:
        told = self.folder / "run"
        if self.announced or not told.exists() or not (path := Path(told.read_text()) / "config.yaml").is_file():
            return
        self.announced = True
        for listener in on_create:
            listener(open_run(path.parent))

    def cause(self) -> BaseException:
        """Why the run ended: the signal that killed a process, else the first sentence that is not about another
        process's end.
        """
        codes = dict(enumerate(self.codes()))
        if self.stopped is None:
            for rank, code in codes.items():
                if code is not None and code < 0 and rank not in self.ended:
                    how = "was killed by"
                    if -code in CRASHES:
                        self._show(rank)
                        how = "failed with the error above, by"
                    return self._failed(f"Process {rank} of {self.count} {how} {signal.Signals(-code).name}")
        said = {
            rank: json.loads(path.read_text()) for rank in codes if (path := self.folder / f"said-{rank}.json").exists()
        }
        for words in said.values():
            if not words["lost"]:
                path = self.folder / "run"
                if path.exists() and (0 not in said or said[0]["lost"]):  # the first one could record no more than that
                    open_run(path.read_text()).set_status("failed", words["sentence"])
                return Refused(words["sentence"], words["exit_code"])
        if self.stopped is not None:
            return Terminated() if self.stopped == signal.SIGTERM else KeyboardInterrupt()
        for rank, code in codes.items():
            if code and rank not in said and rank not in self.ended:
                self._show(rank)
                return self._failed(f"Process {rank} of {self.count} failed with the error above")
        return self._failed("The processes of the run lost each other")

    def _show(self, rank: int) -> None:
        """What a process has written, where it was kept from the terminal."""
        if rank:
            sys.stderr.write((self.folder / f"output-{rank}").read_text(errors="replace"))

    def _failed(self, what: str) -> Refused:
        path = self.folder / "run"
        if not path.exists():
            return Refused(f"{what} before there was a run folder: start again.")
        run = open_run(path.read_text())
        sentence = f"{what} and the others were stopped: {run.advice()}."
        run.set_status("failed", sentence)
        return Refused(sentence)
