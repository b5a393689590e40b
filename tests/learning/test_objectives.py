"""Objectives by hand and against exact expectations."""

from __future__ import annotations

import math

import pytest
import torch

from attn_cli.learning.objectives import hybrid, leave_one_out, rewards, supervised
from attn_cli.models.trace import Trace


def make_trace(log_probs, baselines, logits):
    M, B, A = log_probs.shape
    return Trace(torch.zeros(M, B, A + 1, 2), log_probs, baselines, logits)


def test_hybrid_loss_by_hand():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])  # M 1, B 2, K 2: first right, second wrong
    targets = torch.tensor([0, 0])
    log_probs = torch.tensor([[[-1.0, -2.0], [-3.0, -0.5]]])
    baselines = torch.tensor([[[0.5, 0.25], [0.5, 1.0]]])
    losses = hybrid(
        logits, make_trace(log_probs, baselines, logits), targets, reinforce_weight=0.1, baseline_weight=2.0
    )
    ce = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    first = -(-1.0 * 0.5 + -2.0 * 0.75)
    second = -(-3.0 * -0.5 + -0.5 * -1.0)
    fit = (0.5**2 + 0.75**2 + 0.5**2 + 1.0) / 4
    assert losses.cross_entropy.item() == pytest.approx(ce)
    assert losses.reinforce.item() == pytest.approx((first + second) / 2)
    assert losses.baseline.item() == pytest.approx(fit)
    assert losses.total.item() == pytest.approx(ce + 0.1 * (first + second) / 2 + 2 * fit)
    assert losses.reward.item() == 0.5
    assert losses.error.item() == 0.5


def test_discount_gives_earlier_actions_less():
    logits = torch.tensor([[[1.0, 0.0]]])
    trace = make_trace(torch.tensor([[[-1.0, -1.0, -1.0]]]), torch.zeros(1, 1, 3), logits)
    losses = hybrid(logits, trace, torch.tensor([0]), discount=0.5)
    assert losses.reinforce.item() == pytest.approx(0.25 + 0.5 + 1.0)


def test_rewards():
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]], requires_grad=True)
    targets = torch.tensor([1, 1])
    assert rewards(logits, targets, "correct").tolist() == [[1.0, 0.0]]
    torch.testing.assert_close(rewards(logits, targets, "probability"), torch.tensor([[0.75, 0.5]]))
    torch.testing.assert_close(rewards(logits, targets, "log_likelihood"), torch.tensor([[0.75, 0.5]]).log())
    assert not rewards(logits, targets, "probability").requires_grad


def test_leave_one_out_by_hand():
    values = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(4, 1, 1)
    assert leave_one_out(values).flatten().tolist() == pytest.approx([2 / 3, 1.0, 2 / 3, 2 / 3])


def exact_gradient(mean, sigma, reward):
    """d/dμ E[reward(x)], x ~ N(μ, σ²), by quadrature."""
    x = torch.linspace(mean - 10 * sigma, mean + 10 * sigma, 200_001, dtype=torch.float64)
    density = torch.exp(-0.5 * ((x - mean) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    return torch.trapezoid(density * (x - mean) / sigma**2 * reward(x), x).item()


@pytest.mark.parametrize(("baseline", "samples"), [("learned", 1), ("leave_one_out", 4)])
def test_reinforce_gradient_equals_the_exact_expectation(baseline, samples):
    """A one-dimensional Gaussian policy rewarded for landing right of 0.2, with a million draws."""
    sigma, mean, edge, draws = 0.3, 0.05, 0.2, 1_000_000
    generator = torch.Generator().manual_seed(0)
    mu = torch.tensor(mean, dtype=torch.float64, requires_grad=True)
    x = mean + sigma * torch.randn(samples, draws // samples, 1, generator=generator, dtype=torch.float64)
    log_probs = -0.5 * ((x - mu) / sigma) ** 2
    hit = (x[..., 0] > edge).double()
    logits = torch.stack([1 - hit, hit], -1) * 50  # the answer is right exactly when the sample is right of the edge
    trace = make_trace(log_probs, torch.full_like(log_probs, 0.37).detach(), logits)
    hybrid(logits, trace, torch.ones(draws // samples, dtype=torch.long), baseline=baseline).total.backward()
    expected = exact_gradient(mean, sigma, lambda v: (v > edge).double())
    assert -mu.grad.item() == pytest.approx(expected, rel=0.01)


def test_leave_one_out_has_less_variance_and_the_same_mean_as_no_baseline():
    sigma, generator = 0.3, torch.Generator().manual_seed(1)
    x = sigma * torch.randn(8, 20_000, 1, generator=generator, dtype=torch.float64)
    score, reward = x / sigma**2, (x > -0.3).double()  # reward is mostly 1: a baseline pays
    plain = (score * reward).mean(0)
    reduced = (score * (reward - leave_one_out(reward))).mean(0)
    assert reduced.mean().item() == pytest.approx(plain.mean().item(), abs=0.02)
    assert reduced.var() < 0.5 * plain.var()


def test_no_location_actions_leaves_only_the_cross_entropy():
    logits = torch.randn(1, 3, 4)
    losses = hybrid(logits, make_trace(torch.zeros(1, 3, 0), torch.zeros(1, 3, 0), logits), torch.tensor([0, 1, 2]))
    assert losses.total.item() == pytest.approx(losses.cross_entropy.item())
    assert losses.reinforce.item() == 0


def test_supervised_counts_the_targets_that_exist():
    """Three images of one, two and no label before the end, 2; what is said behind it does not matter."""
    targets = torch.tensor([[1, 2, -1], [0, 1, 2], [2, -1, -1]])
    said = torch.tensor([[1, 2, 1], [0, 0, 2], [2, 0, 0]])
    losses = supervised(20.0 * torch.nn.functional.one_hot(said, 3).float()[None], targets)
    assert losses.cross_entropy.item() == pytest.approx(20 / 3, rel=1e-4)
    assert losses.error.item() == pytest.approx(1 / 3)  # images in which anything is wrong
    assert losses.reward.item() == pytest.approx(5 / 6)  # of the answers that were asked for
