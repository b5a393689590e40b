"""Objectives: pure functions of (logits, trace, targets). Nothing here knows which model made the trace.

Legend: M samples, B batch, K classes, A location actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_cli.models.trace import Trace


@dataclass(frozen=True)
class Losses:
    """Scalars; everything but `total` is detached and for the log."""

    total: Tensor
    cross_entropy: Tensor
    reinforce: Tensor
    baseline: Tensor
    reward: Tensor  # mean reward
    error: Tensor  # share of wrong paths, 0…1


def rewards(logits_MBK: Tensor, targets_B: Tensor, kind: str) -> Tensor:
    """Terminal reward (M, B), without gradient: `correct` 0/1 (RAM, section 4.1), `probability` of the true class,
    or its `log_likelihood` (DRAM, eq. 10).
    """
    logits = logits_MBK.detach()
    if kind == "correct":
        return (logits.argmax(-1) == targets_B).to(logits.dtype)
    M = logits.shape[0]
    log_p = F.log_softmax(logits, -1).gather(-1, targets_B.expand(M, -1).unsqueeze(-1))[..., 0]
    return log_p.exp() if kind == "probability" else log_p


def leave_one_out(values_MBA: Tensor) -> Tensor:
    """The mean over the other samples of the same image: (M, B, A) → (M, B, A); independent of a sample's own
    actions.
    """
    M = values_MBA.shape[0]
    return (values_MBA.sum(0, keepdim=True) - values_MBA) / (M - 1)


def hybrid(
    logits_MBK: Tensor,
    trace: Trace,
    targets_B: Tensor,
    *,
    reward: str = "correct",
    discount: float = 1.0,
    baseline: str = "learned",
    reinforce_weight: float = 1.0,
    baseline_weight: float = 1.0,
) -> Losses:
    """The hybrid supervised loss of RAM, section 3.2: cross-entropy for the answer, REINFORCE for the locations.

    REINFORCE is summed over the actions of a path and averaged over paths and images; the cross-entropy and the squared
    error of the baseline are means. An action taken d actions before the last one has the return discount^d · reward.
    """
    M, B, K = logits_MBK.shape
    A = trace.log_probs.shape[-1]
    cross_entropy = F.cross_entropy(logits_MBK.reshape(M * B, K), targets_B.repeat(M))
    reward_MB = rewards(logits_MBK, targets_B, reward)
    error = (logits_MBK.detach().argmax(-1) != targets_B).to(logits_MBK.dtype).mean()
    zero = cross_entropy.detach() * 0
    if A == 0:
        return Losses(cross_entropy, cross_entropy.detach(), zero, zero, reward_MB.mean(), error)
    powers = discount ** torch.arange(A - 1, -1, -1, device=logits_MBK.device, dtype=logits_MBK.dtype)
    returns_MBA = reward_MB[..., None] * powers
    learned = baseline == "learned"
    b_MBA = trace.baselines.detach() if learned else leave_one_out(returns_MBA)
    reinforce = -(trace.log_probs * (returns_MBA - b_MBA)).sum(-1).mean()  # eq. 1 with a baseline
    fit = F.mse_loss(trace.baselines, returns_MBA) if learned else zero
    total = cross_entropy + reinforce_weight * reinforce + baseline_weight * fit
    return Losses(total, cross_entropy.detach(), reinforce.detach(), fit.detach(), reward_MB.mean(), error)
