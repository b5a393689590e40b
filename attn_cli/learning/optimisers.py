"""Optimisers and their schedules, by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from attn_cli.config.schema import Optimizer


def build(config: Optimizer, groups: list[dict[str, Any]], total_steps: int, steps_per_epoch: int) -> tuple[Any, Any]:
    """The optimiser and a scheduler that is stepped once per training step. Each of `groups` has `params` and its `lr`.

    `adam_onecycle`: Adam (decoupled weight decay), half a cosine up from lr/25 over a share `warmup` of the steps,
    half a cosine down to zero. `adam`: the same without, `sgd`: with momentum (RAM, section 4.1: 0.9); the rates of
    both are multiplied by `decay` after each epoch.
    """
    if config.name == "sgd":
        optimiser: torch.optim.Optimizer = torch.optim.SGD(
            groups,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
        if config.momentum:  # torch's fused step takes all buffers or none; weights may get a gradient later
            for parameter in (p for group in groups for p in group["params"] if p.requires_grad):
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    else:
        optimiser = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    if config.name == "adam_onecycle":
        rates = total_steps + 1  # the last one is never used
        return optimiser, torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            [group["lr"] for group in groups],
            total_steps=rates,
            pct_start=config.warmup if config.warmup * rates != 1 else 0.0,  # torch divides by zero in a phase of 1
            cycle_momentum=False,
        )
    return optimiser, torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: config.decay ** (step // max(1, steps_per_epoch))
    )


def match_layouts(optimiser: torch.optim.Optimizer) -> None:
    """Give what was read from a checkpoint the strides of its weights, which may have the channels last: a fused step
    goes through the memory of both side by side.
    """
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


def forget(optimiser: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter]) -> None:
    """As if these had never been changed."""
    for parameter in parameters:
        for value in optimiser.state.get(parameter, {}).values():
            value.zero_()
