"""What the options of a model say of the objective reaches the loss that its learner takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from attn_cli.config import schema
from attn_cli.data.splits import DataInfo
from attn_cli.errors import Refused
from attn_cli.games.catch import Catch, draw_starts
from attn_cli.learning.objectives import Losses, repulsion
from attn_cli.learning.training import make_learner
from attn_cli.models.rollout import draw_noise, rollout

SMALL = {"filters": (2, 2, 4), "features": 12, "hidden": 10}
RAM = schema.Ram(hidden=10, glimpse_hidden=8, glimpse_features=8, baseline="learned")
STOP = replace(RAM, stop="learned")
DRAM = schema.Dram(**SMALL, baseline="learned")
SOFT = schema.SoftRam(**SMALL)
GAMES = 64  # some of which are won by chance
CATCH = schema.RamCatch(hidden=10, glimpse_hidden=8, glimpse_features=8)
CASES: list[tuple[Any, int, dict[str, Any]]] = [
    (RAM, 0, {"reward": "correct", "discount": 0.5}),
    (STOP, 0, {"reward": "correct", "discount": 0.5, "glimpse_cost": 0.5}),
    (DRAM, 0, {"reward": "log_likelihood"}),
    (DRAM, 2, {"reward": "log_likelihood", "cumulative_reward": False, "stop_at_mistake": False, "reader": "backward"}),
    *((model, 0, {"baseline": "leave_one_out"}) for model in (RAM, STOP, DRAM)),
    (DRAM, 2, {"baseline": "leave_one_out"}),
    *((model, 0, {"reinforce_weight": 3.0, "baseline_weight": 3.0}) for model in (RAM, STOP, DRAM)),
    (DRAM, 2, {"reinforce_weight": 3.0, "baseline_weight": 3.0}),
    (CATCH, 0, {"discount": 0.5, "location_weight": 3.0, "baseline_weight": 3.0, "entropy_weight": 3.0}),
    (SOFT, 2, {"reader": "backward", "answers": "every"}),
]
OPTIONS = [
    pytest.param(model, length, {key: value}, id=f"{model.name}-{length}-{key}-{i}")
    for i, (model, length, changes) in enumerate(CASES)
    for key, value in changes.items()
]


def learned(model: Any, length: int = 0) -> tuple[Any, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A learner, and images, noise and labels of a step."""
    game = Catch if isinstance(model, schema.RamCatch) else None
    classes = tuple("abc") if game else tuple("abcdefghij")
    info = DataInfo("any", 1, 24, 24, len(classes), classes, 0, 8, 8, 8, length, game=game)
    config = schema.Config(
        model=model, glimpses=schema.Glimpses(3, 12), trainer=schema.Trainer(compile="off"), scales=schema.Scales(1)
    )
    learner = make_learner(config, type("Data", (), {"info": info})(), False)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 1, 24, 24), dtype=torch.uint8, generator=generator)
    labels = torch.arange(8) if not length else torch.tensor([[1, 2, 10], [2, 10, -1], [3, 1, 10], [10, -1, -1]] * 2)
    noise = draw_noise(0, 0, (learner.samples, GAMES if game else 8, learner.model.steps), "cpu", learner.model.noises)
    return learner, (images, noise, draw_starts(GAMES, "test") if game else labels)


def taken(model: Any, length: int) -> Losses:
    learner, batch = learned(model, length)
    return learner.losses(*batch)


@pytest.mark.parametrize(("model", "length", "change"), OPTIONS)
def test_it_changes_the_loss(model, length, change):
    before, after = taken(model, length).total, taken(replace(model, **change), length).total
    assert abs(after - before) > 1e-4 * abs(before), change


@pytest.mark.parametrize("step", [1, 2, 3])
def test_repulsion_is_that_of_one_step_and_of_relative_centres_alone(step):
    options = {"repulsion": 0.7, "repulsion_width": 0.2, "repulsion_step": step}
    learner, (images, noise, labels) = learned(replace(SOFT, centre="relative", noise=0.0, **options))
    losses = learner.losses(images, noise, labels)
    _, trace = rollout(learner.model, images, noise)
    assert torch.allclose(trace.shifts, trace.locations.diff(dim=2, prepend=torch.zeros(1, 8, 1, 2)), atol=1e-6)
    price = repulsion(trace.shifts[:, :, step - 1], 0.7, 0.2)
    assert torch.allclose(losses.total - losses.cross_entropy, price, atol=1e-6) and price > 0.1
    losses = taken(replace(SOFT, **options), 0)
    assert losses.total == losses.cross_entropy


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (replace(DRAM, reader="backward"), "model.reader=backward is for sequences of labels, and data=mnist has one"),
        (replace(SOFT, reader="backward"), "model.reader=backward is for sequences of labels, and data=mnist has one"),
        (
            replace(SOFT, centre="relative", repulsion_step=4),
            "model.repulsion_step=4 comes after the last of 3 glimpses",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(model, says):
    with pytest.raises(Refused, match=says):
        learned(model)
    learned(replace(model, centre="absolute") if isinstance(model, schema.SoftRam) else model, 2)
    if model.reader == "forward":
        assert taken(replace(model, repulsion=0.0), 0).total.isfinite()
        learned(model, 1)  # three glimpses for the label, and three for "no more"


@pytest.mark.parametrize("stop", [True, False])
def test_targets_that_are_left_out_do_not_count(stop):
    learner, batch = learned(replace(DRAM, stop_at_mistake=stop), 2)
    some = learner.losses(*batch).total
    learner.compile_step = True  # with all of them, masked
    assert torch.allclose(some, learner.losses(*batch).total, rtol=1e-5)
