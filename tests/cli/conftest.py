"""One small trained run, made by the real command in a real process, for the commands that need one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = (
    "trainer=smoke", "model.hidden=32", "model.glimpse_hidden=16", "model.glimpse_features=32", "data.train_limit=640",
)  # fmt: skip


@cache
def forks() -> subprocess.Popen[str]:
    """A process that runs commands in forks of itself until this one ends."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forks.py")],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


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

    def __call__(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """In a process of its own, forked from one that has paid for the imports."""
        server = forks()
        assert server.stdin is not None and server.stdout is not None
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            request = {
                "words": words, "folder": str(self.folder), "environment": self.environment(),
                "outputs": [out.name, err.name],
            }  # fmt: skip
            try:
                print(json.dumps(request), file=server.stdin, flush=True)
                returned, seconds = json.loads(server.stdout.readline())
            except BaseException:  # a test that took too long: the next one must not be given its answer
                server.kill()
                forks.cache_clear()
                raise
            said = [Path(file.name).read_text() for file in (out, err)]
        self.seconds += seconds
        done = subprocess.CompletedProcess(words, returned, *said)
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        """As a shell would."""
        return subprocess.Popen(
            [sys.executable, "-m", "attn_cli", *words],
            cwd=self.folder, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

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
