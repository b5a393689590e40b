"""When a model has seen enough: a Bernoulli action "answer now" after every glimpse but the last one. RAM (Mnih et al.
2014, arXiv 1406.6247), section 5, which says that there can be such an action, trained by the same policy gradient.

Choices that the paper leaves open:
 1. A path is a sequence of decisions: after glimpse a + 1 it answers or goes on.
 2. After N glimpses it answers in any case, which is no decision.
 3. In training all N glimpses are run, and the answer after the last one counts beside the one that is given, for the
    locations, too: so it knows what going on would have been worth, and what late glimpses show is learned from every
    path. Decisions after the answer are masked. inference/stopping runs no further than needed. Cross-entropy after
    every glimpse was tried and is worse: the network then fits what a first glimpse at random cannot tell.
 4. The decision is made from the state and from the log-odds of the likeliest class, which no gradient goes through.
 5. Along the mean-location path it answers as soon as that is likelier than going on.
 6. The logit of answering stays within ±SUREST, so that either decision keeps a chance of 2 %. At first it never pays
    to answer early, and a policy that is sure of that would not try again once it does: without the bound all 6
    glimpses were used to the end (MNIST, a price of 0.01, 32 epochs, with the given answer alone in the loss).

Legend: R rows (paths), A = N − 1 decisions, N glimpses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SUREST = 4.0  # logit of answering, either way; a chance of 98.2 %
MOST = 12.0  # log-odds of an answer that the decision is told of


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


def sureness(logits_K: Tensor) -> Tensor:
    """Log-odds (…, 1) of the likeliest class, between ±MOST, in float32 or better and without gradient."""
    logits = logits_K.detach()
    log_p = F.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)
    top = log_p.argmax(-1, keepdim=True)
    others = log_p.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    return (log_p.gather(-1, top) - others).clamp(-MOST, MOST)


def decisions(logits_RA: Tensor, answers_RA: Tensor) -> tuple[Tensor, Tensor]:
    """The glimpses that each path uses, int64 (R,) from 1 to N; and the log-probability (R, A) of each decision, 0 for
    those that it does not come to. `answers`: whether it would answer.
    """
    went_on = (~answers_RA).long().cumprod(1).bool()
    glimpses = 1 + went_on.sum(1)
    taken = torch.arange(logits_RA.shape[1], device=glimpses.device) < glimpses[:, None]
    going = torch.where(went_on, F.logsigmoid(-logits_RA), F.logsigmoid(logits_RA))
    return glimpses, torch.where(taken, going, 0.0)
