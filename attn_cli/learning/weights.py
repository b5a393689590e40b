"""Whether weights and optimiser states that were read from elsewhere fit a model and its optimisers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attn_cli.errors import Refused, nearest


def check_weights(module: nn.Module, state_dict: dict[str, Tensor], source: str | Path) -> None:
    """Refuse, naming both sides, unless keys, shapes and dtypes of `state_dict` are those of `module`."""
    own = module.state_dict()
    unknown = [key for key in state_dict if key not in own]
    if unknown:
        raise Refused(f"{source} holds the weight {unknown[0]!r}, which this model has not.{nearest(unknown[0], own)}")
    missing = [key for key in own if key not in state_dict]
    if missing:
        raise Refused(f"{source} lacks the weight {missing[0]!r} of this model.{nearest(missing[0], state_dict)}")
    for key, tensor in own.items():
        other = state_dict[key]
        if not isinstance(other, Tensor) or other.shape != tensor.shape or other.dtype != tensor.dtype:
            raise Refused(f"{key!r} is {_describe(other)} in {source} and {_describe(tensor)} in this model.")


def load_weights(module: nn.Module, state_dict: dict[str, Tensor], source: str | Path) -> None:
    """Copy `state_dict` into `module` after `check_weights`: all of it or nothing."""
    check_weights(module, state_dict, source)
    module.load_state_dict(state_dict)


def check_optimizers(optimizers: list[torch.optim.Optimizer], states: Any, source: str | Path) -> None:
    """Refuse, naming both sides, states that do not have the form, shapes and dtypes that `optimizers` need."""
    if not isinstance(states, list) or len(states) != len(optimizers):
        count = len(states) if isinstance(states, list) else "no"
        raise Refused(f"{source} holds {count} optimiser states and this run has {len(optimizers)} optimisers.")
    for optimizer, state in zip(optimizers, states, strict=True):
        groups = optimizer.param_groups
        try:
            sizes = [len(group["params"]) for group in state["param_groups"]]
            options = [sorted(group) for group in state["param_groups"]]
            moments = {index: dict(entry) for index, entry in state["state"].items()}
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise Refused(f"{source} holds an optimiser state of another form than torch's.") from error
        if sizes != [len(group["params"]) for group in groups] or options != [sorted(group) for group in groups]:
            raise Refused(f"{source} holds the state of another optimiser than {type(optimizer).__name__} of this run.")
        parameters = dict(enumerate(p for group in groups for p in group["params"]))
        for index, entry in moments.items():
            if index not in parameters:
                raise Refused(f"{source} holds a state for parameter {index}; the optimiser has {len(parameters)}.")
            for key, value in entry.items():
                own = parameters[index]
                scalar = isinstance(value, Tensor) and value.ndim == 0  # Adam's count of steps
                if isinstance(value, Tensor) and not scalar and (value.shape, value.dtype) != (own.shape, own.dtype):
                    mine, theirs = _describe(own), _describe(value)
                    raise Refused(f"{key!r} of parameter {index} is {theirs} in {source} and {mine} in this run.")


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
