"""The sequence objective against cases worked by hand and against the exact expectation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from attn_cli.learning.objectives import alive_targets, sequence_baseline, sequence_hybrid
from attn_cli.models.trace import Trace

END = 2  # two labels, 0 and 1, and the terminal class


def trace_of(log_probs, logits, baselines=None):
    zeros = torch.zeros(*log_probs.shape, 2)
    return Trace(zeros, log_probs, torch.zeros_like(log_probs) if baselines is None else baselines, logits)


def answers(*labels: list[int]) -> torch.Tensor:
    """Logits (M, 1, S, 3) that say these labels with near certainty, a row per path."""
    return 20.0 * F.one_hot(torch.tensor(labels), 3).float()[:, None]


TARGETS = torch.tensor([[0, 1, END, -1]])  # S = 4, of which three exist


@pytest.mark.parametrize(
    ("said", "stop", "counts"),
    [
        ([0, 1, 2, 0], True, [1, 1, 1, 0]),  # all right: the terminal class counts, what follows does not
        ([0, 0, 2, 0], True, [1, 1, 0, 0]),  # the first mistake still counts
        ([1, 1, 2, 0], True, [1, 0, 0, 0]),
        ([1, 1, 2, 0], False, [1, 1, 1, 0]),
    ],
)
def test_which_targets_count(said, stop, counts):
    right = answers(said).argmax(-1) == TARGETS.clamp(min=0)
    assert alive_targets(right, TARGETS, stop)[0, 0].int().tolist() == counts


@pytest.mark.parametrize(
    ("said", "cumulative", "stop", "expected"),
    [
        ([0, 1, 2, 0], True, True, [1, 2, 3, 0]),  # R_s = (s − 1) + 1
        ([0, 0, 2, 0], True, True, [1, 1, 0, 0]),
        ([1, 1, 2, 0], True, False, [0, 1, 2, 0]),
        ([0, 1, 2, 0], False, True, [1, 1, 1, 0]),
    ],
)
def test_rewards_by_hand(said, cumulative, stop, expected):
    """Without a baseline the gradient of each of the N = 2 log-probabilities of target s is −R_s."""
    log_probs = torch.zeros(1, 1, 8, requires_grad=True)
    logits = answers(said)
    losses = sequence_hybrid(
        logits, trace_of(log_probs, logits), TARGETS, cumulative_reward=cumulative, stop_at_mistake=stop
    )
    losses.total.backward()
    wanted = torch.tensor(expected, dtype=torch.float).repeat_interleave(2)
    torch.testing.assert_close(-log_probs.grad[0, 0], wanted)
    assert losses.error.item() == float(said[:3] != [0, 1, 2])
    counted = alive_targets(logits.argmax(-1) == TARGETS.clamp(min=0), TARGETS, stop)[0, 0]
    right = [a == b for a, b, counts in zip(said, [0, 1, 2], counted, strict=False) if counts]
    assert losses.reward.item() == pytest.approx(sum(right) / len(right))


def test_cross_entropy_ends_after_the_first_mistake():
    logits = torch.zeros(1, 1, 4, 3, requires_grad=True)  # says 0 everywhere: right, wrong, wrong
    losses = sequence_hybrid(logits, trace_of(torch.zeros(1, 1, 4), logits), TARGETS)
    losses.total.backward()
    assert losses.cross_entropy.item() == pytest.approx(2 * math.log(3))
    assert [bool(g.abs().sum() > 0) for g in logits.grad[0, 0]] == [True, True, False, False]


def test_the_learned_baseline_regresses_the_reward_of_targets_that_count():
    logits, baselines = answers([0, 0, 2, 0]), torch.zeros(1, 1, 4, requires_grad=True)
    losses = sequence_hybrid(logits, trace_of(torch.zeros(1, 1, 4), logits, baselines), TARGETS)
    losses.total.backward()
    assert losses.baseline.item() == pytest.approx(1.0)  # R = 1, 1 against 0, 0
    assert baselines.grad[0, 0].tolist() == [-1.0, -1.0, 0.0, 0.0]


def test_leave_one_out_averages_paths_that_are_alive():
    said = answers([0, 1, 2, 0], [0, 0, 2, 0], [1, 1, 2, 0])
    right = said.argmax(-1) == TARGETS.clamp(min=0)
    alive, own = alive_targets(right, TARGETS, True), right.float()
    b = sequence_baseline(own, own.cumsum(-1), alive)[:, 0]
    assert b[:, 0].tolist() == [0.5, 0.5, 1.0]  # others at the first target: {1, 0}, {1, 0}, {1, 1}
    assert b[:2, 1].tolist() == [1.0, 2.0]  # at the second the third path is no longer alive
    assert b[0, 2].item() == 2.0  # alone: what it had earned before


def normal_above(mean: float, sigma: float) -> tuple[float, float]:
    """P(x > 0) of N(mean, σ²), and its derivative by the mean."""
    z = mean / sigma
    return 0.5 * (1 + math.erf(z / math.sqrt(2))), math.exp(-0.5 * z * z) / (sigma * math.sqrt(2 * math.pi))


@pytest.mark.parametrize("baseline", ["learned", "leave_one_out"])
def test_the_gradient_equals_the_exact_expectation(baseline):
    """Two targets and one action each, right when it lands above 0. Exactly: d/dμ₁ = p₁', d/dμ₂ = p₁ p₂'."""
    sigma, means, M, B = 0.5, (0.1, -0.2), 4, 250_000
    mu = torch.tensor(means, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(M, B, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (mu + sigma * noise).detach()
    log_probs = -0.5 * ((x - mu) / sigma) ** 2
    hit = x > 0
    logits = 50.0 * F.one_hot(torch.where(hit, torch.tensor([0, END]), 1), 3).double()
    trace = trace_of(log_probs, logits, torch.full((M, B, 2), 0.3, dtype=torch.float64))
    targets = torch.tensor([0, END]).expand(B, 2)
    sequence_hybrid(logits, trace, targets, baseline=baseline).total.backward()
    (p1, d1), (_, d2) = (normal_above(mean, sigma) for mean in means)
    assert -mu.grad[0].item() == pytest.approx(d1, rel=0.02)
    assert -mu.grad[1].item() == pytest.approx(p1 * d2, rel=0.02)
