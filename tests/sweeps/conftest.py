"""Sweeps of a stub in place of training: its fate is told by fates.json, what it was given is written to ran.txt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from attn_cli import cli
from attn_cli.commands import entry
from attn_cli.config import schema
from attn_cli.pictures import sweep_axes

REPOSITORY = Path(__file__).resolve().parents[2]
STUB = """
import json, os, signal, sys, time
from pathlib import Path
from attn_cli import runs
from attn_cli.errors import Refused


def run(config):
    folders = [runs.open_run(config.resume)] if config.resume else [runs.create(own) for own in config.alone()]
    with open("ran.txt", "a") as file:
        file.write(" ".join([str(config.seed), *sys.argv[2:]]) + "\\n")
    with open(f"threads-{config.seed}.part", "w") as file:
        file.write(f"{config.trainer.threads} {os.environ.get('OMP_NUM_THREADS')}")
    os.replace(file.name, f"threads-{config.seed}.txt")
    match json.loads(Path("fates.json").read_text()).get(str(config.seed)):
        case "fail": raise ValueError("boom")
        case "refuse": raise Refused("no.")
        case "leave": sys.exit(0)
        case "stop": raise KeyboardInterrupt
        case "kill": os.kill(os.getpid(), signal.SIGKILL)
        case "kill after the first":  # which another process runs, and may be slower to start
            limit = time.monotonic() + 120
            while not Path("threads-1.txt").exists() and time.monotonic() < limit: time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        case "timeout": raise type("UncompletedJobError", (RuntimeError,), {})("timed out")
        case "nan": return {"val_error": float("nan")}
    results = []
    for folder, own in zip(folders, [config] if config.resume else config.alone()):
        error = abs(own.optimizer.lr - 0.01) * 1000 + own.glimpses.count + own.seed
        result = {"run": str(folder.path), "seed": own.seed, "val_error": error, "test_error": 100 - error}
        results.append({**result, "seconds": 2.0, "threads": 1})
        folder.set_status("finished")
        folder.write_result(results[-1])
    if len(results) == 1:
        return results[0]
    from attn_cli.commands.train_together import together  # imports torch

    return together(results)
"""
START = """
import sys
from attn_cli import cli
from attn_cli.commands import entry
from attn_cli.config import schema

entry.HYDRA_COMMANDS["train"] = entry.HydraCommand("train", "train", schema.Config, "sweep_stub:run")
sys.exit(cli.main())
"""


@dataclass
class Work:
    folder: Path
    code: Path

    def __call__(self, *words: str) -> int:
        """`attn train -m WORDS…` in this process; returns the exit code."""
        return cli.main(["train", "-m", *words])

    def process(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The same in a process of its own."""
        path = os.pathsep.join([str(REPOSITORY), str(self.code)])
        inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        command = [sys.executable, str(self.code / "start.py"), "train", "-m", *words]
        return subprocess.run(
            command, env={**inherited, "PYTHONPATH": path, **environment}, capture_output=True, text=True, timeout=250
        )

    def fates(self, **fates: str) -> None:
        """`s3="fail"`: the job with seed=3 fails from now on."""
        told = {name.removeprefix("s"): fate for name, fate in fates.items()}
        (self.folder / "fates.json").write_text(json.dumps(told))

    def ran(self) -> list[str]:
        """ "SEED WORDS…" of each call of the stub since the last look."""
        path = self.folder / "ran.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def sweep(self) -> Path:
        (found,) = (self.folder / "outputs" / "sweeps").iterdir()
        return found.relative_to(self.folder)

    def jobs(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in sorted(self.sweep().glob("job-*.json"))]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    code, folder = tmp_path / "code", tmp_path / "work"
    code.mkdir()
    folder.mkdir()
    (code / "sweep_stub.py").write_text(STUB)
    (code / "start.py").write_text(START)
    monkeypatch.syspath_prepend(str(code))
    stub = entry.HydraCommand("train", "train", schema.Config, "sweep_stub:run")
    monkeypatch.setitem(entry.HYDRA_COMMANDS, "train", stub)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sweep_axes, "draw", lambda rows, path: path)  # takes longer than all else
    work = Work(folder, code)
    work.fates()
    yield work
    sys.modules.pop("sweep_stub", None)
