"""Rates over a run, and one step of each optimiser, against their formulas."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from attn_cli.config.schema import Optimizer
from attn_cli.learning.optimisers import build, forget, match_layouts


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0]))


def rates(config: Optimizer, steps: int, per_epoch: int) -> list[float]:
    parameter = weight()
    optimiser, schedule = build(config, [{"params": [parameter], "lr": config.lr}], steps, per_epoch)
    parameter.grad = torch.ones(1)
    seen = []
    for _ in range(steps):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_rate_falls_once_an_epoch(name):
    config = Optimizer(name, lr=0.1, warmup=0.0, decay=0.5)
    assert rates(config, 6, 2) == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


def test_one_cycle_rises_and_falls_to_almost_nothing():
    seen = rates(Optimizer("adam_onecycle", lr=0.1, warmup=0.1), 100, 10)
    assert max(seen) == pytest.approx(0.1, rel=0.01) and seen.index(max(seen)) in (9, 10)
    middle = 0.1 * (1 + math.cos(math.pi / 2)) / 2  # half-way down the cosine
    assert seen[55] == pytest.approx(middle, rel=0.05)
    assert seen[-1] < 1e-4


@pytest.mark.parametrize("warmup", [0.05, 0.1])
def test_one_cycle_of_any_number_of_steps(warmup):
    """Also of 19 or 9, of which the warm-up would be one rate."""
    for steps in range(1, 41):
        seen = rates(Optimizer("adam_onecycle", lr=0.1, warmup=warmup), steps, 1)
        assert all(0 <= rate <= 0.1 for rate in seen) and max(seen) > 0.05


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_by_hand(nesterov):
    config = Optimizer("sgd", lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01, warmup=0.0)
    parameter, value, velocity = weight(), 1.0, 0.0
    optimiser, _ = build(config, [{"params": [parameter], "lr": config.lr}], 10, 10)
    for gradient in (1.0, -2.0, 0.5):
        parameter.grad = torch.tensor([gradient])
        optimiser.step()
        total = gradient + 0.01 * value  # the decay is part of the gradient
        velocity = 0.9 * velocity + total
        value -= 0.1 * (total + 0.9 * velocity if nesterov else velocity)
        assert parameter.item() == pytest.approx(value, rel=1e-5)


def test_adam_by_hand():
    parameter, value, mean, square = weight(), 1.0, 0.0, 0.0
    config = Optimizer("adam", lr=1e-2, warmup=0.0, weight_decay=0.1)
    optimiser, _ = build(config, [{"params": [parameter], "lr": config.lr}], 10, 10)
    for t, gradient in enumerate((1.0, -2.0, 0.5), start=1):
        parameter.grad = torch.tensor([gradient])
        optimiser.step()
        value *= 1 - 1e-2 * 0.1  # decoupled
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        value -= 1e-2 * (mean / (1 - 0.9**t)) / (math.sqrt(square / (1 - 0.999**t)) + 1e-8)
        assert parameter.item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("name", ["adam_onecycle", "adam", "sgd"])
def test_each_group_has_its_own_rate(name):
    config = Optimizer(name, lr=0.1, warmup=0.2 if name == "adam_onecycle" else 0.0)
    optimiser, schedule = build(config, [{"params": [weight()], "lr": rate} for rate in (0.1, 0.03)], 10, 5)
    for _ in range(10):
        first, second = (group["lr"] for group in optimiser.param_groups)
        assert second == pytest.approx(0.3 * first)
        optimiser.step()
        schedule.step()


def steps(optimiser, weights, count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        for parameter in weights:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(memory_format=torch.channels_last)
        optimiser.step()


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_moments_from_a_checkpoint_fit_weights_with_the_channels_last(name):
    """A checkpoint has its numbers in the order of their indices, whatever that of the weights is."""

    def made():
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))]
        return weights, build(Optimizer(name, lr=0.1), [{"params": weights, "lr": 0.1}], 10, 10)[0]

    ours, optimiser = made()
    steps(optimiser, ours, 2)
    theirs, other = made()
    theirs[0].data.copy_(ours[0].data)
    state = copy.deepcopy(optimiser.state_dict())
    for moments in state["state"].values():
        moments.update({key: value.contiguous() for key, value in moments.items()})
    other.load_state_dict(state)
    match_layouts(other)
    for each, weights in ((optimiser, ours), (other, theirs)):
        steps(each, weights, 1)
    assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_what_is_forgotten_goes_on_like_new_weights(name):
    """Also of SGD, whose fused step takes the buffers of all weights or of none."""
    config = Optimizer(name, lr=0.1, momentum=0.9)
    both = [weight(), weight()]
    optimiser, _ = build(config, [{"params": both, "lr": 0.1}], 10, 10)
    both[0].grad = torch.tensor([3.0])
    optimiser.step()  # the second has no gradient yet
    forget(optimiser, both)
    new = weight()
    first, _ = build(config, [{"params": [new], "lr": 0.1}], 10, 10)
    for parameter in (*both, new):
        with torch.no_grad():
            parameter.fill_(1.0)
        parameter.grad = torch.tensor([0.5])
    optimiser.step()
    first.step()
    assert both[0].item() == both[1].item() == new.item() < 1
