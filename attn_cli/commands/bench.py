"""`attn bench`: speed of the training step, in units that another machine can compare.

For each shape: images/s; multiply-adds/s as a share of this machine's own matrix-product rate; the ratio to a plain
step whose retina is cut image by image; what Lightning's loop adds; the time of one glimpse; that of a Gaussian grid in
the time of its own matrix products, alone and where they stand; the largest memory; on a GPU the kernel launches of a
step and the share of it in which the GPU is busy; what a lower precision costs; with `parallel_seeds` the speed of so
many runs trained as one computation in that of one after another. Everything that is compared is measured in turns
within one run, and medians are compared.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attn_cli.config import command_sections, schema
from attn_cli.data.splits import DataInfo
from attn_cli.devices import choose_device, prepare_cpu, within_memory
from attn_cli.errors import Refused
from attn_cli.files import check_place, write_atomically
from attn_cli.glimpses.gaussian import Grid, exact, extract
from attn_cli.glimpses.reference import LoopRetina
from attn_cli.learning.compiling import compiled, compiler_found
from attn_cli.learning.guards import Checkpoints, SignalGuard
from attn_cli.learning.learner import Learner
from attn_cli.learning.measuring import Clock, in_turns, peak_memory, start_memory
from attn_cli.learning.parallel import ParallelLearner
from attn_cli.learning.profiling import profile_steps, relative_error, share_of
from attn_cli.learning.reporting import ProgressReport
from attn_cli.learning.training import LEARNERS, fit, precision
from attn_cli.models.build import build_model
from attn_cli.models.parts import multiply_adds

CLIP = 5.0  # largest norm of the gradient
MATRIX = 2048  # side of the matrices whose product sets the scale


@dataclass(frozen=True)
class Shape:
    height: int
    width: int
    glimpses: int  # per target
    size: int
    scales: int
    model: schema.Ram | schema.Dram | schema.SoftRam | schema.Rsam = schema.Ram()
    classes: int = 10
    length: int = 0  # of the longest sequence; 0: one answer
    channels: int = 1

    def __str__(self) -> str:
        glimpses = f"{self.height}x{self.width}, {self.glimpses * (self.length + 1)} glimpses"
        if isinstance(self.model, schema.Rsam):
            return f"RSAM {glimpses}"
        name = {"Ram": "", "Dram": "DRAM ", "SoftRam": "Soft RAM "}[type(self.model).__name__]
        return f"{name}{glimpses} {self.size}x{self.size}x{self.scales}"


PAIRS = schema.Dram(name="dram_mnist", glimpse="fc", filters=(16, 16, 32), features=256, coarse=24, unit_width=20.0)
SHAPES = {
    "28x28": Shape(28, 28, 6, 8, 1),
    "60x60": Shape(60, 60, 6, 12, 3),
    "100x100": Shape(100, 100, 8, 12, 4),
    "800x800": Shape(800, 800, 8, 12, 4),
    "pairs": Shape(100, 100, 4, 12, 2, PAIRS, classes=55),
    "svhn": Shape(54, 54, 3, 12, 1, schema.Dram(stop_at_mistake=False), length=5),
    "soft_ram": Shape(100, 100, 4, 12, 1, schema.SoftRam()),
    "rsam": Shape(32, 32, 4, 8, 1, schema.Rsam(), channels=3),
}


class SyntheticData:
    """One random batch, again and again."""

    def __init__(self, shape: Shape, batch_size: int, steps: int, device: torch.device):
        names = tuple(str(k) for k in range(shape.classes))
        size = (shape.channels, shape.height, shape.width, shape.classes)
        self.info = DataInfo("synthetic", *size, names, 0, batch_size * steps, 0, 0, shape.length)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (batch_size, *size[:3]), dtype=torch.uint8, generator=generator)
        self.images, self.steps = images.to(device), steps
        labels = torch.randint(0, shape.classes, (batch_size, shape.length + 1), generator=generator)
        if shape.length:  # the longest sequences, so that every glimpse counts
            labels[:, -1] = shape.classes
        self.labels = (labels if shape.length else labels[:, 0]).to(device)

    def to(self, device: torch.device | str) -> SyntheticData:
        return self

    def digest(self, split: str) -> str:
        return "synthetic"

    def steps_per_epoch(self, batch_size: int) -> int:
        return self.steps

    def train_batch(self, seed: int, epoch: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        return self.images, self.labels

    def fixed(self, split: str) -> tuple[Tensor, Tensor]:
        return self.images, self.labels


@within_memory
def run(config: command_sections.Bench) -> list[dict[str, Any]]:
    """Measure, print, write; returns the rows."""
    check_place(config.output, "output")
    if config.batch_size == 1 and "rsam" in config.shapes:
        raise Refused(
            "RSAM has batch normalisation, which needs at least 2 images a batch: use a larger batch_size, or shapes "
            "without rsam."
        )
    prepare_cpu(config.threads)
    device = choose_device(config.device)
    if config.compile == "graph" and device.type == "cpu":
        raise Refused("compile=graph is for a GPU and there is none here: use compile=on.")
    if config.compile in ("on", "graph") and not compiler_found():
        raise Refused(
            f"compile={config.compile} needs a C++ compiler and none was found; install one or use compile=off."
        )
    use_compile = config.compile != "off" and compiler_found()
    with precision(config.precision):
        rows = [measure_shape(SHAPES[name], config, device, use_compile) for name in config.shapes]
    from attn_cli.pictures.cost_tables import bench_table
    from attn_cli.pictures.tables import show

    show(bench_table(rows))
    if config.output is not None:
        write_atomically(Path(config.output), json.dumps(rows, indent=2) + "\n")
    return rows


def measure_shape(
    shape: Shape, config: command_sections.Bench, device: torch.device, use_compile: bool
) -> dict[str, Any]:
    model, samples = shape.model, 1  # soft attention has one path
    if isinstance(model, (schema.Ram, schema.Dram)):
        samples = config.samples
        alone = {"samples": 1, "baseline": "learned", "reward": "correct"}  # as in the papers
        model = replace(model, **(alone if samples == 1 else {"samples": samples}))  # type: ignore[arg-type]
    settings = schema.Config(
        model=model,
        data=schema.Scenes(height=shape.height, width=shape.width),
        glimpses=schema.Glimpses(shape.glimpses, shape.size),
        scales=schema.Scales(shape.scales),
        trainer=schema.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            batch_size=config.batch_size,
            epochs=1,
            precision=config.precision,
            compile=config.compile,
        ),
        optimizer=schema.Optimizer(lr=1e-4, clip=CLIP),  # slow: the labels are chance
    )
    data = SyntheticData(shape, config.batch_size, 100, device)
    start_memory(device)
    learner = make_learner(settings, data, device, use_compile)
    step, product = training_step(learner, data), matrix_product(device)
    step()
    memory = peak_memory(device)
    glimpse = one_glimpse(learner, data)
    seconds = in_turns({"step": step, "product": product, "glimpse": glimpse}, config.seconds, device)
    slower = None
    if hasattr(learner.model, "retina"):
        reference = training_step(make_learner(settings, data, device, False, loops=True), data)
        slow = in_turns({"step": step, "reference": reference}, config.seconds, device)
        slower = slow["reference"] / slow["step"]
    data.steps = max(6, min(100, int(1 / seconds["step"])))
    loop = lightning_step(settings, data, learner, step, device)
    profiled = None
    if device.type == "cuda":
        step()  # the loop above moved the weights: a graph would be recorded anew
        profiled = profile_steps(step, device)
    grids: tuple[float | None, float | None] = None, None
    if learner.model.noises > 2:
        grids = grid_ratios(data, shape, config.seconds, device, use_compile)
    adds = multiply_adds(learner.model.parts(), training=True, samples=samples) * config.batch_size
    row = {
        "shape": str(shape),
        "samples": samples,
        "threads": config.threads,
        "device": str(device),
        "compiled": use_compile,
        "cuda_graphs": config.compile == "graph",
        "precision": config.precision,
        "step_ms": 1e3 * seconds["step"],
        "steps_per_second": 1 / seconds["step"],
        "images_per_second": config.batch_size / seconds["step"],
        "multiply_adds_per_second": adds / seconds["step"],
        "sgemm_multiply_adds_per_second": MATRIX**3 / seconds["product"],
        "sgemm_share": adds / seconds["step"] / (MATRIX**3 / seconds["product"]),
        "ratio_to_reference": slower,
        "lightning_ms": 1e3 * loop,
        "lightning_share": loop / seconds["step"],
        "glimpse_us": 1e6 * seconds["glimpse"] / config.batch_size,
        "grid_ratio": grids[0],
        "grid_ratio_within": grids[1],
        "peak_memory_mb": memory,
        "kernel_launches": profiled and profiled.launches,
        "busy_share": profiled and min(1.0, profiled.busy_seconds / seconds["step"]),
        "gradient_error": None if config.precision == "32" else gradient_error(settings, data, device),
        "parallel_seeds": config.parallel_seeds,
        "parallel_ratio": parallel_ratio(settings, data, step, config, device, use_compile),
    }
    return row


def make_learner(
    settings: schema.Config, data: SyntheticData, device: torch.device, use_compile: bool, loops: bool = False
) -> Learner:
    torch.manual_seed(0)
    model = build_model(settings, data.info).to(device)
    if loops:
        retina = model.retina
        model.retina = LoopRetina(retina.size, retina.scales, retina.channels, retina.background)
    return LEARNERS[settings.model.name](model, settings, data, use_compile).to(device)


def parallel_ratio(
    settings: schema.Config,
    data: SyntheticData,
    step: Callable[[], None],
    config: command_sections.Bench,
    device: torch.device,
    use_compile: bool,
) -> float | None:
    """Images/s of runs that are trained as one computation in those of one run, `step`; None if not asked for or not
    possible.
    """
    count = config.parallel_seeds
    if count == 1:
        return None
    members = [make_learner(replace(settings, seed=seed), data, device, False) for seed in range(count)]
    learner = ParallelLearner(members, [{}] * count, use_compile)
    try:
        learner.try_out()
    except Refused:
        return None
    seconds = in_turns({"alone": step, "together": training_step(learner, data)}, config.seconds, device)
    return count * seconds["alone"] / seconds["together"]


def training_step(learner: Learner, data: SyntheticData) -> Callable[[], None]:
    """Noise, forward, backward, guard and clipping, optimiser and schedule, as a plain loop would do them; with the
    batches of every member where several runs are trained together.
    """
    made = learner.configure_optimizers()
    optimiser, schedule, count = made["optimizer"], made["lr_scheduler"], iter(range(10**9))
    schedule.total_steps = 10**9
    guard = learner.finite
    guard.watch(learner)

    def step() -> None:
        number = next(count)
        images, labels = data.images, data.labels
        if isinstance(learner, ParallelLearner):
            images, labels = (torch.stack([part] * len(learner.members)) for part in (images, labels))
        learner.model.zero_grad()
        loss = learner.loss((images, labels, 0, number))
        loss.sum().backward()
        guard.check(loss.detach(), optimiser, number)
        optimiser.step()
        schedule.step()

    return step


def matrix_product(device: torch.device) -> Callable[[], None]:
    a, b = (torch.randn(MATRIX, MATRIX, device=device) for _ in range(2))
    out = torch.empty_like(a)

    def product() -> None:
        with exact():
            torch.mm(a, b, out=out)

    return product


def gradient_error(settings: schema.Config, data: SyntheticData, device: torch.device) -> float:
    """‖g − g₃₂‖ / ‖g₃₂‖ of the first step's gradient, g in the precision of the settings."""
    gradients = []
    for name in (settings.trainer.precision, "32"):
        learner = make_learner(
            replace(settings, trainer=replace(settings.trainer, precision=name)), data, device, False
        )
        with precision(name):
            learner.loss((data.images, data.labels, 0, 0)).backward()
        gradients.append([parameter.grad for parameter in learner.model.parameters()])
    return relative_error(*gradients)


def one_glimpse(learner: Learner, data: SyntheticData) -> Callable[[], None]:
    """A step of the model without gradient: choose a location, look, think. The margin around the images is made
    once.
    """
    model = learner.model
    noise = torch.randn(data.images.shape[0], model.noises, device=data.images.device)
    state = model.start(data.images, 1)

    def glimpse() -> None:
        with torch.no_grad():
            model.step(state, noise)

    return glimpse


def grid_ratios(
    data: SyntheticData, shape: Shape, seconds: float, device: torch.device, use_compile: bool
) -> tuple[float, float | None]:
    """Time of the Gaussian grids of a step, forward and backward, compiled if the step is, in that of the products that
    they are made of: of the same products one after another, with nothing in between, and, on a CPU, of these products
    where they stand.
    """
    size, images = shape.size, data.images.float() / 255
    B, C, H, W = images.shape

    def place() -> list[Tensor]:
        values = torch.rand(B, 2) - 0.5, torch.rand(B, 2) + 1.0, torch.rand(B) + 0.5, torch.rand(B) + 0.5
        return [value.to(device).requires_grad_() for value in values]

    leaves = [value for _ in range(shape.glimpses) for value in place()]
    upstream = [torch.ones(B, C, size, size, device=device)] * shape.glimpses
    pixels, part = images.reshape(B, C * H, W), torch.rand(B, size, C * H, device=device)
    bank, error = torch.rand(B, size, W, device=device), torch.rand(B, size, size * C, device=device)
    down, columns = torch.rand(B, size, H, device=device), torch.rand(B, size * C, H, device=device)

    def look(*leaves: Tensor) -> list[Tensor]:
        return [extract(images, Grid(*leaves[first : first + 4]), size) for first in range(0, len(leaves), 4)]

    looked = compiled(look) if use_compile else look

    def grid() -> None:
        torch.autograd.grad(looked(*leaves), leaves, upstream)

    def products() -> None:
        for _ in range(shape.glimpses):
            torch.bmm(bank, pixels.transpose(1, 2))
            torch.bmm(down, columns.transpose(1, 2))
            torch.bmm(error, columns)  # the gradient of each filter bank, and of what lies between them
            torch.bmm(error.transpose(1, 2), down)
            torch.bmm(part, pixels)

    measured = in_turns({"grid": grid, "products": products}, seconds, device)
    within = None if device.type == "cuda" else 1 / share_of(grid, "aten::bmm")
    return measured["grid"] / measured["products"], within


def lightning_step(
    settings: schema.Config, data: SyntheticData, learner: Learner, step: Callable[[], None], device: torch.device
) -> float:
    """Seconds that Lightning's loop and the callbacks of `attn train` add to a step of the plain loop."""
    extra = []
    every = 1 if device.type == "cpu" else data.steps // 5  # the host runs ahead of a GPU
    for _ in range(3):
        plain = in_turns({"step": step}, 0.5, device)["step"]
        clock = Clock(every)
        with tempfile.TemporaryDirectory() as folder:
            progress = ProgressReport(settings.trainer.epochs)
            checkpoints = Checkpoints(Path(folder), seconds=settings.trainer.checkpoint_seconds, finite=learner.finite)
            with SignalGuard(checkpoints) as signals:
                try:
                    fit(learner, settings, [progress, checkpoints, signals, clock])
                finally:
                    progress.stop()
        extra.append(clock.seconds() - plain)
    return statistics.median(extra)
