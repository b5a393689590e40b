"""Optimisers and their schedules, by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from attn_cli.config.schema import Optimizer


def build(
    config: Optimizer, parameters: Iterable[nn.Parameter], total_steps: int, steps_per_epoch: int
) -> tuple[Any, Any]:
    """The optimiser and a scheduler that is stepped once per training step.

    `adam_onecycle`: Adam (decoupled weight decay), linear-cosine warm-up over a share `warmup` of the steps,
    cosine to zero. `adam`: the same without, `sgd`: with momentum (RAM, section 4.1: 0.9); the rates of both are
    multiplied by `decay` after each epoch.
    """
    parameters = list(parameters)
    if config.name == "sgd":
        optimiser: torch.optim.Optimizer = torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
    else:
        optimiser = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    if config.name == "adam_onecycle":
        return optimiser, torch.optim.lr_scheduler.OneCycleLR(
            optimiser, config.lr, total_steps=total_steps + 1, pct_start=config.warmup, cycle_momentum=False
        )
    return optimiser, torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: config.decay ** (step // max(1, steps_per_epoch))
    )
