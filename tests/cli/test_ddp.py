"""`attn train trainer=ddp` as people start it: two real processes on a CPU, stopped, killed and continued for real."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_cli import runs
from attn_cli.commands import launch, train
from attn_cli.commands.reproducing import composed
from attn_cli.config import schema
from attn_cli.learning.checkpoints import load
from attn_cli.places import usable_cores
from attn_cli.processes import Lost
from attn_cli.runs import Run

pytestmark = pytest.mark.skipif(usable_cores() < 2, reason="two processes need two CPU cores")

TWO = (
    "trainer=ddp", "trainer.accelerator=cpu", "data=arrays", "data.path=images.npz", "glimpses=2", "glimpses.size=4",
    "model.hidden=8", "model.glimpse_hidden=8", "model.glimpse_features=8", "trainer.compile=off",
    "trainer.batch_size=8", "trainer.epochs=2",
)  # fmt: skip
PATIENCE = 240  # seconds for what takes a few on an idle machine


@pytest.fixture
def images(attn):
    """2,000 images of 8×8, so that an epoch of 250 steps can be met in the middle."""
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (2300, 8, 8), np.uint8), np.arange(2300) % 3
    parts = {"train": slice(2000), "validation": slice(2000, 2101), "test": slice(2101, 2300)}
    splits = {f"{name}_images": pixels[part] for name, part in parts.items()}
    np.savez(attn.folder / "images.npz", **splits, **{f"{name}_labels": labels[part] for name, part in parts.items()})
    return attn


def wait_for(what, process: subprocess.Popen[str]):
    """The first true value of `what()`, while the process goes on."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if value := what():
            return value
        time.sleep(0.02)
    raise AssertionError("nothing happened")


def workers(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids by rank, of those that the command has started."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if "attn_cli.commands.worker" in words:
            found[int(words[-2])] = int(child)
    return found


def in_training(attn, process: subprocess.Popen[str]) -> Path:
    """The run's folder, as soon as it has a checkpoint."""
    return wait_for(lambda: list(attn.folder.glob("outputs/*/checkpoints/last.ckpt")), process)[0].parents[1]


def gone(pids) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_interrupted_and_resumed_is_the_same_run(images):
    whole = images("train", *TWO)
    (folder,) = images.runs()
    assert whole.stdout.count("epoch   1/2") == whole.stdout.count("Run folder") == 1 and whole.stderr == ""
    result = Run(folder).result()
    assert Run(folder).status()["status"] == "finished" and result["images_per_second"] > 0
    assert 0 < result["val_error"] < 100 and result["test_error_interval"][0] < result["test_error"]
    folder.rename(images.folder / "whole")

    process = images.start("train", *TWO, "trainer.checkpoint_seconds=0.1")
    folder = in_training(images, process)
    pids = workers(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert f"continue with `attn train resume={folder.relative_to(images.folder)}`" in err and "Traceback" not in err
    assert err.count("with a checkpoint: ") == 1 and set(pids) == {0, 1} and gone(pids.values())
    assert Run(folder).status()["status"] == "interrupted"
    assert 0 < load(folder / "checkpoints" / "last.ckpt")["global_step"] < 500

    images("train", f"resume={folder.relative_to(images.folder)}")
    ends = [load(path / "checkpoints" / "last.ckpt") for path in (images.folder / "whole", folder)]
    assert all((ends[0]["state_dict"][name] == value).all() for name, value in ends[1]["state_dict"].items())
    for key in ("val_error", "test_error"):
        assert Run(folder).result()[key] == result[key]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run(images, rank):
    process = images.start("train", *TWO, "trainer.epochs=1000", "trainer.checkpoint_seconds=0.1")
    folder = in_training(images, process)
    pids = workers(process)
    killed = time.monotonic()
    os.kill(pids[rank], signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE)
    assert time.monotonic() - killed < 60 and process.returncode == 1 and gone(pids.values())
    sentence = (
        f"Process {rank} of 2 was killed by SIGKILL and the others were stopped: "
        f"continue with `attn train resume={folder.relative_to(images.folder)}`."
    )
    assert err == f"attn train: {sentence}\n"
    status = Run(folder).status()
    assert (status["status"], status["message"]) == ("failed", sentence)
    assert load(folder / "checkpoints" / "last.ckpt")["global_step"] > 0


def test_a_killed_command_stops_its_processes(images):
    process = images.start("train", *TWO, "trainer.epochs=1000", "trainer.checkpoint_seconds=0.1")
    folder = in_training(images, process)
    pids = workers(process)
    process.send_signal(signal.SIGKILL)
    process.poll(wait=True)
    deadline = time.monotonic() + PATIENCE
    while not gone(pids.values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone(pids.values()) and Run(folder).status()["status"] == "terminated"


def test_a_sweep_that_waits_learns_of_the_run_folder(tmp_path, monkeypatch):
    """It lies in another process, whose end may be that of the job."""
    run = runs.create(schema.Config(outputs=str(tmp_path / "outputs")))
    found: list[Path] = []
    runs.on_create.append(lambda run: found.append(run.path))
    code = "import pathlib, time; pathlib.Path('run').write_text({!r}); time.sleep(0.5)"
    monkeypatch.setattr(
        launch.Workers,
        "_start",
        lambda self, rank: subprocess.Popen([sys.executable, "-c", code.format(str(run.path))], cwd=self.folder),
    )
    try:
        with launch.Workers(tmp_path, 1) as workers:
            workers.watch()
    finally:
        runs.on_create.pop()
    assert found == [run.path] and workers.codes() == [0]


@pytest.mark.parametrize("first", [None, "The connection was lost."])
def test_what_ended_another_process_is_recorded_as_it_is_told(tmp_path, monkeypatch, first):
    """The first process, which writes the run folder, knows only that it lost the other one; or, waiting for it on a
    GPU, was killed and has said nothing.
    """
    run = runs.create(schema.Config(outputs=str(tmp_path / "outputs")))
    (tmp_path / "run").write_text(str(run.path))
    run.set_status("failed", "The connection was lost.")
    for rank, (sentence, lost) in enumerate([(first, True), ("No room: set this.", False)]):
        said = {"sentence": sentence, "exit_code": 1, "lost": lost}
        if sentence:
            (tmp_path / f"said-{rank}.json").write_text(json.dumps(said))
    monkeypatch.setattr(launch.Workers, "_start", lambda self, rank: subprocess.Popen(["false"]))
    with launch.Workers(tmp_path, 2) as workers:
        workers.watch()
    assert str(workers.cause()) == "No room: set this." == run.status()["message"]
    assert run.status()["status"] == "failed"


def test_what_a_process_that_aborts_has_written_is_shown(tmp_path, monkeypatch, capsys):
    (tmp_path / "output-1").write_text("the other side hung up\n")
    ends = ["import time; time.sleep(60)", "import os; os.abort()"]
    monkeypatch.setattr(
        launch.Workers, "_start", lambda self, rank: subprocess.Popen([sys.executable, "-c", ends[rank]])
    )
    with launch.Workers(tmp_path, 2) as workers:
        workers.watch()
        cause = str(workers.cause())
    assert cause.startswith("Process 1 of 2 failed with the error above, by SIGABRT before there was a run folder")
    assert capsys.readouterr().err == "the other side hung up\n"


def test_a_sweep_of_runs_of_two_processes(images):
    done = images("train", "-m", *TWO, "trainer.limit_train_steps=5", "seed=1,2")
    folders = images.runs()
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    assert sorted(result["seed"] for result in results) == [1, 2]
    assert all(result["devices"] == 2 and result["images"] == 199 for result in results)
    assert "Sweep, job 2 of 2" in done.stdout and done.stdout.count("finished") == 1  # one row for both seeds


def test_a_refusal_is_one_sentence_and_leaves_nothing(images):
    cores = usable_cores()
    done = images("train", *TWO, f"trainer.devices={cores + 1}", f"trainer.batch_size={8 * (cores + 1)}", code=1)
    assert f"trainer.devices={cores + 1} is more than the {cores} CPU cores that can be used here" in done.stderr
    assert done.stderr.count("\n") == 1 and images.runs() == []
    done = images("train", *TWO, "data.path=none.npz", code=1)  # both processes refuse it
    assert "none.npz" in done.stderr and done.stderr.count("\n") == 1 and images.runs() == []


@pytest.mark.parametrize("checkpoint", [True, False])
def test_whoever_loses_the_others_says_how_to_go_on(tmp_path, monkeypatch, checkpoint):
    """Under torchrun and Slurm no command watches over the processes."""

    def lose(folder: Run, *_: Any) -> None:
        if checkpoint:
            folder.checkpoints.mkdir(exist_ok=True)
            (folder.checkpoints / "last.ckpt").touch()
        raise Lost("One of them has ended.")

    monkeypatch.setattr(train, "_train", lose)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Lost) as lost:
        train.run(composed("train", ["trainer=smoke"]))
    (run,) = runs.all_runs(Path("outputs"))
    said = f"continue with `attn train resume={run.path}`"
    if not checkpoint:
        said = f"{run.path} has no checkpoint to continue from, start a new run"
    assert str(lost.value) == run.status()["message"] == f"One of them has ended: {said}."


def test_torchrun(images):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def train(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*command, "-m", "attn_cli", "train", *words],
            cwd=images.folder, env=images.environment(), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    done = train(*TWO, "trainer.limit_train_steps=4")
    (folder,) = images.runs()
    assert done.stdout.count("Run folder") == 1
    assert [row["step"] for row in csv.DictReader((folder / "metrics.csv").open())] == ["4", "8"]
    assert json.loads((folder / "result.json").read_text())["run"] == str(folder.relative_to(images.folder))
    assert re.search("finished", (folder / "status.json").read_text())
    Run(folder).set_status("terminated")
    train(f"resume={folder}")  # both processes come to the folder at once
    assert Run(folder).status()["status"] == "finished"
