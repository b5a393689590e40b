"""A trained model back from its run folder, with the data set it was trained on."""

from __future__ import annotations

from dataclasses import dataclass

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


def restore(run: Run, checkpoint: str, device: torch.device) -> Restored:
    """Configuration from the run, weights from its `best` or `last` checkpoint, data on the device."""
    config = run.config()
    path = run.checkpoint(checkpoint)
    state = checkpoints.load(path)["state_dict"]
    data = open_data(config.data).to(device)
    model = build_model(config, data.info)
    load_model(model, state, path)
    return Restored(run, config, model.to(device).eval(), data)


def load_model(model: GlimpseModel, state: dict[str, torch.Tensor], source: object) -> None:
    """Copy the model's part of a learner's state into a model; raises Refused, naming what differs, before
    anything is copied.
    """
    own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    if not own:
        raise Refused(f"{source} holds no weights of a model: use another checkpoint.")
    checkpoints.load_weights(model, own, str(source))
