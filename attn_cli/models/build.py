"""A model from its configuration, by registered name."""

from __future__ import annotations

from typing import Any

from attn_cli.config import registry, schema
from attn_cli.data.splits import DataInfo
from attn_cli.errors import Refused
from attn_cli.models.model import GlimpseModel


def build_model(config: schema.Config, info: DataInfo) -> GlimpseModel:
    """The model that `config.model.name` names, for the images and classes of a data set."""
    model_class = registry.load("model", config.model.name)
    options: dict[str, Any] = {"length": info.length} if info.length else {}
    if options and not getattr(model_class, "reads_sequences", False):
        raise Refused(
            f"data={info.name} has up to {info.length} labels an image and model={config.model.name} answers with one: "
            "use model=dram."
        )
    if (info.game is not None) != getattr(model_class, "plays", False):
        reason = "is a game" if info.game is not None else "is no game"
        raise Refused(
            f"data={info.name} {reason}, which does not suit model={config.model.name}: "
            "use model=ram_catch with data=catch."
        )
    if info.frames and not getattr(model_class, "watches", False):
        raise Refused(
            f"data={info.name} has videos and model={config.model.name} looks at images: use model=ram or soft_ram."
        )
    if info.frames and info.frames != config.glimpses.count:
        raise Refused(
            f"data={info.name} has {info.frames} frames, each for one glimpse, and glimpses.count is "
            f"{config.glimpses.count}: use glimpses={info.frames} or data.frames={config.glimpses.count}."
        )
    if info.game is not None:
        options |= {"game": info.game}
    if getattr(model_class, "sized", False):
        options |= {"height": info.height, "width": info.width}
    model: GlimpseModel = model_class(
        config.model,
        config.glimpses,
        config.scales,
        channels=info.channels,
        classes=info.classes,
        background=info.background,
        **options,
    )
    model.frames = info.frames
    return model
