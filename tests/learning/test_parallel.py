"""Runs that are trained together are the runs that would have been trained alone."""

from __future__ import annotations

import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attn_cli.config import schema
from attn_cli.data.splits import DataInfo
from attn_cli.devices import prepare_cpu
from attn_cli.errors import Refused
from attn_cli.learning.checkpoints import load
from attn_cli.learning.guards import Checkpoints, SignalGuard, Stopped
from attn_cli.learning.learner import Learner
from attn_cli.learning.parallel import MemberCheckpoints, ParallelLearner
from attn_cli.learning.random_states import random_states
from attn_cli.learning.training import fit, make_learner

SEEDS = (3, 4, 5)
STEPS = 10  # an epoch
SMALL = {"hidden": 16, "glimpse_hidden": 8, "glimpse_features": 16}
MODELS = {
    "ram": schema.Ram(**SMALL, samples=3),
    "ram_paper": schema.Ram(**SMALL, samples=1, baseline="learned", reward="correct"),
    "ram_lstm": schema.Ram(**SMALL, name="ram_lstm", core="lstm", samples=2),
    "ram_grid": schema.Ram(**SMALL, policy="grid", samples=2),
    "ram_stop": schema.Ram(**SMALL, stop="learned", samples=2),
    "ram_scale": schema.Ram(**SMALL, scale="learned", samples=2),
    "dram": schema.Dram(glimpse="fc", filters=(4, 4, 4), features=16, hidden=16, samples=2),
    "soft_ram": schema.SoftRam(filters=(4, 4, 4), features=16, hidden=16, centre="relative", limit=0.6),
    "convnet": schema.ConvNet(
        name="convnet_5", filters=(4, 6), kernels=(3, 3), strides=(1, 1), pools=(2, 2), hidden=(8,), dropout=0.0
    ),
}


class Stripes:
    """28×28 images of stripes whose direction is the class; which images a step sees depends on seed and step."""

    info = DataInfo("stripes", 1, 28, 28, 2, ("across", "down"), 0, 80, 40, 40)

    def steps_per_epoch(self, batch_size: int) -> int:
        return STEPS

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> Any:
        return self.images(1000 * seed + 100 * epoch + step, batch_size)

    def fixed(self, split: str) -> Any:
        return self.images(0, 40)

    def images(self, seed: int, count: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        labels, phase = (torch.randint(0, high, (count,), generator=generator) for high in (2, 6))
        along = torch.stack([torch.arange(28)[:, None].expand(28, 28), torch.arange(28).expand(28, 28)])[labels]
        return (((along + phase[:, None, None]) % 6 < 3) * 255).to(torch.uint8)[:, None], labels


def settings(model: Any, seed: int, **optimizer: Any) -> schema.Config:
    one_scale = isinstance(model, (schema.SoftRam, schema.ConvNet))
    return schema.Config(
        model=model,
        glimpses=schema.Glimpses(3, 10 if one_scale else 8),
        scales=schema.Scales(1 if one_scale else 3),
        trainer=schema.Trainer(epochs=2, batch_size=8, compile="off", accelerator="cpu"),
        optimizer=schema.Optimizer(**{"lr": 0.01, "clip": 1.0, **optimizer}),
        seed=seed,
    )


def member(model: Any, seed: int, data: Any = None, **optimizer: Any) -> Learner:
    learner = make_learner(settings(model, seed, **optimizer), data or Stripes())
    learner.model.double()
    return learner


def stacked(model: Any, data: Any = None, kind: type[ParallelLearner] = ParallelLearner) -> ParallelLearner:
    members, states = [], []
    for seed in SEEDS:
        members.append(member(model, seed, data))
        states.append(random_states())
    return kind(members, states)


def train(learner: Learner, checkpoints: Checkpoints, resume: Any = None) -> None:
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    with SignalGuard(checkpoints) as signals:
        fit(learner, learner.config, [checkpoints, signals], resume=resume)


def folders(tmp_path: Any) -> list[Any]:
    made = [tmp_path / f"run{seed}" / "checkpoints" for seed in SEEDS]
    for folder in made:
        folder.mkdir(parents=True)
    return made


def assert_close(one: Any, other: Any, where: str = "") -> None:
    """Two nested values are the same, floating-point numbers within 1e-10."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key != "seconds":
                assert_close(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        tolerance = 1e-10 if one.dtype == torch.float64 else 0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=lambda said: f"{where}: {said}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-9), where
    else:
        assert one == other, where


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    prepare_cpu(1)
    yield
    prepare_cpu(before)


@pytest.mark.parametrize("name", MODELS)
def test_twenty_steps_are_those_of_the_runs_alone(name, tmp_path):
    """Weights, optimiser, schedule, random states, loops, position in the batches, best error and the rows of the log:
    after two epochs of ten steps in double precision the checkpoints are those of three separate runs.
    """
    together = stacked(MODELS[name])
    rows: dict[int, list[Any]] = {seed: [] for seed in SEEDS}
    for part in together.members:
        part.listeners.append(rows[part.config.seed].append)
    train(together, MemberCheckpoints(together, folders(tmp_path)))
    for seed in SEEDS:
        alone, seen = member(MODELS[name], seed), []
        alone.listeners.append(seen.append)
        train(alone, Checkpoints(tmp_path / f"alone{seed}" / "checkpoints"))
        assert_close(rows[seed], seen)
        for kind in ("last", "best"):
            one, other = (load(tmp_path / f"{run}{seed}" / "checkpoints" / f"{kind}.ckpt") for run in ("run", "alone"))
            assert one["global_step"] == (20 if kind == "last" else other["global_step"])
            assert_close(one, other)
    first, second = (dict(part.model.named_parameters()) for part in together.members[:2])
    assert not any(torch.equal(first[key], second[key]) for key in first if "weight" in key)


@pytest.mark.parametrize("seeds", [(3,), (3, 4)])
@pytest.mark.parametrize(
    "optimizer",
    [{"weight_decay": 0.1}, {"name": "adam", "decay": 0.5}, {"name": "sgd", "decay": 0.5, "weight_decay": 0.1}],
    ids=lambda optimizer: optimizer.get("name", "adam_onecycle"),
)
def test_learning_rates_are_those_of_the_runs_alone(seeds, optimizer, tmp_path):
    """As above, for each seed with each of three rates: checkpoints and logged rates after twenty steps."""
    chosen = [(seed, rate) for rate in (0.02, 0.001, 0.005) for seed in seeds]
    members, states, places = [], [], []
    for seed, rate in chosen:
        members.append(member(MODELS["ram"], seed, lr=rate, **optimizer))
        states.append(random_states())
    together, rows = ParallelLearner(members, states), [[] for _ in members]
    for part, seen in zip(members, rows, strict=True):
        part.listeners.append(seen.append)
        places.append(tmp_path / f"run{len(places)}" / "checkpoints")
        places[-1].mkdir(parents=True)
    train(together, MemberCheckpoints(together, places))
    last = []
    for (seed, rate), place, row in zip(chosen, places, rows, strict=True):
        one, seen = member(MODELS["ram"], seed, lr=rate, **optimizer), []
        one.listeners.append(seen.append)
        train(one, Checkpoints(place.parent / "alone"))
        assert_close(row, seen)
        assert_close(load(place / "last.ckpt"), load(place.parent / "alone" / "last.ckpt"))
        last.append(load(place / "last.ckpt")["state_dict"]["model.core.weight"])
    assert not any(torch.equal(a, b) for i, a in enumerate(last) for b in last[:i])


def test_a_member_that_was_stopped_is_continued_alone(tmp_path):
    """After Ctrl-C in the second epoch, from its own checkpoint: the end is that of the run alone."""

    class Interrupt(Stripes):
        def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> Any:
            if (seed, epoch, step) == (SEEDS[0], 1, 3):
                signal.raise_signal(signal.SIGINT)
            return super().train_batch(seed, epoch, step, batch_size)

    together, places = stacked(MODELS["ram"], Interrupt()), folders(tmp_path)
    with pytest.raises(Stopped, match="after 14 steps") as stopped:
        train(together, MemberCheckpoints(together, places))
    assert stopped.value.exit_code == 130
    assert all(str(place.parent) in str(stopped.value) for place in places)
    alone = member(MODELS["ram"], SEEDS[1])
    train(alone, Checkpoints(tmp_path / "alone" / "checkpoints"))
    continued = member(MODELS["ram"], SEEDS[1])
    train(continued, Checkpoints(places[1]), resume=places[1] / "last.ckpt")
    assert_close(load(places[1] / "last.ckpt"), load(tmp_path / "alone" / "checkpoints" / "last.ckpt"))


def test_a_member_that_is_not_finite_leaves_the_others_as_they_are(tmp_path):
    def spoil(learner: ParallelLearner, number: int) -> None:
        with torch.no_grad():
            learner.members[number].model.get_parameter("core.weight")[0, 0] = torch.nan

    class Spoilt(ParallelLearner):
        def begin_epoch(self, epoch: int) -> None:
            if epoch == 1:
                spoil(self, 1)

    together, places, said = stacked(MODELS["ram"], kind=Spoilt), folders(tmp_path), []
    together.on_failure = lambda number, refused: said.append((number, str(refused)))
    train(together, MemberCheckpoints(together, places))
    assert [number for number, _ in said] == [1] and together.going == [0, 2]
    assert said[0][1].startswith("loss is nan at step 10 (and gradient norm of model.")
    assert [load(place / "last.ckpt")["global_step"] for place in places] == [20, 10, 20]
    alone = member(MODELS["ram"], SEEDS[2])
    train(alone, Checkpoints(tmp_path / "alone" / "checkpoints"))
    assert_close(load(places[2] / "last.ckpt"), load(tmp_path / "alone" / "checkpoints" / "last.ckpt"))
    for number in (0, 2):
        spoil(together, number)
    with pytest.raises(Refused, match="None of the 3 runs is left. The last one: loss is nan at step 0 "):
        train(together, MemberCheckpoints(together, places))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("convnet", {"dropout": 0.1}),
        ("convnet", {"norm": True}),
        ("dram", {"dropout": 0.1}),
        ("soft_ram", {"pretrain_glimpse": 2, "glimpse": "conv"}),
        ("soft_ram", {"reset_every": 1, "resets": 1}),
    ],
)
def test_what_cannot_be_stacked_is_refused(name, changes):
    with pytest.raises(
        Refused, match=f"model={MODELS[name].name} as it is set here cannot be trained with trainer.par"
    ):
        stacked(replace(MODELS[name], **changes)).try_out()


def test_sequences_that_stop_early_are_refused():
    class Numbers(Stripes):
        info = replace(Stripes.info, length=2)

        def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> Any:
            images, labels = super().train_batch(seed, epoch, step, batch_size)
            return images, torch.stack([labels, labels * 0 + 2, labels * 0 - 1], 1)

    with pytest.raises(Refused, match="sequences that stop early"):
        stacked(MODELS["dram"], Numbers()).try_out()


@pytest.mark.parametrize("name", MODELS)
def test_what_can_be_stacked_is_not_refused(name):
    stacked(MODELS[name]).try_out()


def test_who_has_finished_is_not_advised_to_go_on(tmp_path):
    learner: Any = SimpleNamespace(finite=None, going=[0, 2])  # the second one failed
    places = folders(tmp_path)
    checkpoints = MemberCheckpoints(learner, places)
    for place in places:
        (place / "last.ckpt").touch()
    resume = [f"`attn train resume={place.parent}`" for place in places]
    assert checkpoints.advice() == f"continue with {resume[0]} and {resume[2]}, one after the other"
    checkpoints.finished.add(0)
    assert checkpoints.advice() == f"continue with {resume[2]}, one after the other"
