"""When a model has seen enough: a Bernoulli action "answer now" after every glimpse but the last one. RAM (Mnih et al.
2014, arXiv 1406.6247), section 5, which says that there can be such an action, trained by the same policy gradient.

Choices that the paper leaves open:
 1. A path is a sequence of decisions: after glimpse a + 1 it answers or goes on, and if it goes on it also chooses the
    next location. Both come from the same state, so they are one action with one log-probability and one baseline.
 2. After N glimpses it answers in any case, which is no decision.
 3. In training all N glimpses are run, with fixed shapes, and what comes after the answer is masked; inference/stopping
    runs no further than needed.
 4. Along the mean-location path it answers as soon as that is likelier than going on.
 5. The logit of answering stays within ±SUREST, so that either decision keeps a chance of 2 %. At first it never pays
    to answer early, and a policy that is sure of that would not try again once it does: without the bound all 6
    glimpses were used to the end (MNIST, a price of 0.01, 32 epochs).

Legend: R rows (paths), A = N − 1 decisions, N glimpses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SUREST = 4.0  # logit of answering, either way; a chance of 98.2 %


class Bounded(torch.autograd.Function):
    """Logits within ±SUREST. Where they reach it, of the gradient only that is left which leads back inside."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        return logits.clamp(-SUREST, SUREST)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        outward = (logits <= -SUREST) & (gradient > 0) | (logits >= SUREST) & (gradient < 0)
        return gradient.masked_fill(outward, 0.0)


def enough(logits: Tensor, noise: Tensor, greedy: bool) -> Tensor:
    """Whether to answer now, bool (…): with the probability sigmoid(logit), by a standard normal number each; or
    `greedy`, if that is above 1/2.
    """
    if greedy:
        return logits > 0
    return 0.5 + 0.5 * torch.erf(noise * 0.5**0.5) < logits.sigmoid()


def decisions(logits_RA: Tensor, locations_RA: Tensor | None, answers_RA: Tensor) -> tuple[Tensor, Tensor]:
    """The glimpses that each path uses, int64 (R,) from 1 to N; and the log-probability (R, A) of each decision, 0 for
    those that it does not come to. `answers`: whether it would answer; `locations`: log-density of the next location.
    """
    went_on = (~answers_RA).long().cumprod(1).bool()
    glimpses = 1 + went_on.sum(1)
    taken = torch.arange(logits_RA.shape[1], device=glimpses.device) < glimpses[:, None]
    on = F.logsigmoid(-logits_RA) if locations_RA is None else F.logsigmoid(-logits_RA) + locations_RA
    return glimpses, torch.where(went_on, on, torch.where(taken, F.logsigmoid(logits_RA), 0.0))
