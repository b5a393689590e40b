"""`attn train` with `trainer.parallel_seeds` or `parallel_lrs` as a person runs it: each run leaves a folder."""

from __future__ import annotations

import csv
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from attn_cli.commands import train, train_together
from attn_cli.config import schema
from attn_cli.data.batches import open_data
from attn_cli.errors import Refused
from attn_cli.learning.checkpoints import load
from attn_cli.learning.training import make_learner
from attn_cli.runs import Run, all_runs, commit
from tests.cli.conftest import Attn
from tests.test_runs import git

TOGETHER = ("seed=1", "trainer.parallel_seeds=2", "trainer.limit_train_steps=null", "trainer.batch_size=16")


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def seed_of(run: Path) -> int:
    return yaml.safe_load((run / "config.yaml").read_text())["seed"]


@pytest.fixture(autouse=True)
def same_data(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process, too."""
    monkeypatch.setenv("ATTN_DATA", str(data_root))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Any:
    """The command, and the two runs that it left, by seed."""
    attn = Attn(tmp_path_factory.mktemp("both"), data_root)
    done = attn("train", *attn.small, *TOGETHER)
    return attn, done, {seed_of(run): run for run in attn.runs()}


def test_each_seed_has_a_run_as_if_trained_alone(both):
    _, done, runs = both
    assert sorted(runs) == [1, 2]
    for seed, run in runs.items():
        assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["parallel_seeds"] == 1
        assert read(run, "status.json")["status"] == "finished" and read(run, "status.json")["step"] == 40
        result = read(run, "result.json")
        assert (result["seed"], result["run"], result["trained_together"]) == (
            seed,
            str(run.relative_to(both[0].folder)),
            2,
        )
        assert 0 < result["test_error"] < 100 and result["images_per_second"] > 0
        with (run / "metrics.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert row["epoch"] == "1" and float(row["val_error"]) == pytest.approx(
            read(run, "result.json")["val_error"], abs=5
        )
        assert (run / "log.txt").read_text().startswith("epoch   1/1  loss ") and (run / "curves.png").exists()
        assert run.name in done.stdout
    weights = [load(run / "checkpoints" / "last.ckpt")["state_dict"]["model.core.weight"] for run in runs.values()]
    assert not weights[0].equal(weights[1])


def test_the_runs_are_those_of_the_seeds_alone(both, tmp_path):
    """The same up to the order of additions in single precision."""
    run = both[2][2]
    result = train.run(replace(Run(run).config(), outputs=str(tmp_path)))
    one, other = (load(folder / "checkpoints" / "last.ckpt") for folder in (run, Path(result["run"])))
    for key, value in other["state_dict"].items():
        assert (one["state_dict"][key] - value).abs().max() < 1e-3 < value.abs().max(), key
    assert read(run, "result.json")["test_error"] == pytest.approx(result["test_error"], abs=2)


def test_runs_of_one_learning_rate_follow_one_another():
    """As `ParallelLearner` wants them."""
    trainer = schema.Trainer(parallel_seeds=2, parallel_lrs=(0.02, 0.001))
    runs = schema.Config(seed=3, trainer=trainer).alone()
    assert [(own.optimizer.lr, own.seed) for own in runs] == [(0.02, 3), (0.02, 4), (0.001, 3), (0.001, 4)]


def test_each_learning_rate_has_a_run_of_its_own(attn):
    done = attn("train", *attn.small, "seed=1", "trainer.parallel_lrs=[0.001,0.01]", "trainer.batch_size=16")
    rates = {}
    for run in attn.runs():
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert (config["seed"], config["trainer"]["parallel_seeds"], config["trainer"]["parallel_lrs"]) == (1, 1, [])
        result = read(run, "result.json")
        assert (result["trained_together"], result["learning_rate"]) == (2, config["optimizer"]["lr"])
        rates[config["optimizer"]["lr"]] = load(run / "checkpoints" / "last.ckpt")["state_dict"]["model.core.weight"]
    assert sorted(rates) == [0.001, 0.01] and not rates[0.001].equal(rates[0.01])
    assert done.stdout.count("(optimizer.lr 0.001)") == 2  # when it begins, and in the table at the end


def test_terminated_and_one_of_them_continued_alone(attn, both, monkeypatch):
    process = attn.start("train", *attn.small, *TOGETHER, "trainer.epochs=5", "trainer.checkpoint_seconds=0.001")
    while len(list(attn.folder.glob("outputs/*/checkpoints/previous.ckpt"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143 and "Traceback" not in err
    steps = set()
    for run in attn.runs():
        status = read(run, "status.json")
        assert status["status"] == "terminated" and "continue with `attn train resume=" in status["message"]
        assert str(run.relative_to(attn.folder)) in err
        steps.add(load(run / "checkpoints" / "last.ckpt")["global_step"])
    assert len(steps) == 1 and steps.pop() < 200
    monkeypatch.setattr(sys, "argv", ["attn", "train"])
    result = train.run(schema.Config(resume=str(attn.runs()[0])))
    assert load(attn.runs()[0] / "checkpoints" / "last.ckpt")["global_step"] == 200 and result["test_error"] < 90
    assert [read(run, "status.json")["status"] for run in attn.runs()] == ["finished", "terminated"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_commit_is_that_of_the_code_that_ran(seeds, both, tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    (checkout / "attn_cli").mkdir(parents=True)
    (checkout / "conf").mkdir()
    git(checkout, "init", "-q")
    git(checkout, "commit", "-q", "--allow-empty", "-m", "one")
    monkeypatch.setattr("attn_cli.__file__", str(checkout / "attn_cli" / "__init__.py"))

    def changed_meanwhile(config: Any) -> Any:
        (checkout / "conf" / "new.yaml").write_text("seed: 1")
        git(checkout, "commit", "-q", "--allow-empty", "-m", "two")
        return open_data(config)

    for module in (train, train_together):
        monkeypatch.setattr(module, "open_data", changed_meanwhile)
    config = Run(both[2][1]).config()
    trainer = replace(config.trainer, parallel_seeds=seeds, epochs=1)
    commit.cache_clear()
    train.run(replace(config, trainer=trainer, outputs=str(tmp_path / "outputs")))
    commit.cache_clear()
    found = {read(run.path, "result.json")["commit"] for run in all_runs(tmp_path / "outputs")}
    assert found == {git(checkout, "rev-parse", "HEAD~")}


def test_a_model_that_cannot_be_stacked_leaves_nothing(both, tmp_path):
    config = Run(both[2][1]).config()
    network = schema.ConvNet(name="convnet_bn", norm=True, filters=(4,), kernels=(3,), strides=(1,), pools=(2,))
    together = replace(config.trainer, parallel_seeds=2)
    with pytest.raises(Refused, match="model=convnet_bn as it is set here cannot be trained"):
        train.run(replace(config, model=network, trainer=together, outputs=str(tmp_path / "outputs")))
    assert not (tmp_path / "outputs").exists()


def test_one_that_fails_is_named_and_the_other_finishes(both, tmp_path, monkeypatch, capsys):
    """The first seed's weights are spoilt before training."""
    config = replace(Run(both[2][1]).config(), outputs=str(tmp_path))

    def spoilt(config: Any, data: Any, compile_step: bool) -> Any:
        learner = make_learner(config, data, compile_step)
        if config.seed == 1:
            learner.model.get_parameter("core.bias").data.fill_(torch.nan)
        return learner

    monkeypatch.setattr(train_together, "make_learner", spoilt)
    with pytest.raises(Refused, match="1 of 2 runs failed, .* first: loss is nan at step 0"):
        train.run(replace(config, trainer=replace(config.trainer, parallel_seeds=2)))
    runs = {seed_of(run.path): run for run in all_runs(tmp_path)}
    assert runs[1].status()["status"] == "failed" and "loss is nan" in runs[1].status()["message"]
    assert not list(runs[1].checkpoints.iterdir()) and runs[1].result() is None
    assert runs[2].status()["status"] == "finished" and runs[2].result()["seed"] == 2
    (failed,) = (line for line in capsys.readouterr().out.splitlines() if line.endswith("failed"))
    assert [word.strip() for word in failed.split("|")[3:6]] == [str(config.glimpses.count), "1", "0.002"]
