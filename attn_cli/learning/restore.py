"""A trained model back from its run folder, with the data set it was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from attn_cli.config import schema
from attn_cli.data.batches import Data, open_data
from attn_cli.errors import Refused
from attn_cli.learning import checkpoints
from attn_cli.models.build import build_model
from attn_cli.models.model import GlimpseModel
from attn_cli.runs import Run

PREFIX = "model."  # of the learner's parameters that belong to the model


@dataclass(frozen=True)
class Restored:
    run: Run
    config: schema.Config
    model: GlimpseModel
    data: Data


def restore(run: Run, checkpoint: str, device: torch.device, data: Any = None) -> Restored:
    """Configuration from the run, weights from its `best` or `last` checkpoint, data on the device: the run's own, or
    that of another data section, whose images and classes must suit the model.
    """
    config = run.config()
    if data is not None:
        config = replace(config, data=data)
    path = run.checkpoint(checkpoint)
    state = checkpoints.load(path)["state_dict"]
    opened = open_data(config.data).to(device)
    model = build_model(config, opened.info)
    load_model(model, state, path)
    return Restored(run, config, model.to(device).eval(), opened)


def load_model(model: GlimpseModel, state: dict[str, torch.Tensor], source: object) -> None:
    """Copy the model's part of a learner's state into a model; raises Refused, naming what differs, before
    anything is copied.
    """
    own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    if not own:
        raise Refused(f"{source} holds no weights of a model: use another checkpoint.")
    checkpoints.load_weights(model, own, str(source))
