"""What a configured model costs, without memory for its weights: by its closed form, or else by torch's counter."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attn_cli.config import schema
from attn_cli.data.splits import DataInfo
from attn_cli.models.build import build_model
from attn_cli.models.model import GlimpseModel
from attn_cli.models.parts import Part
from attn_cli.models.rollout import draw_noise, rollout


def weightless(settings: schema.Config, info: DataInfo) -> GlimpseModel:
    """The configured model in evaluation, its weights on the meta device."""
    with torch.device("meta"):
        return build_model(settings, info).eval()


def parameters(model: GlimpseModel) -> int:
    return sum(p.numel() for p in model.parameters())


def blank(info: DataInfo) -> Tensor:
    """One black image of that size, or video."""
    frames = [info.frames] if info.frames else []
    return torch.zeros(1, *frames, info.channels, info.height, info.width, dtype=torch.uint8)


def parts_of(settings: schema.Config, info: DataInfo, targets: float | None = None) -> list[Part]:
    """The model's own parts for an image of so many answers, as `GlimpseModel.parts` gives them.

    A model that has none is run along one path through the longest sequence under torch's counter, which does not see
    into fused layers such as nn.LSTM; it is one part, whatever `targets` says.
    """
    model = weightless(settings, info)
    if type(model).parts is not GlimpseModel.parts:
        return model.parts(targets)
    model = build_model(settings, info).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        rollout(model, blank(info), draw_noise(0, 0, (1, 1, model.steps), numbers=model.noises))
    return [Part("all, by torch's counter", counter.get_total_flops() // 2)]
