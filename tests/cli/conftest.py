"""One small trained run, made by the real command in a real process, for the commands that need one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = (
    "trainer=smoke", "model.hidden=32", "model.glimpse_hidden=16", "model.glimpse_features=32", "data.train_limit=640",
)  # fmt: skip


@cache
def forks() -> subprocess.Popen[str]:
    """A process that runs commands in forks of itself, which need no imports, until this one ends."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forks.py")],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def ask(request: dict[str, Any]) -> Any:
    """What that process answers."""
    server = forks()
    assert server.stdin is not None and server.stdout is not None
    try:
        print(json.dumps(request), file=server.stdin, flush=True)
        return json.loads(server.stdout.readline())
    except BaseException:  # a test that took too long: the next one must not be given its answer
        server.kill()
        forks.cache_clear()
        raise


class Command:
    """A command in a process of its own, with what the tests use of subprocess.Popen."""

    def __init__(self, words: tuple[str, ...], folder: Path, environment: dict[str, str]):
        self.returncode: int | None = None
        self.seconds = 0.0  # of a processor, once it has ended
        self._outputs = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115 – until this object goes
        outputs = [file.name for file in self._outputs]
        self.pid: int = ask({"words": words, "folder": str(folder), "environment": environment, "outputs": outputs})

    def poll(self, wait: bool = False) -> int | None:
        if self.returncode is None and (ended := ask({"pid": self.pid, "wait": wait})):
            self.returncode, self.seconds = ended
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        deadline = time.monotonic() + (timeout or 0)
        while self.poll(wait=timeout is None) is None:
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.01)
        out, err = (Path(file.name).read_text() for file in self._outputs)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


@dataclass
class Attn:
    """Runs `python -m attn_cli …` in a folder with its own data root."""

    folder: Path
    data: Path
    small: tuple[str, ...] = SMALL
    seconds: float = 0.0  # of a processor, that its commands took

    def environment(self) -> dict[str, str]:
        own = {"ATTN_DATA": str(self.data), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        return {**os.environ, **own}

    def start(self, *words: str) -> Command:
        return Command(words, self.folder, self.environment())

    def __call__(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        command = self.start(*words)
        out, err = command.communicate()
        self.seconds += command.seconds
        assert command.returncode is not None
        assert code is None or command.returncode == code, f"{words}: {command.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(words, command.returncode, out, err)

    def runs(self) -> list[Path]:
        return sorted(path.parent for path in (self.folder / "outputs").glob("*/config.yaml"))


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def attn(tmp_path, data_root) -> Attn:
    return Attn(tmp_path, data_root)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data_root) -> Attn:
    """A folder with one finished run; tests only read it or add files."""
    attn = Attn(tmp_path_factory.mktemp("trained"), data_root)
    attn("train", *SMALL, "trainer.epochs=2")
    return attn
