"""A network of the package timm (Wightman 2019), which is no dependency: the baseline of Semeniuta & Barth, section
IV.C, is a pretrained Inception with batch normalisation.

Choices:
 1. The network has new weights; `model.weights` names a .safetensors file, of which training takes over what has the
    same name and shape. Nothing is fetched.
 2. Pixels are divided by 255 and normalised as the network's own description says, where it has one for as many
    channels.

Legend: B images, M paths (1 by nature), R = M·B rows, K classes, C channels, H, W.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attn_cli.config.model_sections import Timm
from attn_cli.errors import Refused
from attn_cli.glimpses.retina import Canvas
from attn_cli.models.model import GlimpseModel


@dataclass(frozen=True)
class State:
    """The answer, given at once. Rows are paths."""

    canvas: Canvas
    hidden: Tensor  # (R, K) logits
    location: Tensor  # (R, 2) the centre of the image
    patches: Tensor  # (R, 1, C, H, W) in [0, 1], what was seen
    log_prob: Tensor | None = None  # never there: nothing is chosen


class TimmNet(GlimpseModel):
    stochastic = random_start = moves = False
    mean: Tensor
    deviation: Tensor

    def __init__(
        self, config: Timm, glimpses: object, scales: object, *, channels: int, classes: int, background: int = 0
    ):
        super().__init__()
        self.config, self.glimpses = config, 1
        try:
            timm: Any = importlib.import_module("timm")
        except ImportError as error:
            raise Refused("model=timm needs the package timm: run `pip install timm`.") from error
        try:
            self.network: nn.Module = timm.create_model(
                config.architecture, pretrained=False, num_classes=classes, in_chans=channels
            )
        except Exception as error:  # whatever an architecture raises
            raise Refused(f"model.architecture={config.architecture} cannot be made by timm: {error}.") from error
        own: Any = getattr(self.network, "default_cfg", None) or {}
        for name, key, neutral in (("mean", "mean", 0.0), ("deviation", "std", 1.0)):
            values = own.get(key) or ()
            values = values if len(values) == channels else (neutral,) * channels
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def start(self, images_BCHW: Tensor, samples: int) -> State:
        """The answer; images are uint8."""
        pixels = images_BCHW.to(self.mean.dtype) * (1 / 255)
        logits = self.network((pixels - self.mean) / self.deviation)
        place = logits.new_zeros(logits.shape[0], 2)
        state = State(Canvas(images_BCHW, *images_BCHW.shape[-2:]), logits, place, pixels[:, None])
        if samples == 1:
            return state
        return replace(
            state,
            hidden=logits.repeat(samples, 1),
            location=place.repeat(samples, 1),
            patches=state.patches.repeat(samples, 1, 1, 1, 1),
        )

    def step(self, state: State, noise_R2: Tensor, greedy: bool = False) -> State:
        return state

    def classify(self, hidden: Tensor) -> Tensor:
        return hidden
