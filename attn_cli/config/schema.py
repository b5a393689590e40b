"""Every key of every configuration, with its type and bounds; `load` refuses what does not fit, before any allocation.

conf/*.yaml carry the same keys with the same defaults and a comment each (a test compares them); the defaults here
serve configurations that were written before a key existed, and tests.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from attn_cli.config import registry
from attn_cli.config.fields import REQUIRED, bounded, build, checked, choice, full_key, required_key, unknown_key
from attn_cli.errors import Refused, nearest

T = TypeVar("T")

WIDEST = 4096  # pixels a side; larger images are a mistake before they are a task


@dataclass(frozen=True)
class Retina:
    """The retina recommended for a data set; conf/glimpses and conf/scales take it over unless told otherwise."""

    size: int = bounded(8, 2, 256)  # g, pixels a side of one patch
    scales: int = bounded(1, 1, 8)  # k, patches, each twice as wide as the one before


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
    policy: str = choice("gaussian", "gaussian", "grid", "random")
    grid: int = bounded(5, 2, 5)  # places per side with policy=grid; the paper found more than 25 places hard


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
class SoftRam:
    """The differentiable RAM of Semeniuta & Barth 2016: model=soft_ram."""

    name: str = "soft_ram"
    glimpse: str = choice("fc", "fc", "conv")  # the glimpse network
    filters: tuple[int, ...] = (16, 16, 32)  # of three convolutions
    features: int = bounded(256, 1, 8192)  # F, width of every fully-connected hidden layer
    hidden: int = bounded(256, 1, 4096)  # D, width of both GRU layers
    context: str = choice("conv", "conv", "none")
    coarse: int = bounded(24, 1, 128)  # pixels a side of the image that the context network sees
    centre: str = choice("absolute", "absolute", "relative")
    limit: float | None = bounded(None, 0, 1, above=True)  # largest share of the image's side that a region spans
    repulsion: float = bounded(0.1, 0, 1000)  # a of eq. 5, with relative centres
    repulsion_width: float = bounded(0.1, 0, 1000, above=True)  # b of eq. 5
    repulsion_step: int = bounded(3, 1, 64)  # the step that it acts on
    noise: float = bounded(0.1, 0, 1)  # α, largest noise in centre and stride; 0: none
    dropout: float = bounded(0.0, 0, 0.9)  # of what the glimpse network gives
    recurrent_dropout: float = bounded(0.0, 0, 0.9)  # in the GRU layers
    reader: str = choice("forward", "forward", "backward")


@dataclass(frozen=True)
class ConvNet:
    """A network that sees the whole image: model=convnet_64_64_64_512, convnet_10 and convnet_10_small."""

    name: str = "convnet_10"
    filters: tuple[int, ...] = bounded((128,) * 8, 1, 4096)  # of each convolution
    kernels: tuple[int, ...] = bounded((5,) * 8, 1, 64)
    strides: tuple[int, ...] = bounded((1,) * 8, 1, 64)
    pools: tuple[int, ...] = bounded((1, 3, 1, 1, 1, 1, 1, 2), 1, 64)  # width of max-pooling; 1: none
    padding: bool = True  # whether convolutions keep the size of a map
    pool_padding: int = bounded(1, 0, 1)
    hidden: tuple[int, ...] = bounded((3096, 3096), 1, 16384)  # widths of the fully-connected layers
    dropout: float = bounded(0.5, 0, 0.9)
    dropout_layers: str = choice("all", "all", "hidden")  # after all layers, or only the fully-connected ones


@dataclass(frozen=True)
class Scenes:
    """Digits, placed in a canvas and cluttered on the fly, from MNIST or from the embedded rendered digits."""

    name: str = "mnist"
    source: str = choice("mnist", "mnist", "digits")
    height: int = bounded(28, 28, WIDEST)
    width: int = bounded(28, 28, WIDEST)
    pieces: int = bounded(0, 0, 256)  # of clutter, cut from other digits
    piece_size: int = bounded(8, 1, 28)  # pixels a side of a piece
    translate: bool = False  # the digit anywhere in the canvas; else in its centre
    root: str | None = None  # data folder; None: $ATTN_DATA or the user cache folder
    download: bool = True
    train_limit: int | None = bounded(None, 1, 10_000_000)  # use only the first n training images
    retina: Retina = field(default_factory=Retina)


@dataclass(frozen=True)
class Pairs:
    """Two digits in one canvas, with clutter or without; the class is the pair (in either order) or the sum."""

    name: str = "mnist_pairs"
    source: str = choice("mnist", "mnist", "digits")
    label: str = choice("pair", "pair", "sum")
    height: int = bounded(100, 28, WIDEST)
    width: int = bounded(100, 28, WIDEST)
    overlap: float = bounded(0.0, 0, 1)  # largest share of a digit's box that the other's box may cover
    pieces: int = bounded(8, 0, 256)  # of clutter, cut from other digits
    piece_size: int = bounded(8, 1, 28)  # pixels a side of a piece
    root: str | None = None  # data folder; None: $ATTN_DATA or the user cache folder
    download: bool = True
    train_limit: int | None = bounded(None, 1, 10_000_000)  # use only the first n training digits
    retina: Retina = field(default_factory=lambda: Retina(12, 2))


@dataclass(frozen=True)
class Sequences:
    """One to five digits, laid out like house numbers; the label is the sequence from left to right."""

    name: str = "mnist_sequence"
    source: str = choice("mnist", "mnist", "digits")
    height: int = bounded(54, 54, WIDEST)
    width: int = bounded(54, 54, WIDEST)
    root: str | None = None  # data folder; None: $ATTN_DATA or the user cache folder
    download: bool = True
    train_limit: int | None = bounded(None, 1, 10_000_000)  # use only the first n training digits
    retina: Retina = field(default_factory=lambda: Retina(12, 2))


@dataclass(frozen=True)
class Svhn:
    """SVHN house numbers, cut out around their digits, up to five digits read from left to right."""

    name: str = "svhn"
    source: str = choice("svhn", "svhn", "svhn_110", "svhn_128")  # how much is cut out, see data/sources/svhn.py
    height: int = bounded(54, 8, 128)  # smaller than what is cut out: random crops train, the centre is evaluated
    width: int = bounded(54, 8, 128)
    grey: bool = True
    validation: int = bounded(5000, 1, 1_000_000)  # images drawn from train and extra; at most a tenth of them
    background: int = bounded(0, 0, 255)  # what the retina reads outside the image
    root: str | None = None  # data folder; None: $ATTN_DATA or the user cache folder
    download: bool = True
    train_limit: int | None = bounded(None, 1, 10_000_000)  # use only the first n training images
    retina: Retina = field(default_factory=lambda: Retina(12, 2))


@dataclass(frozen=True)
class HouseNumbers(Sequences):
    """Such numbers in one colour on painted house fronts: the stand-in for SVHN that needs no download."""

    name: str = "house_numbers"
    source: str = choice("digits", "mnist", "digits")
    grey: bool = True  # else RGB


@dataclass(frozen=True)
class Folder:
    """A person's own images: class folders (data=folder)."""

    name: str = "folder"
    path: str = REQUIRED
    grey: bool | None = None  # None: as the files are
    height: int | None = bounded(None, 1, WIDEST)  # None: as the files are
    width: int | None = bounded(None, 1, WIDEST)
    validation_share: float = bounded(0.1, 0, 0.9, above=True)  # used when the data names no validation split
    test_share: float = bounded(0.1, 0, 0.9, above=True)
    background: int = bounded(0, 0, 255)  # what the retina reads outside the image
    seed: int = bounded(0, 0, 2**32 - 1)  # of the split
    retina: Retina = field(default_factory=lambda: Retina(12, 3))


@dataclass(frozen=True)
class Arrays(Folder):
    """A person's own images: an .npz or .h5 of images and labels (data=arrays)."""

    name: str = "arrays"


@dataclass(frozen=True)
class Scales:
    count: int = bounded(1, 1, 8)  # k, patches per glimpse


@dataclass(frozen=True)
class Glimpses:
    count: int = bounded(6, 1, 64)  # N, in total for RAM, per target for sequences
    size: int = bounded(8, 2, 256)  # g, pixels a side of one patch


@dataclass(frozen=True)
class Trainer:
    name: str = "auto"
    accelerator: str = choice("auto", "auto", "cpu", "gpu")
    devices: int = bounded(1, 1, 64)
    strategy: str = choice("auto", "auto", "ddp")
    epochs: int = bounded(60, 1, 100_000)
    batch_size: int = bounded(128, 1, 65536)
    eval_batch_size: int = bounded(1000, 1, 65536)
    precision: str = choice("32", "32", "bf16")
    compile: str = choice("auto", "auto", "on", "off")
    threads: int | None = bounded(None, 1, 1024)  # None: as torch finds
    checkpoint_every: int = bounded(1, 1, 100_000)  # epochs
    checkpoint_seconds: float | None = bounded(None, 0, 1e6, above=True)  # also within an epoch; None: never
    validate_every: int = bounded(1, 1, 100_000)  # epochs
    limit_train_steps: int | None = bounded(None, 1, 10**9)  # steps an epoch; None: all


@dataclass(frozen=True)
class Optimizer:
    name: str = choice("adam_onecycle", "adam_onecycle", "sgd")
    lr: float = bounded(2e-3, 0, 100, above=True)  # of one-cycle: its peak
    momentum: float = bounded(0.9, 0, 0.9999)  # of Adam: β₁, which stays at 0.9
    nesterov: bool = False
    weight_decay: float = bounded(0.0, 0, 10)
    warmup: float = bounded(0.05, 0, 0.9)  # share of all steps, one-cycle only
    decay: float = bounded(1.0, 0, 1, above=True)  # factor on lr after each epoch, sgd only
    clip: float | None = bounded(5.0, 0, 1e6, above=True)  # gradient norm; None: off


@dataclass(frozen=True)
class Logger:
    name: str = choice("csv", "csv", "tensorboard", "wandb", "mlflow", "none")
    project: str = "attn"


@dataclass(frozen=True)
class Config:
    """`attn train`, and what a run folder keeps."""

    model: Ram | Dram | SoftRam | ConvNet = field(default_factory=Ram)  # or the Config of an installed package's model
    data: Scenes | Pairs | Sequences | HouseNumbers | Svhn | Folder | Arrays = field(
        default_factory=Scenes
    )  # or the Config of an installed package's data
    scales: Scales = field(default_factory=Scales)
    glimpses: Glimpses = field(default_factory=Glimpses)
    trainer: Trainer = field(default_factory=Trainer)
    optimizer: Optimizer = field(default_factory=Optimizer)
    logger: Logger = field(default_factory=Logger)
    seed: int = bounded(0, 0, 2**32 - 1)
    resume: str | None = None  # run folder to continue
    init_from: str | None = None  # run folder whose best weights training starts from
    experiment: str | None = None  # name of the experiment config used
    outputs: str = "outputs"  # folder of run folders


@dataclass(frozen=True)
class Evaluate:
    """`attn eval`."""

    run: str | None = None  # run folder; None: the latest finished one in `outputs`
    outputs: str = "outputs"
    data: Scenes | Pairs | Sequences | Svhn | Folder | Arrays | None = None  # another data set of the same classes
    focus: bool = False  # read once, then again in a box around the path
    focus_size: int = bounded(54, 1, WIDEST)  # pixels a side of that box
    checkpoint: str = choice("best", "best", "last")
    split: str = choice("test", "test", "validation")
    mc_samples: int = bounded(0, 0, 10_000)  # M sampled paths; 0: the mean-location path
    average: str = choice("log_probabilities", "log_probabilities", "probabilities")
    seed: int = bounded(0, 0, 2**32 - 1)
    repeats: int = bounded(5, 1, 1000)  # seeds of the random first location
    batch_size: int = bounded(1000, 1, 65536)
    device: str = choice("auto", "auto", "cpu", "gpu")
    threads: int | None = bounded(None, 1, 1024)


@dataclass(frozen=True)
class McAverage:
    """`attn mc-average`."""

    run: str | None = None
    outputs: str = "outputs"
    checkpoint: str = choice("best", "best", "last")
    split: str = choice("test", "test", "validation")
    max_samples: int = bounded(10, 1, 1000)  # error is reported against M = 1 … max_samples
    average: str = choice("log_probabilities", "log_probabilities", "probabilities")
    seed: int = bounded(0, 0, 2**32 - 1)
    repeats: int = bounded(5, 2, 1000)  # independent draws, for the standard error
    batch_size: int = bounded(1000, 1, 65536)
    device: str = choice("auto", "auto", "cpu", "gpu")
    threads: int | None = bounded(None, 1, 1024)
    output: str | None = None  # folder for the table and the plot; None: the run folder


@dataclass(frozen=True)
class Combine:
    """`attn combine`."""

    forward: str = REQUIRED  # run folder of a forward reader
    backward: str = REQUIRED  # run folder of a backward reader
    rule: str = choice("flip", "flip", "average")
    checkpoint: str = choice("best", "best", "last")
    split: str = choice("test", "test", "validation")
    mc_samples: int = bounded(0, 0, 10_000)  # M sampled paths of each reader; 0: the mean-location path
    average: str = choice("log_probabilities", "log_probabilities", "probabilities")
    seed: int = bounded(0, 0, 2**32 - 1)
    batch_size: int = bounded(1000, 1, 65536)
    device: str = choice("auto", "auto", "cpu", "gpu")
    threads: int | None = bounded(None, 1, 1024)


@dataclass(frozen=True)
class Show:
    """`attn show`."""

    run: str | None = None
    backward: str | None = None  # run folder of a backward reader, drawn beside the forward reader `run`
    outputs: str = "outputs"
    checkpoint: str = choice("best", "best", "last")
    split: str = choice("test", "test", "validation")
    images: int | tuple[int, ...] = bounded(8, 0, 10_000_000)  # how many, from the first; or which, as a list
    seed: int = bounded(0, 0, 2**32 - 1)
    gif: bool = True
    output: str | None = None  # folder; None: pictures/ in the run folder
    device: str = choice("auto", "auto", "cpu", "gpu")
    threads: int | None = bounded(None, 1, 1024)


@dataclass(frozen=True)
class Bench:
    """`attn bench`."""

    output: str | None = None  # JSON file
    shapes: tuple[str, ...] = dataclasses.field(
        default=("28x28", "60x60", "100x100", "800x800", "pairs", "svhn"),
        metadata={"choices": ("28x28", "60x60", "100x100", "800x800", "pairs", "svhn")},
    )
    batch_size: int = bounded(128, 1, 65536)
    samples: int = bounded(4, 1, 64)  # M, paths per image
    threads: int = bounded(2, 1, 1024)
    seconds: float = bounded(5.0, 0, 3600, above=True)  # per measurement
    compile: str = choice("auto", "auto", "on", "off")
    device: str = choice("auto", "auto", "cpu", "gpu")


MODELS: dict[str, type] = {
    "ram": Ram,
    "ram_lstm": Ram,
    **dict.fromkeys(("dram", "dram_small", "dram_mnist"), Dram),
    "soft_ram": SoftRam,
    **dict.fromkeys(registry.CONVNETS, ConvNet),
}
DATA: dict[str, type] = {
    **dict.fromkeys(registry.SCENES, Scenes),
    **dict.fromkeys(registry.PAIRS, Pairs),
    **dict.fromkeys(registry.SEQUENCES, Sequences),
    **dict.fromkeys(registry.SVHN, Svhn),
    **dict.fromkeys(registry.HOUSE_NUMBERS, HouseNumbers),
    "folder": Folder,
    "arrays": Arrays,
}
PREPARED = (Scenes, Pairs, Sequences, Svhn)  # made from prepared files: they have source, root and download


def load(config: Any) -> Config:
    """The composed configuration (DictConfig or plain dict) as frozen dataclasses; raises Refused."""
    values = plain(config)
    sections = {}
    for kind, known in (("model", MODELS), ("data", DATA)):
        if kind not in values:
            raise Refused(f"{kind} must be chosen: write {kind}=NAME.{nearest('', registry.names(kind))}")
        sections[kind] = _named_section(kind, values[kind], known)
    built = build(Config, values, given=sections)
    _check_together(built)
    return built


def load_as(cls: type[T], config: Any) -> T:
    """Like `load`, for the flat configurations: Evaluate, McAverage, Show, Bench."""
    values = plain(config)
    given = {"data": _named_section("data", values["data"], DATA)} if cls is Evaluate and values.get("data") else {}
    built = build(cls, values, given=given)
    if isinstance(built, Show) and (built.images == 0 or built.images == ()):
        raise Refused("images must be at least 1, or a list of image numbers such as images=[3,5].")
    if isinstance(built, Bench) and not built.shapes:
        raise Refused("shapes must name at least one shape, such as shapes=[28x28].")
    return built


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of `load`: plain, JSON-able values."""
    return {name: _jsonable(value) for name, value in dataclasses.asdict(config).items()}


def keys(cls: type, where: str = "") -> list[str]:
    """Full names of all keys of a dataclass, nested ones with dots."""
    found: list[str] = []
    for f in dataclasses.fields(cls):
        name = full_key(where, f.name)
        nested = f.default_factory if f.default_factory is not dataclasses.MISSING else None
        found += keys(type(nested()), name) if nested and dataclasses.is_dataclass(nested()) else [name]
    return found


def list_keys(cls: type) -> set[str]:
    """Keys at the top of a dataclass that take a list."""
    return {name for name, hint in typing.get_type_hints(cls).items() if "tuple[" in str(hint)}


def plain(config: Any) -> dict[str, Any]:
    """A DictConfig or mapping as a plain dict with interpolations resolved; raises Refused for one that dangles."""
    if type(config).__module__.startswith("omegaconf."):
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            config = OmegaConf.to_container(config, resolve=True)
        except OmegaConfBaseException as error:
            key = getattr(error, "full_key", None) or "the configuration"
            reason = str(error).splitlines()[0]
            raise Refused(f"{key} cannot be resolved: {reason}.") from error
    if not isinstance(config, Mapping):
        raise Refused(f"The configuration must be a group of keys, not {config!r}.")
    return {str(key): value for key, value in config.items()}


def _named_section(kind: str, values: Any, known: Mapping[str, type]) -> Any:
    """The model or data section as the dataclass that its `name` selects."""
    if not isinstance(values, Mapping):
        raise Refused(f"{kind} must be a group of keys, not {values!r}.")
    if "name" not in values:
        stray = next((key for key in values if str(key).startswith("_")), None)
        raise unknown_key(f"{kind}.{stray}", [f"{kind}.name"]) if stray else required_key(f"{kind}.name")
    name = checked(values["name"], str, {}, f"{kind}.name")
    return build(known.get(name) or registry.config_class(kind, name), values, kind)


def _check_together(config: Config) -> None:
    """What no single key can be refused for."""
    model, trainer, optimizer, data = config.model, config.trainer, config.optimizer, config.data
    if isinstance(model, (Ram, Dram)) and model.baseline == "leave_one_out" and model.samples < 2:
        raise Refused(
            f"model.baseline=leave_one_out needs model.samples of at least 2, not {model.samples}: "
            "it compares the paths of one image with each other."
        )
    if isinstance(model, (Dram, SoftRam)) and (
        len(model.filters) != 3 or not all(1 <= f <= 1024 for f in model.filters)
    ):
        raise Refused(f"model.filters must be three numbers from 1 to 1024, not {list(model.filters)}.")
    if isinstance(model, ConvNet):
        for key in ("kernels", "strides", "pools"):
            if len(getattr(model, key)) != len(model.filters):
                raise Refused(
                    f"model.{key} must have a number for each of the {len(model.filters)} of model.filters, "
                    f"not {list(getattr(model, key))}."
                )
    if trainer.strategy == "ddp" and trainer.devices < 2:
        raise Refused("trainer.strategy=ddp needs trainer.devices of at least 2.")
    if trainer.devices > 1 and trainer.batch_size % trainer.devices:
        raise Refused(
            f"trainer.batch_size={trainer.batch_size} must be a multiple of trainer.devices={trainer.devices}."
        )
    if optimizer.name == "adam_onecycle":
        for key, unused in (("momentum", 0.9), ("nesterov", False), ("decay", 1.0)):
            if getattr(optimizer, key) != unused:
                raise Refused(f"optimizer.{key} is for optimizer=sgd; optimizer=adam_onecycle does not use it.")
    if optimizer.name == "sgd" and optimizer.warmup:
        raise Refused("optimizer.warmup is for optimizer=adam_onecycle; with optimizer=sgd set optimizer.warmup=0.")
    if optimizer.nesterov and optimizer.momentum == 0:
        raise Refused("optimizer.nesterov=true needs optimizer.momentum above 0.")
    if isinstance(data, Folder) and data.validation_share + data.test_share >= 1:
        raise Refused("data.validation_share and data.test_share must sum to less than 1: nothing is left to train on.")


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value
