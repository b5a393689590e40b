"""Every key of the commands that read a run folder, and of `attn bench`: flat, but for data.

As in schema.py, with the same defaults in conf/.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from attn_cli.config.data_sections import AnyData
from attn_cli.config.fields import REQUIRED, bounded, choice
from attn_cli.config.model_sections import WIDEST


@dataclass(frozen=True)
class Evaluate:
    """`attn eval`."""

    run: str | None = None  # run folder; None: the latest finished one in `outputs`
    outputs: str = "outputs"
    data: AnyData | None = None  # another data set of the same classes
    focus: bool = False  # read once, then again in a box around the path
    focus_size: int = bounded(54, 1, WIDEST)  # pixels a side of that box
    ten_crops: bool = False  # average the probabilities over ten crops of each image
    against: str | None = None  # run folder to compare with, on the same images
    checkpoint: str = choice("best", "best", "last")
    split: str = choice("test", "test", "validation")
    mc_samples: int = bounded(0, 0, 10_000)  # M sampled paths; 0: the mean-location path
    average: str = choice("log_probabilities", "log_probabilities", "probabilities")
    seed: int = bounded(0, 0, 2**32 - 1)
    repeats: int = bounded(5, 1, 1000)  # seeds of the random first location
    batch_size: int = bounded(1000, 1, 65536)
    device: str = choice("auto", "auto", "cpu", "gpu")
    threads: int | None = bounded(None, 1, 1024)
    output: str | None = None  # folder for the JSON file; None: the run folder


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
    data: AnyData | None = None  # other images of the same classes
    focus: bool = False  # each reader reads once, then again in a box around its path
    focus_size: int = bounded(54, 1, WIDEST)  # pixels a side of that box
    rule: str = choice("flip", "flip", "average")
    checkpoint: str = choice("best", "best", "last")
    split: str = choice("test", "test", "validation")
    mc_samples: int = bounded(0, 0, 10_000)  # M sampled paths of each reader; 0: the mean-location path
    average: str = choice("log_probabilities", "log_probabilities", "probabilities")
    seed: int = bounded(0, 0, 2**32 - 1)
    batch_size: int = bounded(1000, 1, 65536)
    device: str = choice("auto", "auto", "cpu", "gpu")
    threads: int | None = bounded(None, 1, 1024)
    output: str | None = None  # folder for the JSON file; None: the forward reader's folder


@dataclass(frozen=True)
class Show:
    """`attn show`."""

    run: str | None = None
    backward: str | None = None  # run folder of a backward reader, drawn beside the forward reader `run`
    outputs: str = "outputs"
    data: AnyData | None = None  # another data set of the same classes
    checkpoint: str = choice("best", "best", "last")
    split: str = choice("test", "test", "validation")
    images: int | tuple[int, ...] = bounded(8, 0, 10_000_000)  # how many, from the first; or which, as a list
    seed: int = bounded(0, 0, 2**32 - 1)
    gif: bool = True
    output: str | None = None  # folder; None: pictures/ in the run folder
    device: str = choice("auto", "auto", "cpu", "gpu")
    threads: int | None = bounded(None, 1, 1024)


@dataclass(frozen=True)
class Attend:
    """`attn attend`."""

    run: str | None = None
    outputs: str = "outputs"
    output: str = REQUIRED  # the new .h5 file
    regions: str = choice("attended", "attended", "boxes")
    checkpoint: str = choice("best", "best", "last")
    batch_size: int = bounded(100, 1, 65536)
    device: str = choice("auto", "auto", "cpu", "gpu")
    threads: int | None = bounded(None, 1, 1024)


@dataclass(frozen=True)
class Bench:
    """`attn bench`."""

    output: str | None = None  # JSON file
    shapes: tuple[str, ...] = dataclasses.field(
        default=("28x28", "60x60", "100x100", "800x800", "pairs", "svhn", "soft_ram", "rsam"),
        metadata={"choices": ("28x28", "60x60", "100x100", "800x800", "pairs", "svhn", "soft_ram", "rsam")},
    )
    batch_size: int = bounded(128, 1, 65536)
    samples: int = bounded(4, 1, 64)  # M, paths per image
    threads: int = bounded(2, 1, 1024)
    seconds: float = bounded(5.0, 0, 3600, above=True)  # per measurement
    parallel_seeds: int = bounded(1, 1, 64)  # runs trained as one computation; 1: not measured
    compile: str = choice("auto", "auto", "on", "graph", "off")
    precision: str = choice("32", "32", "tf32", "bf16")
    device: str = choice("auto", "auto", "cpu", "gpu", "cuda")
