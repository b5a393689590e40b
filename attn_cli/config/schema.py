"""Every key of every configuration, with its type and bounds; `load` refuses what does not fit, before any allocation.

conf/*.yaml carry the same keys with the same defaults and a comment each (a test compares them); the defaults here
serve configurations that were written before a key existed, and tests.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from attn_cli.config import registry
from attn_cli.config.command_sections import Bench, Combine, Evaluate, Show
from attn_cli.config.data_sections import (
    AnyData,
    Arrays,
    Catch,
    Cifar10,
    Cub200,
    Folder,
    HouseNumbers,
    Pairs,
    Scaled,
    Scenes,
    Sequences,
    Svhn,
    Tracks,
)
from attn_cli.config.data_sections import Retina as Retina  # packages of other people take it from here
from attn_cli.config.fields import bounded, build, checked, choice, full_key, required_key, unknown_key
from attn_cli.config.model_sections import (
    WIDEST,
    ConvNet,
    Dram,
    DrawReader,
    Ram,
    RamCatch,
    Rsam,
    SoftRam,
    Stn,
    Timm,
    check_model,
)
from attn_cli.errors import Refused, nearest

T = TypeVar("T")


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
    precision: str = choice("32", "32", "tf32", "bf16")
    compile: str = choice("auto", "auto", "on", "graph", "off")
    threads: int | None = bounded(None, 1, 1024)  # None: as torch finds
    checkpoint_every: int = bounded(1, 1, 100_000)  # epochs
    checkpoint_seconds: float | None = bounded(None, 0, 1e6, above=True)  # also within an epoch; None: never
    validate_every: int = bounded(1, 1, 100_000)  # epochs
    limit_train_steps: int | None = bounded(None, 1, 10**9)  # steps an epoch; None: all
    parallel_seeds: int = bounded(1, 1, 64)  # runs with seeds from `seed` on, trained as one computation
    parallel_lrs: tuple[float, ...] = bounded((), 0, 100, above=True)  # with each of these rates; (): optimizer.lr

    @property
    def parallel(self) -> int:
        """How many runs are trained as one computation."""
        return self.parallel_seeds * max(1, len(self.parallel_lrs))


@dataclass(frozen=True)
class Optimizer:
    name: str = choice("adam_onecycle", "adam_onecycle", "adam", "sgd")
    lr: float = bounded(2e-3, 0, 100, above=True)  # of one-cycle: its peak
    attention: float = bounded(1.0, 0, 100, above=True)  # times lr: the rate of what only chooses where to look
    momentum: float = bounded(0.9, 0, 0.9999)  # of Adam: β₁, which stays at 0.9
    nesterov: bool = False
    weight_decay: float = bounded(0.0, 0, 10)
    warmup: float = bounded(0.05, 0, 0.9)  # share of all steps, one-cycle only
    decay: float = bounded(1.0, 0, 1, above=True)  # factor on lr after each epoch, not for one-cycle
    clip: float | None = bounded(5.0, 0, 1e6, above=True)  # gradient norm; None: off


@dataclass(frozen=True)
class Logger:
    name: str = choice("csv", "csv", "tensorboard", "wandb", "mlflow", "none")
    project: str = "attn"


@dataclass(frozen=True)
class Config:
    """`attn train`, and what a run folder keeps."""

    model: Ram | RamCatch | Dram | SoftRam | Rsam | DrawReader | Stn | ConvNet | Timm = field(
        default_factory=Ram
    )  # or the Config of an installed package's model
    data: AnyData = field(default_factory=Scenes)
    scales: Scales = field(default_factory=Scales)
    glimpses: Glimpses = field(default_factory=Glimpses)
    trainer: Trainer = field(default_factory=Trainer)
    optimizer: Optimizer = field(default_factory=Optimizer)
    logger: Logger = field(default_factory=Logger)
    seed: int = bounded(0, 0, 2**32 - 1)
    resume: str | None = None  # run folder to continue
    init_from: tuple[str, ...] | None = None  # run folder whose best weights training starts from, or several
    experiment: str | None = None  # name of the experiment config used
    outputs: str = "outputs"  # folder of run folders

    def alone(self) -> list[Config]:
        """What each of the runs that are trained as one computation would be trained with by itself; those of one
        learning rate follow one another.
        """
        trainer = replace(self.trainer, parallel_seeds=1, parallel_lrs=())
        return [
            replace(self, seed=seed, optimizer=replace(self.optimizer, lr=rate), trainer=trainer)
            for rate in self.trainer.parallel_lrs or [self.optimizer.lr]
            for seed in range(self.seed, self.seed + self.trainer.parallel_seeds)
        ]


@dataclass(frozen=True)
class Cost:
    """`attn cost`: the sections that say what `attn train` would train, and what is counted."""

    model: Ram | Dram | SoftRam | Rsam | DrawReader | Stn | ConvNet | Timm = field(default_factory=Ram)
    data: AnyData = field(default_factory=lambda: Scenes(name="digits", source="digits"))
    scales: Scales = field(default_factory=Scales)
    glimpses: Glimpses = field(default_factory=Glimpses)
    trainer: Trainer = field(default_factory=Trainer)  # costs nothing: experiments set it
    optimizer: Optimizer = field(default_factory=Optimizer)  # likewise
    experiment: str | None = None
    run: str | None = None  # run folder whose model is counted
    size: tuple[int, ...] | None = bounded(None, 1, WIDEST)  # pixels of the images, a side or height and width
    samples: int = bounded(10, 1, 10_000)  # M, paths that are averaged
    length: float | None = bounded(None, 0, WIDEST)  # labels expected in an image of a sequence
    table: str | None = choice(None, "dram/5")
    curve: str | None = None  # PNG file for the cost against the size of the image
    output: str | None = None  # JSON file
    device: str = choice("cpu", "auto", "cpu", "gpu")  # that times are measured on
    threads: int | None = bounded(None, 1, 1024)


S = TypeVar("S", Config, Cost)

MODELS: dict[str, type] = {
    "ram": Ram,
    "ram_lstm": Ram,
    "ram_catch": RamCatch,
    **dict.fromkeys(("dram", "dram_small", "dram_mnist"), Dram),
    "soft_ram": SoftRam,
    "rsam": Rsam,
    "draw_reader": DrawReader,
    "stn": Stn,
    **dict.fromkeys(registry.CONVNETS, ConvNet),
    "timm": Timm,
}
DATA: dict[str, type] = {
    **dict.fromkeys(registry.SCENES, Scenes),
    **dict.fromkeys(registry.TRACKS, Tracks),
    **dict.fromkeys(registry.PAIRS, Pairs),
    **dict.fromkeys(registry.SCALED, Scaled),
    **dict.fromkeys(registry.SEQUENCES, Sequences),
    **dict.fromkeys(registry.SVHN, Svhn),
    **dict.fromkeys(registry.HOUSE_NUMBERS, HouseNumbers),
    "cifar10": Cifar10,
    "cub200": Cub200,
    "catch": Catch,
    "folder": Folder,
    "arrays": Arrays,
}
# Made from files that have source, root and download.
PREPARED = (Scenes, Tracks, Pairs, Scaled, Sequences, Svhn, Cifar10, Cub200)


def load(config: Any) -> Config:
    """The composed configuration (DictConfig or plain dict) as frozen dataclasses; raises Refused."""
    built = _load_sections(Config, config)
    paths = built.init_from and tuple(path.rstrip("/") or "/" for path in built.init_from)  # a shell completes "RUN/"
    return replace(built, init_from=paths)


def _load_sections(cls: type[S], config: Any) -> S:
    values = plain(config)
    sections = {}
    for kind, known in (("model", MODELS), ("data", DATA)):
        if kind not in values:
            raise Refused(f"{kind} must be chosen: write {kind}=NAME.{nearest('', registry.names(kind))}")
        sections[kind] = _named_section(kind, values[kind], known)
    built = build(cls, values, given=sections)
    _check_together(built)
    return built


def load_as(cls: type[T], config: Any) -> T:
    """Like `load`, for Cost and the flat configurations of command_sections.py."""
    if cls is Cost:
        return cast(T, _load_sections(Cost, config))
    values = plain(config)
    given = {"data": _named_section("data", values["data"], DATA)} if values.get("data") else {}
    built = build(cls, values, given=given)
    if isinstance(built, Show) and (built.images == 0 or built.images == ()):
        raise Refused("images must be at least 1, or a list of image numbers such as images=[3,5].")
    if isinstance(built, Evaluate | Combine):
        if built.average == "probabilities" and not built.mc_samples:
            raise Refused("average=probabilities is for sampled paths: add mc_samples=10, or leave it out.")
        if built.focus_size != Evaluate.focus_size and not built.focus:
            raise Refused(f"focus_size={built.focus_size} is for a second look: add focus=true, or leave it out.")
    if isinstance(built, Bench) and not built.shapes:
        raise Refused("shapes must name at least one shape, such as shapes=[28x28].")
    return built


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of `load`: plain, JSON-able values."""
    return {name: _jsonable(value) for name, value in dataclasses.asdict(config).items()}


def keys(cls: type, where: str = "") -> list[str]:
    """Full names of all keys of a dataclass, nested ones with dots."""
    return list(_types(cls, where))


def list_keys(cls: type) -> set[str]:
    """Those that take a list."""
    return {name for name, hint in _types(cls).items() if "tuple[" in str(hint)}


def _types(cls: type, where: str = "") -> dict[str, Any]:
    """Full name → declared type."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        name = full_key(where, f.name)
        nested = f.default_factory() if f.default_factory is not dataclasses.MISSING else None
        found |= _types(type(nested), name) if dataclasses.is_dataclass(nested) else {name: hints[f.name]}
    return found


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


def _named_section(kind: str, values: Any, known: Mapping[str, type], where: str | None = None) -> Any:
    """The model or data section, at the key `where`, as the dataclass that its `name` selects."""
    where = where or kind
    if not isinstance(values, Mapping):
        raise Refused(f"{where} must be a group of keys, not {values!r}.")
    if "name" not in values:
        stray = next((key for key in values if str(key).startswith("_")), None)
        raise unknown_key(f"{where}.{stray}", [f"{where}.name"]) if stray else required_key(f"{where}.name")
    name = checked(values["name"], str, {}, f"{where}.name")
    within = {
        key: _named_section(kind, values[key], known, f"{where}.{key}")
        for key in ("backbone", "trunk")
        if isinstance(values.get(key), Mapping)
    }
    return build(known.get(name) or registry.config_class(kind, name), values, where, given=within)


def _check_together(config: Config | Cost) -> None:
    """What no single key can be refused for."""
    check_model(config.model)
    trainer, optimizer, data = config.trainer, config.optimizer, config.data
    if trainer.devices > 1 and trainer.batch_size % trainer.devices:
        raise Refused(
            f"trainer.batch_size={trainer.batch_size} must be a multiple of trainer.devices={trainer.devices}."
        )
    if isinstance(config, Config) and (trainer.parallel > 1 or trainer.parallel_lrs):
        _check_parallel(config)
    if isinstance(config, Config) and getattr(config.model, "refit", False) and not config.init_from:
        raise Refused("model.refit is for a reader that has learned to read: name its run with init_from=RUN.")
    unused = {
        "adam_onecycle": {"momentum": (0.9, "sgd"), "nesterov": (False, "sgd"), "decay": (1.0, "sgd or adam")},
        "adam": {"momentum": (0.9, "sgd"), "nesterov": (False, "sgd"), "warmup": (0.0, "adam_onecycle")},
        "sgd": {"warmup": (0.0, "adam_onecycle")},
    }
    for key, (value, users) in unused[optimizer.name].items():
        if getattr(optimizer, key) != value:
            raise Refused(
                f"optimizer.{key} is for optimizer={users}; optimizer={optimizer.name} does not use it, "
                f"set optimizer.{key}={str(value).lower()}."
            )
    if optimizer.nesterov and optimizer.momentum == 0:
        raise Refused("optimizer.nesterov=true needs optimizer.momentum above 0.")
    if isinstance(data, Folder) and data.validation_share + data.test_share >= 1:
        raise Refused("data.validation_share and data.test_share must sum to less than 1: nothing is left to train on.")


def _check_parallel(config: Config) -> None:
    count, rates = config.trainer.parallel_seeds, config.trainer.parallel_lrs
    together = f"trainer.parallel_{'seeds' if count > 1 else 'lrs'}"
    if config.trainer.devices > 1 or config.trainer.strategy == "ddp":
        raise Refused(f"{together} is for one device: use trainer.devices=1 and leave trainer=ddp out.")
    if config.logger.name not in ("csv", "none"):
        raise Refused(f"logger={config.logger.name} follows one run, {together} trains several: use logger=csv.")
    if config.optimizer.attention != 1:
        raise Refused(f"{together} trains all parts of a model at one rate: leave optimizer.attention out.")
    if len(rates) == 1:
        raise Refused(
            f"trainer.parallel_lrs needs two learning rates at least; for one alone set optimizer.lr={rates[0]:g}."
        )
    if len(set(rates)) < len(rates):
        raise Refused("trainer.parallel_lrs has a learning rate twice: runs with the same seed would be the same.")
    if config.trainer.parallel > 64:
        raise Refused(
            f"trainer.parallel_seeds={count} with {len(rates)} learning rates are {config.trainer.parallel} runs, more "
            "than 64."
        )
    if config.seed + count > 2**32:
        raise Refused(
            f"seed={config.seed} leaves no room for trainer.parallel_seeds={count} seeds: the largest is {2**32 - 1}."
        )


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value
