"""The model sections of a configuration: every key with its type and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attn_cli.config.fields import bounded, choice
from attn_cli.errors import Refused

WIDEST = 4096  # pixels a side; larger images are a mistake before they are a task


@dataclass(frozen=True)
class Ram:
    """Recurrent Attention Model (Mnih et al. 2014): model=ram and model=ram_lstm."""

    name: str = "ram"
    core: str = choice("relu", "relu", "lstm")
    hidden: int = bounded(256, 1, 4096)  # D, width of the core
    glimpse_hidden: int = bounded(128, 1, 4096)  # width of h_g and h_l
    glimpse_features: int = bounded(256, 1, 4096)  # width of the glimpse network's output
    sigma: float = bounded(0.12, 0, 2, above=True)  # std of the location policy, in units of half an image
    samples: int = bounded(4, 1, 64)  # M, paths per image in training
    baseline: str = choice("leave_one_out", "learned", "leave_one_out")
    reward: str = choice("probability", "correct", "probability", "log_likelihood")
    discount: float = bounded(1.0, 0, 1)
    reinforce_weight: float = bounded(1.0, 0, 1000)  # λ
    baseline_weight: float = bounded(1.0, 0, 1000)
    policy_gradient: str = choice("full", "detached", "full")
    location_mean: str = choice("linear", "linear", "tanh")
    policy: str = choice("gaussian", "gaussian", "grid", "random", "fixed")
    grid: int = bounded(5, 2, 5)  # places per side with policy=grid; the paper found more than 25 places hard
    first: str = choice("random", "random", "learned")  # the first location
    stop: str = choice("never", "never", "learned")
    glimpse_cost: float = bounded(0.01, 0, 1000)  # in units of the reward
    scale: str = choice("fixed", "fixed", "learned")
    magnification: float = bounded(1.0, 0.25, 64)  # pixels a side of a cell of the retina; scale=learned: at least
    largest_magnification: float = bounded(8.0, 0.25, 64)  # with scale=learned
    scale_sigma: float = bounded(0.5, 0, 8, above=True)  # std of the policy of the scale, in octaves


@dataclass(frozen=True)
class RamCatch:
    """RAM as a player of Catch (Mnih et al. 2014, section 4.2): model=ram_catch."""

    core: ClassVar[str] = "lstm"
    policy_gradient: ClassVar[str] = "full"
    baseline: ClassVar[str] = "learned"
    first: ClassVar[str] = "learned"
    stop: ClassVar[str] = "never"
    scale: ClassVar[str] = "fixed"
    magnification: ClassVar[float] = 1.0
    name: str = "ram_catch"
    hidden: int = bounded(256, 1, 4096)  # D, width of the core
    glimpse_hidden: int = bounded(128, 1, 4096)  # width of h_g and h_l
    glimpse_features: int = bounded(256, 1, 4096)  # width of the glimpse network's output
    sigma: float = bounded(0.15, 0, 2, above=True)  # std of the location policy, in units of half the screen
    discount: float = bounded(1.0, 0, 1)  # of the reward, per frame
    location_weight: float = bounded(0.02, 0, 1000)  # of the REINFORCE of locations relative to that of actions
    baseline_weight: float = bounded(1.0, 0, 1000)
    entropy_weight: float = bounded(0.002, 0, 1000)  # of the entropy of the actions, which is a reward
    location_mean: str = choice("linear", "linear", "tanh")
    location_scale: float = bounded(0.1, 0, 1000, above=True)  # of the location network's output
    policy: str = choice("gaussian", "gaussian", "grid", "random", "fixed")  # of locations
    grid: int = bounded(5, 2, 5)  # places per side with policy=grid


@dataclass(frozen=True)
class Dram:
    """Deep Recurrent Attention Model (Ba et al. 2015): model=dram, dram_small and dram_mnist."""

    name: str = "dram"
    glimpse: str = choice("conv", "fc", "conv")  # the image part of the glimpse network
    filters: tuple[int, ...] = (64, 64, 128)  # of the three convolutions
    convolutions: str = choice("shared", "shared", "separate")  # of the scales
    features: int = bounded(1024, 1, 8192)  # F, width of every fully-connected hidden layer
    hidden: int = bounded(512, 1, 4096)  # D, width of both LSTMs
    context: str = choice("conv", "conv", "none")
    coarse: int = bounded(12, 1, 128)  # pixels a side of the image that the context network sees
    unit_width: float = bounded(12.0, 0, WIDEST, above=True)  # pixels that one unit of a location spans
    sigma: float = bounded(0.17, 0, 2, above=True)  # std of the location policy, in those units
    samples: int = bounded(4, 1, 64)  # M, paths per image in training
    baseline: str = choice("leave_one_out", "learned", "leave_one_out")
    reward: str = choice("correct", "correct", "probability", "log_likelihood")
    reinforce_weight: float = bounded(1.0, 0, 1000)  # λ
    baseline_weight: float = bounded(1.0, 0, 1000)
    policy_gradient: str = choice("full", "upper", "full")
    dropout: float = bounded(0.0, 0, 0.9)
    cumulative_reward: bool = True  # eq. 16; else each target has its own reward
    stop_at_mistake: bool = True  # no gradient after the first wrong target
    reader: str = choice("forward", "forward", "backward")
    share_glimpse_from: str | None = None  # run folder whose glimpse network is used as it is


@dataclass(frozen=True)
class ConvNet:
    """A network that sees the whole image: all names in registry.CONVNETS."""

    name: str = "convnet_10"
    filters: tuple[int, ...] = bounded((128,) * 8, 1, 4096)  # of each convolution
    kernels: tuple[int, ...] = bounded((5,) * 8, 1, 64)
    strides: tuple[int, ...] = bounded((1,) * 8, 1, 64)
    pools: tuple[int, ...] = bounded((1, 3, 1, 1, 1, 1, 1, 2), 1, 64)  # width of max-pooling; 1: none
    padding: bool = True  # whether convolutions keep the size of a map
    pool_padding: int = bounded(1, 0, 1)
    norm: bool = False  # batch normalisation between each convolution and its ReLU
    hidden: tuple[int, ...] = bounded((3096, 3096), 1, 16384)  # widths of the fully-connected layers
    dropout: float = bounded(0.5, 0, 0.9)
    dropout_layers: str = choice("all", "all", "hidden")  # after all layers, or only the fully-connected ones


@dataclass(frozen=True)
class SoftRam:
    """The differentiable RAM of Semeniuta & Barth 2016: model=soft_ram."""

    name: str = "soft_ram"
    glimpse: str = choice("fc", "fc", "conv")  # the glimpse network
    filters: tuple[int, ...] = (16, 16, 32)  # of three or five convolutions
    pretrain_glimpse: int = bounded(0, 0, 100_000)  # epochs with a simple glimpse network before the convolutional one
    refit: bool = False  # with init_from: begin with grids that lie on what the glimpse network reads
    features: int = bounded(256, 1, 8192)  # F, width of every fully-connected hidden layer
    hidden: int = bounded(256, 1, 4096)  # D, width of the GRU layers
    layers: int = bounded(2, 1, 2)  # of the recurrence
    answers: str = choice("last", "last", "every")  # that count in training: after the last glimpse of a target, or all
    answer_from: str = choice("recurrent", "recurrent", "glimpse")  # what the classification network reads
    reset_every: int | None = bounded(None, 1, 100_000)  # epochs between two resets of the classifier's last layer
    resets: int = bounded(10, 1, 100_000)  # how many
    context: str = choice("conv", "conv", "none")
    coarse: int = bounded(24, 1, 128)  # pixels a side of the image that the context network sees
    centre: str = choice("absolute", "absolute", "relative")
    limit: float | None = bounded(None, 0, 1, above=True)  # largest share of the image's side that a region spans
    repulsion: float = bounded(0.1, 0, 1000)  # a of eq. 5, with relative centres
    repulsion_width: float = bounded(0.1, 0, 1000, above=True)  # b of eq. 5
    repulsion_step: int = bounded(3, 1, 64)  # the step that it acts on
    mean_image: bool = False  # subtracted, and the rest divided by 128 (section IV.B); else pixels are divided by 255
    noise: float = bounded(0.1, 0, 1)  # α, largest noise in centre and stride; 0: none
    dropout: float = bounded(0.0, 0, 0.9)  # of what the glimpse network gives
    recurrent_dropout: float = bounded(0.0, 0, 0.9)  # in the GRU layers
    reader: str = choice("forward", "forward", "backward")
    trunk: ConvNet | None = None  # whose first layers, kept fixed, make the map that is looked at
    trunk_layers: int = bounded(2, 1, 64)  # sets of convolution, ReLU and pooling taken of it
    trunk_from: str | None = None  # run folder of such a network, or a .safetensors file, with its weights


@dataclass(frozen=True)
class DrawReader:
    """The classifier of DRAW (Gregor et al. 2015): model=draw_reader."""

    name: str = "draw_reader"
    hidden: int = bounded(256, 1, 4096)  # D, width of the LSTM


@dataclass(frozen=True)
class Stn:
    """A spatial transformer (Jaderberg et al. 2015), recurrent for sequences (Sønderby et al. 2015): model=stn."""

    name: str = "stn"
    transform: str = choice("affine", "affine", "attention")  # six numbers; or one scale and two shifts
    filters: tuple[int, ...] = (16, 16, 32)  # of three convolutions
    features: int = bounded(256, 1, 8192)  # F, width of every fully-connected hidden layer
    hidden: int = bounded(256, 1, 4096)  # D, what the transform is read from; of sequences, the width of the GRU
    coarse: int = bounded(24, 1, 128)  # pixels a side of the image that the localisation network sees


@dataclass(frozen=True)
class Rsam:
    """Recurrent Soft Attention Model (Ren 2017): model=rsam."""

    name: str = "rsam"
    hidden: int = bounded(256, 1, 4096)  # D, width of both memories
    down_sample: str = choice("conv", "conv", "fc")  # the network before the context memory; fc: one layer
    feedback: bool = True  # from the memory that answers to the one that attends
    features_norm: bool = False  # batch normalisation and ReLU after the down-sample network
    average: str = choice("probabilities", "probabilities", "log_probabilities")  # of the answers after each glimpse
    relu_logits: bool = False  # as in the author's code
    backbone: ConvNet | None = None  # or the Config of an installed package's model: the glimpse network


@dataclass(frozen=True)
class Timm:
    """A network of the package timm for the whole image: model=timm."""

    name: str = "timm"
    architecture: str = "inception_v3"  # a name that timm.create_model knows
    weights: str | None = None  # .safetensors file of pretrained weights; None: new ones


def check_model(model: object) -> None:
    """Raises Refused for what no single key can be refused for."""
    if isinstance(model, (Ram, Dram)) and model.baseline == "leave_one_out" and model.samples < 2:
        raise Refused(
            f"model.baseline=leave_one_out needs model.samples of at least 2, not {model.samples}: "
            "it compares the paths of one image with each other."
        )
    if isinstance(model, Ram) and model.stop == "learned" and model.policy == "fixed":
        raise Refused("model.stop=learned decides whether to look elsewhere; model.policy=fixed never does.")
    if isinstance(model, Ram) and model.first == "learned":
        if model.policy in ("random", "fixed"):
            raise Refused(f"model.first=learned needs a policy that learns, not model.policy={model.policy}.")
        if model.stop == "learned":
            raise Refused("model.first=learned does not go together with model.stop=learned: leave one out.")
    if isinstance(model, Ram) and model.scale == "learned":
        _check_scale(model)
    if isinstance(model, (Dram, SoftRam, Stn)):
        several = {3: "three", 5: "or five"} if isinstance(model, SoftRam) else {3: "three"}
        if len(model.filters) not in several or not all(1 <= f <= 1024 for f in model.filters):
            counts = " ".join(several.values())
            raise Refused(f"model.filters must be {counts} numbers from 1 to 1024, not {list(model.filters)}.")
    if isinstance(model, Dram) and model.convolutions == "separate" and model.glimpse != "conv":
        raise Refused("model.convolutions=separate is for model.glimpse=conv: with model.glimpse=fc there are none.")
    if isinstance(model, SoftRam) and model.pretrain_glimpse and model.glimpse != "conv":
        raise Refused("model.pretrain_glimpse is for model.glimpse=conv: with model.glimpse=fc it is simple already.")
    if isinstance(model, SoftRam) and model.refit and (model.glimpse != "fc" or model.centre != "absolute"):
        raise Refused("model.refit is for model.glimpse=fc and model.centre=absolute.")
    networks = {"model": model, **{f"model.{key}": getattr(model, key, None) for key in ("backbone", "trunk")}}
    for place, network in networks.items():
        if not isinstance(network, ConvNet):
            continue
        for key in ("kernels", "strides", "pools"):
            if len(getattr(network, key)) != len(network.filters):
                raise Refused(
                    f"{place}.{key} must have a number for each of the {len(network.filters)} of {place}.filters, "
                    f"not {list(getattr(network, key))}."
                )
    if isinstance(model, SoftRam):
        _check_trunk(model)
        _check_unused(model)


def _check_scale(model: Ram) -> None:
    if model.policy != "gaussian":
        raise Refused(
            f"model.scale=learned chooses the scale together with the location, both from normal distributions: use "
            f"model.policy=gaussian, not {model.policy}."
        )
    if model.largest_magnification <= model.magnification:
        raise Refused(
            f"model.largest_magnification={model.largest_magnification:g} must be above "
            f"model.magnification={model.magnification:g}: model.scale=learned chooses between the two."
        )


def _check_unused(model: SoftRam) -> None:
    """What was set and changes nothing."""
    for keys, used, where in (
        (("repulsion", "repulsion_width", "repulsion_step"), model.centre == "relative", "model.centre=relative"),
        (("resets",), model.reset_every is not None, "a model with model.reset_every"),
        (("trunk_layers",), model.trunk is not None, "a model with a trunk"),
        (("coarse",), model.context != "none", "a model with a context network"),
        (("repulsion_width", "repulsion_step"), model.repulsion != 0, "a model with model.repulsion"),
    ):
        for key in keys:
            value = getattr(model, key)
            if not used and value not in (0, getattr(SoftRam, key)):
                raise Refused(f"model.{key}={value} is for {where}: leave it out.")
    if len(model.filters) == 5 and model.glimpse != "conv":
        raise Refused(
            f"model.filters={list(model.filters)} is for model.glimpse=conv: with model.glimpse=fc take three."
        )


def _check_trunk(model: SoftRam) -> None:
    if model.trunk is None and model.trunk_from is not None:
        raise Refused("model.trunk_from is for a model with a trunk: add +model@model.trunk=convnet_5.")
    if model.trunk is not None and not isinstance(model.trunk, ConvNet):
        raise Refused("model.trunk must be a ConvNet: write +model@model.trunk=convnet_5.")
    if model.trunk is not None and model.mean_image:
        raise Refused("model.mean_image=true is for images alone: a trunk was trained without it, so leave one out.")
    if model.trunk is not None and model.trunk_layers > len(model.trunk.filters):
        raise Refused(
            f"model.trunk_layers={model.trunk_layers} is more than the {len(model.trunk.filters)} convolutions of "
            f"model.trunk={model.trunk.name}."
        )
