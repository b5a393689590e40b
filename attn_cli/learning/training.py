"""From a configuration to a trained run: trainer, callbacks, precision, compilation."""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.plugins.environments import LightningEnvironment

from attn_cli import processes
from attn_cli.config import registry, schema
from attn_cli.data.keys import key
from attn_cli.data.splits import Data
from attn_cli.devices import choose_device
from attn_cli.errors import Refused
from attn_cli.learning.batch_norm import normalise_together
from attn_cli.learning.compiling import compiler_found
from attn_cli.learning.guards import VerifiedCheckpointIO
from attn_cli.learning.learner import DramLearner, GameLearner, Learner, RamLearner, SoftRamLearner, SupervisedLearner
from attn_cli.learning.restore import starting_weights
from attn_cli.models.build import build_model
from attn_cli.models.model import GlimpseModel

LEARNERS: dict[str, type[Learner]] = {
    **dict.fromkeys(("ram", "ram_lstm"), RamLearner),
    "ram_catch": GameLearner,
    **dict.fromkeys(("dram", "dram_small", "dram_mnist"), DramLearner),
    "soft_ram": SoftRamLearner,
    **dict.fromkeys(("rsam", "draw_reader", "stn", *registry.CONVNETS, "timm"), SupervisedLearner),
}
WORTH_COMPILING = 3000  # steps; compilation takes as long as some thousand small ones gain


def make_learner(config: schema.Config, data: Data, compile_step: bool | None = None) -> Learner:
    """Model and objective; weights are drawn from the run's seed on the CPU. `compile_step`: None asks
    `should_compile`.
    """
    seed_everything(config.seed)
    model = build_model(config, data.info)
    if processes.size() > 1:
        normalise_together(model)
    if config.optimizer.attention != 1 and not model.attention_parameters():
        raise Refused(
            f"optimizer.attention slows down what chooses where to look, and model={config.model.name} has no part "
            "that does nothing else: leave it out."
        )
    check_options(config, model)
    learner = LEARNERS.get(config.model.name) or getattr(registry.load("model", config.model.name), "learner", None)
    if learner is None:
        raise Refused(
            f"model={config.model.name} names no learner: give its class an attribute `learner`, such as RamLearner."
        )
    return learner(model, config, data, should_compile(config, data) if compile_step is None else compile_step)


def check_options(config: schema.Config, model: GlimpseModel) -> None:
    """Refuse what a model would be trained without, as it looks too few times or has one answer."""
    options = config.model
    if isinstance(options, (schema.Dram, schema.SoftRam)) and options.reader == "backward" and not model.sequence:
        raise Refused(
            f"model.reader=backward is for sequences of labels, and data={config.data.name} has one label an image: "
            "leave it out."
        )
    if not isinstance(options, schema.SoftRam) or options.centre != "relative" or not options.repulsion:
        return
    if options.repulsion_step > model.steps:
        raise Refused(
            f"model.repulsion_step={options.repulsion_step} comes after the last of {model.steps} glimpses: set it to "
            f"{model.steps} or less, or model.repulsion=0 to do without."
        )


def training_images(data: Data, config: schema.Config) -> Iterator[torch.Tensor]:
    """The images of the first epoch, a batch at a time."""
    batch = min(config.trainer.batch_size, data.info.train)
    for step in range(data.steps_per_epoch(batch)):
        yield data.train_batch(config.seed, 0, step, batch)[0]


def begin(learner: Learner, config: schema.Config, data: Data, resumed: bool = False) -> str | None:
    """Give a new model what it takes from other runs and from the training images. Returns a report of one line or
    more, if any, also of a glimpse network that is never trained; raises Refused.
    """
    report = starting_weights(learner.model, config, resumed)
    prepared = None if resumed else learner.model.prepare(partial(training_images, data, config))
    simple, epochs, untrained = getattr(config.model, "pretrain_glimpse", 0), config.trainer.epochs, None
    if simple >= epochs:
        untrained = (
            f"The simple glimpse network is trained in all {epochs} epochs, the convolutional one in none: "
            f"model.pretrain_glimpse={simple} reaches trainer.epochs={epochs}."
        )
    return "\n".join(filter(None, (report, prepared, untrained))) or None


def seed_everything(seed: int) -> None:
    """Seed all global random generators: checkpoints hold their states, so those must depend on nothing but the run."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def should_compile(config: schema.Config, data: Data) -> bool:
    """`on` and `graph` insist; `auto` compiles where a compiler is found and a run is long, but on a CPU no games, as
    they compile for minutes, and of sequences those of Soft RAM alone: DRAM's step leaves out what does not count and
    so varies in shape.
    """
    trainer = config.trainer
    if trainer.compile == "off":
        return False
    if not compiler_found():
        if trainer.compile != "auto":
            raise Refused(
                f"trainer.compile={trainer.compile} needs a C++ compiler and none was found: install one or use "
                "trainer.compile=off."
            )
        print("No C++ compiler was found: training runs without torch.compile.")
        return False
    on_cpu = choose_device(trainer.accelerator).type == "cpu"
    if trainer.compile == "graph" and on_cpu:
        raise Refused("trainer.compile=graph is for a GPU and this run has none: use trainer.compile=on.")
    slow = data.info.game or data.info.length and not isinstance(config.model, schema.SoftRam)
    if trainer.compile == "auto" and slow and on_cpu:
        return False
    steps = trainer.epochs * data.steps_per_epoch(trainer.batch_size)
    return trainer.compile != "auto" or (steps >= WORTH_COMPILING and trainer.limit_train_steps is None)


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """`tf32` multiplies matrices and convolves with operands of 10 bits behind the point, where the device can; `bf16`
    with 7 bits on CPUs with AMX, where sums and all else stay fp32, and on a GPU by autocast, which rounds what comes
    out, too, but for models without `halves`. Other CPUs keep fp32.
    """
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision({"32": "highest", "tf32": "high", "bf16": "medium"}[name])
    torch.backends.cudnn.allow_tf32 = name != "32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions


def fit(
    learner: Learner,
    config: schema.Config,
    callbacks: Sequence[Callback] = (),
    *,
    resume: Path | None = None,
    logger: Any = False,
) -> None:
    """Train, from the start or from a checkpoint; what is written is up to the callbacks.

    Lightning sees one process and its device, also under torchrun and Slurm; what several exchange is in processes.py.
    """
    settings, device = config.trainer, choose_device(config.trainer.accelerator)
    gpu = device.type == "cuda"
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer = pl.Trainer(
            accelerator="gpu" if gpu else "cpu",
            devices=[torch.cuda.current_device()] if gpu else 1,
            max_epochs=settings.epochs,
            logger=logger,
            callbacks=[learner.finite, *callbacks],
            plugins=[VerifiedCheckpointIO(learner), LightningEnvironment()],
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        batches = learner.batches(processes.rank(), processes.size())
        if processes.rank():
            seed_everything(key("process", config.seed, processes.rank()) % 2**32)  # dropout of its own
        if resume is None:  # processors of another kind draw weights with other last bits
            processes.average_([parameter.detach() for parameter in learner.model.parameters()])
        with precision(settings.precision):
            trainer.fit(learner, batches, ckpt_path=resume)
    learner.to(device)  # Lightning puts it on the CPU at the end, and what comes next looks at the model
