"""A trained model back from its run folder, with the data set it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from attn_cli.config import registry, schema
from attn_cli.config.arguments import pasted
from attn_cli.data.batches import open_data
from attn_cli.data.shapes import shape_of
from attn_cli.data.sources.folder import class_names
from attn_cli.data.sources.own import SPLITS
from attn_cli.data.splits import Data
from attn_cli.errors import Refused
from attn_cli.files import expanded, kind_of
from attn_cli.learning import checkpoints
from attn_cli.learning.weights import load_weights
from attn_cli.models.build import build_model
from attn_cli.models.convnets import Trunk
from attn_cli.models.model import GlimpseModel
from attn_cli.models.timm_net import TimmNet
from attn_cli.runs import Run, open_run

PREFIX = "model."  # of the learner's parameters that belong to the model


@dataclass(frozen=True)
class Restored:
    run: Run
    config: schema.Config
    model: GlimpseModel
    data: Data


def restore(run: Run, checkpoint: str, device: torch.device, data: Any = None) -> Restored:
    """Configuration from the run, weights from its `best` or `last` checkpoint, data on the device: the run's own, or
    that of another data section, whose images and classes must suit the model. At videos it looks once a frame,
    however often it looked in training.
    """
    config = run.config()
    if data is not None:
        config = replace(config, data=data)
    path = run.checkpoint(checkpoint)
    state = checkpoints.load(path)["state_dict"]
    opened = (open_own(run, config.data) if data is None else open_data(config.data)).to(device)
    info = opened.info
    _check_classes(run, config.data, info.class_names)
    if data is None and isinstance(config.data, schema.Folder):
        named = f"{pasted('run', run.path)} data={config.data.name} {pasted('data.path', config.data.path)}"
        check_images(run, opened, f"evaluate on them as other images: `attn eval {named}`, with its data settings")
    if data is not None and info.frames:
        config = replace(config, glimpses=replace(config.glimpses, count=info.frames))
    if data is not None and getattr(registry.load("model", config.model.name), "sized", False):
        try:
            own = shape_of(run.config().data)
        except Refused as error:
            raise Refused(f"{run.path} is for images of the size that it was trained on: {error}") from error
        if own.channels != info.channels:
            raise Refused(
                f"{run.path} was trained on images of {own.channels} channels, and data={config.data.name} has "
                f"{info.channels}: choose other images, or train on them."
            )
        info = replace(info, height=own.height, width=own.width)
    model = build_model(config, info)
    try:
        load_model(model, state, path)
    except Refused as error:
        if data is None:
            raise
        raise Refused(
            f"data={config.data.name} ({info.channels} channels, {info.classes} classes) does not suit {run.path}, "
            f"which was trained on data={run.config().data.name}: choose images like those, or train on these. {error}"
        ) from error
    return Restored(run, config, model.to(device).eval(), opened)


def open_own(run: Run, config: Any) -> Data:
    """The data of a run, whose data section is `config`; raises Refused, naming config.yaml where the data folder that
    it names cannot be used: no command that begins with a run takes another one.
    """
    root = getattr(config, "root", None)
    if root is None:
        return open_data(config)
    recorded = run.path / "config.yaml"
    if kind_of(expanded(root, "data.root"), "data.root") != "folder":
        raise Refused(
            f"There is no folder {root}, where the data of {run.path} was prepared: put it back, or name another one "
            f"as data.root in {recorded}."
        )
    try:
        return open_data(config)
    except Refused as error:
        raise Refused(f"{str(error).removesuffix('.')} (data.root={root} comes from {recorded}).") from error


def _check_classes(run: Run, data: Any, names: Sequence[str]) -> None:
    """Refuse class folders of other names than the run was trained on, where its own are still there."""
    own = run.config().data
    if not type(own) is type(data) is schema.Folder or own.path == data.path:
        return
    path = expanded(own.path, "data.path")
    if kind_of(path, "data.path") == "folder" and (differ := set(class_names(path)) ^ set(names)):
        raise Refused(
            f"data.path={data.path} has other classes than {own.path}, which {run.path} was trained on: only one of "
            f"them has {', '.join(sorted(differ))}; name the folders alike, one may be empty."
        )


def note_images(run: Run, config: schema.Config, data: Data) -> None:
    """Keep in the run folder which images of a person's own a new run begins with: they may change."""
    if isinstance(config.data, schema.Folder):
        run.write_images({split: data.digest(split) for split in SPLITS})


def check_images(run: Run, data: Data, remedy: str) -> None:
    """Refuse a run's own images where they are others than when it began: with their number the split changes, and
    what it learned from may be among what it is tested on.
    """
    began = run.images()
    if began is not None and (differ := [split for split in SPLITS if began.get(split) != data.digest(split)]):
        raise Refused(
            f"The images that {run.path} was trained on have changed since it began ({', '.join(differ)}), so some "
            f"of them may be test images now: put them back as they were, or {remedy}."
        )


def check_same_images(one: Restored, other: Restored, split: str, do: str) -> None:
    """Refuse two runs of different images or classes; `do`: what needs the same ones."""
    for what, first, second in (
        ("data", one.data.digest(split), other.data.digest(split)),
        ("classes", one.data.info.class_names, other.data.info.class_names),
    ):
        if first != second:
            raise Refused(
                f"The two runs have different {what} ({one.config.data.name}, {other.config.data.name}): "
                f"{do} the same images."
            )


def check_sampling(restored: Restored, asked: str) -> None:
    """Refuse to average over the paths of a model that has nothing to sample, or no answers to average."""
    if restored.model.game is not None:
        raise Refused(f"{asked} averages answers; model={restored.config.model.name} plays a game and has none.")
    if not restored.model.stochastic and getattr(restored.config.model, "noise", None) == 0:
        raise Refused(f"{asked} needs noise, and this run of model=soft_ram was trained with model.noise=0.")
    if not restored.model.stochastic:
        raise Refused(
            f"{asked} needs a model that samples where it looks; model={restored.config.model.name} does not."
        )


def check_focus(restored: Restored, size: int) -> None:
    """Refuse a second look in a box of `size` pixels with what does not move, or has smaller images."""
    info = restored.data.info
    if not (restored.model.sequence and restored.model.moves):
        raise Refused(
            f"focus=true is for models that move over a sequence, not for model={restored.config.model.name}."
        )
    if size > min(info.height, info.width):
        raise Refused(f"focus_size={size} is larger than the {info.height}×{info.width} images of {info.name}.")


def load_model(model: GlimpseModel, state: dict[str, torch.Tensor], source: object) -> None:
    """Copy the model's part of a learner's state into a model; raises Refused, naming what differs, before
    anything is copied.
    """
    own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    if not own:
        raise Refused(f"{source} holds no weights of a model: use another checkpoint.")
    load_weights(model, own, str(source))


def check_sources(config: schema.Config) -> None:
    """Refuse run folders that a new run would take weights from and that are not there: before its data is fetched."""
    shared, trunk = (getattr(config.model, name, None) for name in ("share_glimpse_from", "trunk_from"))
    if trunk is not None and kind_of(expanded(trunk, "model.trunk_from"), "model.trunk_from") == "file":
        trunk = None
    for path in (*(config.init_from or ()), shared, trunk):
        if path is not None:
            open_run(path)


def starting_weights(model: GlimpseModel, config: schema.Config, resumed: bool) -> str | None:
    """Give a new model the weights that its configuration takes from elsewhere; those of a run that is resumed are in
    its checkpoint. Returns a report of one line or more, if any; raises Refused.
    """
    shared = getattr(config.model, "share_glimpse_from", None)
    if resumed:
        if shared is not None:
            model.get_submodule("glimpse_network").requires_grad_(False)
        return None
    report = initialise(model, [open_run(path) for path in config.init_from]) if config.init_from else None
    if isinstance(config.model, schema.Timm) and config.model.weights is not None and report is None:
        report = pretrain(cast(TimmNet, model), config.model.weights)
    if shared is not None:  # after init_from, of which it may have another
        share(model.get_submodule("glimpse_network"), "glimpse_network", open_run(shared))
    trunk = getattr(model, "trunk", None)
    if trunk is not None:
        fill_trunk(trunk, config)
    return report


def initialise(model: GlimpseModel, runs: Sequence[Run]) -> str:
    """Start from the best weights of another run: whatever has the same name, shape and type is copied. Of several runs
    the mean is taken, which can err less than each where all came from the same weights (Wortsman et al. 2022, arXiv
    2203.05482). Returns a report of one line or more; raises Refused if nothing fits, or the runs do not fit together.
    """
    found = [checkpoints.load(run.checkpoint("best"))["state_dict"] for run in runs]
    kinds = [{name: (value.shape, value.dtype) for name, value in weights.items()} for weights in found]
    for run, kind in zip(runs, kinds, strict=True):
        if kind != kinds[0]:
            raise Refused(
                f"init_from: the weights of {runs[0].path} and {run.path} differ in shape: name runs of one model."
            )
    theirs = {name.removeprefix(PREFIX): mean([weights[name] for weights in found]) for name in found[0]}
    given = f"init_from={runs[0].path}" if len(runs) == 1 else f"init_from, the mean of {len(runs)} runs"
    return take_over(model, theirs, given, "choose a run of the same kind")


def mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of weights; of whole numbers and flags, which count and switch, the first."""
    if len(values) == 1 or not values[0].is_floating_point():
        return values[0]
    return torch.stack([value.double() for value in values]).mean(0).to(values[0].dtype)


def take_over(model: nn.Module, theirs: dict[str, torch.Tensor], given: str, remedy: str) -> str:
    """Copy whatever has the same name, shape and type; `given` is the key with its value. Returns and raises like
    `initialise`.
    """
    own = model.state_dict()
    fitting = {
        name: theirs[name]
        for name, value in own.items()
        if name in theirs and (theirs[name].shape, theirs[name].dtype) == (value.shape, value.dtype)
    }
    if not any(value.dim() > 1 for value in fitting.values()):  # a bias of one number fits everywhere
        raise Refused(f"{given} has no weights that fit this model: {remedy}.")
    model.load_state_dict(fitting, strict=False)
    numbers = sum(value.numel() for value in fitting.values())
    lines = [f"{given}: {len(fitting)} of {len(own)} tensors ({numbers:,} numbers) taken over."]
    for name, value in own.items():
        if name not in fitting:
            there = f"of shape {tuple(theirs[name].shape)} there" if name in theirs else "not there"
            lines.append(f"  new: {name}, {tuple(value.shape)} here, {there}")
    return "\n".join(lines)


def share(part: torch.nn.Module, name: str, run: Run) -> None:
    """Give a part of a model the weights that the run's model has there, and keep them fixed; raises Refused, naming
    what differs.
    """
    path = run.checkpoint("best")
    prefix = f"{PREFIX}{name}."
    theirs = {
        k.removeprefix(prefix): v for k, v in checkpoints.load(path)["state_dict"].items() if k.startswith(prefix)
    }
    load_weights(part, theirs, str(path))
    part.requires_grad_(False)


def pretrain(model: TimmNet, weights: str) -> str:
    """Start from a file of pretrained weights, as far as they fit. Returns and raises like `initialise`."""
    theirs = checkpoints.tensors(expanded(weights, "model.weights"))
    return take_over(model.network, theirs, f"model.weights={weights}", "name one of the same architecture")


def fill_trunk(trunk: Trunk, config: schema.Config) -> None:
    """Give the fixed trunk of a new run the weights of `model.trunk_from`, or of the run that it starts from; raises
    Refused, naming what is absent or differs.
    """
    model: Any = config.model
    if model.trunk_from is None and config.init_from:
        run = open_run(config.init_from[0])
        _check_same_layers(model.trunk, getattr(run.config().model, "trunk", None), run, model.trunk_layers)
        share(trunk, "trunk", run)
        return
    if model.trunk_from is None:
        raise Refused(
            f"model.trunk={model.trunk.name} is a trunk whose weights are absent: make them with "
            f"`attn train model={model.trunk.name} data=folder data.path=IMAGES` and add model.trunk_from=RUN."
        )
    path = expanded(model.trunk_from, "model.trunk_from")
    if kind_of(path, "model.trunk_from") == "file":
        theirs = checkpoints.tensors(path)
    else:
        run = open_run(path)
        whole = run.config().model
        if not isinstance(whole, schema.ConvNet):
            remedy = f"name one of model={model.trunk.name}"
            raise Refused(f"model.trunk_from={run.path} is a run of model={whole.name}: {remedy}.")
        _check_same_layers(model.trunk, whole, run, model.trunk_layers)
        path = run.checkpoint("best")
        theirs = checkpoints.load(path)["state_dict"]
    # What comes after the trunk is left out.
    wanted = trunk.state_dict()
    named = {name.removeprefix(PREFIX).removeprefix("layers."): value for name, value in theirs.items()}
    load_weights(trunk, {name: value for name, value in named.items() if name in wanted}, str(path))


def _check_same_layers(own: schema.ConvNet, theirs: schema.ConvNet | None, run: Run, count: int) -> None:
    """Weights may have the same shapes where strides and pools differ."""
    if theirs is None:
        raise Refused(f"{run.path} has no trunk to begin with: name a run with one, or add model.trunk_from=RUN.")
    for key in ("filters", "kernels", "strides", "pools", "padding", "pool_padding", "norm"):
        ours, other = (
            list(value[:count]) if isinstance(value, tuple) else value
            for value in (getattr(own, key), getattr(theirs, key))
        )
        if ours != other:
            raise Refused(
                f"model.trunk.{key} is {ours} in the first {count} layers and {other} in {run.path}: "
                f"set model.trunk.{key} as it was there, or name another run."
            )
