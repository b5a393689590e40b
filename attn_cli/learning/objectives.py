"""Objectives: pure functions of (logits, trace, targets). Nothing here knows which model made the trace.

Legend: M samples, B batch, K classes, A location actions, S targets of a sequence, N = A / S actions for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    reward: Tensor  # mean reward, less what glimpses cost
    error: Tensor  # share of wrong paths, 0…1


def rewards(logits_K: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Reward (…) of answers with logits (…, K), without gradient: `correct` 0/1 (RAM, section 4.1; DRAM, eq. 11),
    `probability` of the true class, or its `log_likelihood` (DRAM, eq. 10). Targets broadcast.
    """
    logits = logits_K.detach()
    if kind == "correct":
        return (logits.argmax(-1) == targets).to(logits.dtype)
    log_p = _log_likelihood(logits, targets)
    return log_p.exp() if kind == "probability" else log_p


def _log_likelihood(logits_K: Tensor, targets: Tensor) -> Tensor:
    index = targets.expand(logits_K.shape[:-1]).unsqueeze(-1)
    return F.log_softmax(logits_K, -1).gather(-1, index)[..., 0]


def leave_one_out(values_MBA: Tensor) -> Tensor:
    """The mean over the other samples of the same image: (M, B, A) → (M, B, A); independent of a sample's own
    actions.
    """
    M = values_MBA.shape[0]
    return (values_MBA.sum(0, keepdim=True) - values_MBA) / (M - 1)


def _advantages(returns_MBA: Tensor, trace: Trace, baseline: str) -> Tensor:
    """The returns less the learned baseline, which gets no gradient here, or less those of the image's other paths."""
    return returns_MBA - (trace.baselines.detach() if baseline == "learned" else leave_one_out(returns_MBA))


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
    reinforce = -(trace.log_probs * _advantages(returns_MBA, trace, baseline)).sum(-1).mean()  # eq. 1 with a baseline
    fit = F.mse_loss(trace.baselines, returns_MBA) if baseline == "learned" else zero
    total = cross_entropy + reinforce_weight * reinforce + baseline_weight * fit
    return Losses(total, cross_entropy.detach(), reinforce.detach(), fit.detach(), reward_MB.mean(), error)


def stopping(
    logits_MBK: Tensor,
    trace: Trace,
    targets_B: Tensor,
    *,
    reward: str = "correct",
    discount: float = 1.0,
    baseline: str = "learned",
    reinforce_weight: float = 1.0,
    baseline_weight: float = 1.0,
    glimpse_cost: float = 0.0,
) -> Losses:
    """The hybrid loss of a model that decides itself when to answer (RAM, section 5), A = N − 1 decisions.

    Two answers of a path count, the one that is given and the one after all N glimpses, which may be the same. The
    cross-entropy is the sum of both, each averaged over paths and images. A location that is looked at before the
    answer is given has the mean of both rewards as its return, one after that the reward of the last answer, each
    times discount^d, d glimpses later. A decision has the reward of the answer that is given, likewise, less
    `glimpse_cost` for each glimpse that was used; decisions after it count for nothing. REINFORCE is summed over
    decisions and locations. A learned baseline predicts the return of a location and serves both.
    """
    assert trace.step_logits is not None and trace.glimpses is not None and trace.stop_log_probs is not None
    A, used = trace.stop_log_probs.shape[-1], trace.glimpses[..., None]
    action = torch.arange(A, device=logits_MBK.device)
    two_MBK = torch.stack([logits_MBK, trace.step_logits[:, :, -1]])
    cross_entropy = -_log_likelihood(two_MBK, targets_B).mean((1, 2)).sum()
    given_MB1, last_MB1 = rewards(two_MBK, targets_B, reward)[..., None]
    price_MB1 = glimpse_cost * used
    decision_MBA = given_MB1 * discount ** (used - 1 - action).clamp(min=0) - price_MB1
    there_MBA = last_MB1 * discount ** (A - 1 - action)
    before_MBA = given_MB1 * discount ** (used - 2 - action).clamp(min=0)
    location_MBA = torch.where(action < used - 1, (before_MBA + there_MBA) / 2, there_MBA)
    reinforce = -(trace.stop_log_probs * _advantages(decision_MBA, trace, baseline)).sum(-1)
    if trace.log_probs.shape[-1]:
        reinforce = reinforce - (trace.log_probs * _advantages(location_MBA, trace, baseline)).sum(-1)
    fit = F.mse_loss(trace.baselines, location_MBA) if baseline == "learned" else cross_entropy.detach() * 0
    total = cross_entropy + reinforce_weight * reinforce.mean() + baseline_weight * fit
    error = (logits_MBK.detach().argmax(-1) != targets_B).to(logits_MBK.dtype).mean()
    worth = (given_MB1 - price_MB1).mean()
    return Losses(total, cross_entropy.detach(), reinforce.mean().detach(), fit.detach(), worth, error)


def control(
    trace: Trace,
    *,
    discount: float = 1.0,
    location_weight: float = 1.0,
    baseline_weight: float = 1.0,
    entropy_weight: float = 0.0,
) -> Losses:
    """REINFORCE for the locations and actions of games that end with a reward (RAM, section 3.2, eq. 1).

    Summed over a game and averaged over games; what is done d frames before the last action has the return
    discount^d · reward. A location is chosen with the action of the frame before it, from the same state. The entropy
    of the actions is summed and averaged likewise, the squared error of the baseline is a mean.
    """
    assert trace.rewards is not None and trace.step_logits is not None
    assert trace.actions is not None and trace.action_log_probs is not None and trace.action_baselines is not None
    N = trace.actions.shape[-1]
    since = torch.arange(N, -1, -1, device=trace.rewards.device)  # of the first location, then of every frame
    returns_MBN = trace.rewards[..., None] * discount**since
    acted = -(trace.action_log_probs * (returns_MBN[..., 1:] - trace.action_baselines.detach())).sum(-1).mean()
    fits = [trace.action_baselines - returns_MBN[..., 1:]]
    looked = acted.detach() * 0
    if trace.log_probs.shape[-1]:
        looked = -(trace.log_probs * (returns_MBN[..., :-1] - trace.baselines.detach())).sum(-1).mean()
        fits.append(trace.baselines - returns_MBN[..., :-1])
    fit = torch.cat(fits, -1).square().mean()
    reinforce = acted + location_weight * looked
    total = reinforce + baseline_weight * fit
    if entropy_weight:
        log_p = trace.step_logits.log_softmax(-1)
        total = total + entropy_weight * (log_p.exp() * log_p).sum(-1).sum(-1).mean()
    caught = trace.rewards.mean()
    return Losses(total, fit.detach() * 0, reinforce.detach(), fit.detach(), caught, 1 - caught)


def supervised(logits_MBSK: Tensor, targets_BS: Tensor) -> Losses:
    """Cross-entropy alone, for models without a policy: summed over the targets that exist (not -1), averaged over
    paths and images. One target: logits (M, B, K), targets (B,).
    """
    if targets_BS.dim() == 1:
        logits_MBSK, targets_BS = logits_MBSK[:, :, None], targets_BS[:, None]
    there = targets_BS >= 0
    targets = targets_BS.clamp(min=0)
    cross_entropy = -(_log_likelihood(logits_MBSK, targets) * there).sum(-1).mean()
    right = logits_MBSK.detach().argmax(-1) == targets
    error = (~right & there).any(-1).to(logits_MBSK.dtype).mean()
    zero = cross_entropy.detach() * 0
    reward = (right & there).sum() / there.expand_as(right).sum()
    return Losses(cross_entropy, cross_entropy.detach(), zero, zero, reward, error)


def supervised_steps(step_logits_MBNK: Tensor, logits_MBSK: Tensor, targets_BS: Tensor) -> Losses:
    """Cross-entropy of the answers after every glimpse, summed over them and averaged over paths and images (RSAM,
    section 2); of a sequence, each target counts for all of its glimpses. `logits` are the concluding answers, whose
    errors are counted. One target: logits (M, B, K), targets (B,).
    """
    concluding = supervised(logits_MBSK.detach(), targets_BS)
    targets = targets_BS.view(len(targets_BS), -1)
    each = step_logits_MBNK.shape[2] // targets.shape[1]
    losses = supervised(step_logits_MBNK, targets.repeat_interleave(each, 1))
    return replace(losses, reward=concluding.reward, error=concluding.error)


def repulsion(shift_MB2: Tensor, height: float, width: float) -> Tensor:
    """R = a·exp(−(Δc_x² + Δc_y²)/b), averaged over paths and images: a price for staying where one is (Semeniuta &
    Barth, eq. 5). `height` is a, `width` is b.
    """
    return height * torch.exp(-shift_MB2.square().sum(-1) / width).mean()


def alive_targets(right_MBS: Tensor, targets_BS: Tensor, stop_at_mistake: bool) -> Tensor:
    """Which targets count, bool (M, B, S): those that exist, and if asked none after a path's first mistake, which
    itself still counts (DRAM, section 3.2).
    """
    there = (targets_BS >= 0).expand_as(right_MBS)
    if not stop_at_mistake:
        return there
    before = torch.ones_like(right_MBS)
    before[..., 1:] = right_MBS[..., :-1].int().cumprod(-1).bool()
    return there & before


def still_counting(targets_BS: Tensor, samples: int, stop_at_mistake: bool) -> Callable[[int, Tensor, Tensor], Tensor]:
    """For `compact_rollout`: the images that have another target which `alive_targets` counts on any path."""
    right_MB = torch.ones(samples, targets_BS.shape[0], dtype=torch.bool, device=targets_BS.device)

    def going(s: int, logits_MbK: Tensor, left_b: Tensor) -> Tensor:
        there = targets_BS[left_b, s + 1] >= 0
        if not stop_at_mistake:
            return there
        right_MB[:, left_b] &= logits_MbK.argmax(-1) == targets_BS[left_b, s]
        return there & right_MB[:, left_b].any(0)

    return going


def sequence_baseline(own_MBS: Tensor, returns_MBS: Tensor, alive_MBS: Tensor) -> Tensor:
    """Leave-one-out: the mean return of the image's other paths that are still alive at s; where there are none, what
    the path itself had earned before s. Neither depends on the path's own actions for s. `own`: reward of s alone.
    """
    alive = alive_MBS.to(returns_MBS.dtype)
    earned = returns_MBS * alive
    others = alive.sum(0, keepdim=True) - alive
    mean = (earned.sum(0, keepdim=True) - earned) / others.clamp(min=1)
    return torch.where(others > 0, mean, returns_MBS - own_MBS)


def sequence_hybrid(
    logits_MBSK: Tensor,
    trace: Trace,
    targets_BS: Tensor,
    *,
    reward: str = "correct",
    cumulative_reward: bool = True,
    stop_at_mistake: bool = True,
    baseline: str = "learned",
    reinforce_weight: float = 1.0,
    baseline_weight: float = 1.0,
) -> Losses:
    """The bound of DRAM, eq. 15, with the reward of eq. 16: R_s = Σ_{j ≤ s} R_j for the N actions before answer s.

    Targets (B, S) hold labels, the terminal class, then -1. Cross-entropy and REINFORCE are summed over the targets
    that count and averaged over paths and images; the squared error of the baseline is a mean over the actions that
    count.
    """
    M, B, S, _ = logits_MBSK.shape
    targets = targets_BS.clamp(min=0)
    right = logits_MBSK.detach().argmax(-1) == targets
    alive = alive_targets(right, targets_BS, stop_at_mistake)
    count = alive.to(logits_MBSK.dtype)
    cross_entropy = -(_log_likelihood(logits_MBSK, targets) * count).sum(-1).mean()
    own = rewards(logits_MBSK, targets, reward)
    returns = own.cumsum(-1) if cumulative_reward else own
    N = trace.log_probs.shape[-1] // S
    learned = baseline == "learned"
    b = None if learned else sequence_baseline(own, returns, alive)
    returns_A, count_A = returns.repeat_interleave(N, -1), count.repeat_interleave(N, -1)
    b_A = trace.baselines.detach() if b is None else b.repeat_interleave(N, -1)
    reinforce = -(trace.log_probs * (returns_A - b_A) * count_A).sum(-1).mean()
    zero = cross_entropy.detach() * 0
    fit = ((trace.baselines - returns_A).square() * count_A).sum() / count_A.sum() if learned else zero
    total = cross_entropy + reinforce_weight * reinforce + baseline_weight * fit
    wrong = (~right & (targets_BS >= 0)).any(-1).to(logits_MBSK.dtype).mean()
    mean_reward = (own * count).sum() / count.sum()
    return Losses(total, cross_entropy.detach(), reinforce.detach(), fit.detach(), mean_reward, wrong)
