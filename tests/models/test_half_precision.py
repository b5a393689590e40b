"""`trainer.precision=bf16` under autocast, as a GPU runs it, here on the CPU: what must keep its digits does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from attn_cli.config import schema
from attn_cli.data.splits import DataInfo
from attn_cli.learning.training import make_learner
from attn_cli.models.rollout import compact_rollout, draw_noise, rollout

ONE_SCALE = (schema.SoftRam, schema.DrawReader, schema.Stn)
MODELS: list[Any] = [
    schema.Ram(hidden=32),
    schema.Ram(hidden=32, stop="learned"),
    schema.Dram(glimpse="fc", filters=(4, 4, 8), features=32, hidden=32),
    schema.SoftRam(features=32, hidden=32, filters=(4, 4, 8), answers="every"),
    schema.DrawReader(hidden=32),
    schema.Stn(features=32, hidden=32, filters=(4, 4, 8)),
    schema.Rsam(),
    schema.Ram(name="ram_lstm", core="lstm", hidden=32),
]


def made(model: Any, precision: str, length: int = 0) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A learner of 16 images, and a batch."""
    classes = tuple(map(str, range(10)))
    data: Any = type("Data", (), {"info": DataInfo("any", 1, 32, 32, 10, classes, 0, 16, 16, 16, length=length)})()
    config = schema.Config(
        model=model,
        glimpses=schema.Glimpses(1 if isinstance(model, schema.Stn) else 3, 12),
        scales=schema.Scales(1 if isinstance(model, ONE_SCALE) else 2),
        trainer=schema.Trainer(precision=precision, batch_size=16),
    )
    torch.manual_seed(0)
    learner = make_learner(config, data, False)
    images = torch.randint(0, 256, (16, 1, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (16, length + 1)) if length else torch.randint(0, 10, (16,))
    return learner, images, labels


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_answers_and_places_have_all_digits(model):
    learner, images, _ = made(model, "bf16")
    noise = draw_noise(0, 0, (2, 16, learner.model.steps), "cpu", learner.model.noises)
    seen = []
    classify = learner.model.classify
    learner.model.classify = lambda hidden: (seen.append(x := classify(hidden)), x)[1]
    with torch.autocast("cpu", torch.bfloat16):
        logits, trace = rollout(learner.model, images, noise)
    assert seen[0].dtype == torch.bfloat16  # or nothing was lowered
    assert logits.dtype == trace.logits.dtype == torch.float32
    assert trace.step_logits is None or trace.step_logits.dtype == torch.float32
    assert trace.locations.dtype == torch.float32 or not trace.locations.any()  # RSAM looks at the centre
    assert trace.log_probs.numel() == 0 or trace.log_probs.dtype == torch.float32


@pytest.mark.parametrize("model", [schema.DrawReader(hidden=32), schema.Stn(features=32, hidden=32, filters=(4, 4, 8))])
def test_half_precision_does_not_move_what_is_placed(model):
    """From the same state."""
    learner, images, _ = made(model, "bf16")
    placing = learner.model
    layer = placing.grid if isinstance(model, schema.DrawReader) else placing.transform
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
        state = placing.start(images, 1)
        key = "hidden" if isinstance(model, schema.DrawReader) else "features"
        state = replace(state, **{key: torch.randn_like(getattr(state, key))})
        if not isinstance(model, schema.DrawReader):
            state = replace(state, memory=state.features)
        boxes = [placing.step(state, torch.zeros(16, 2)).box]
        with torch.autocast("cpu", torch.bfloat16):
            boxes.append(placing.step(state, torch.zeros(16, 2)).box)
    assert torch.equal(*boxes) and boxes[0].std() > 1


def test_answers_of_a_sequence_that_leaves_out_have_all_digits():
    learner, images, _ = made(schema.Dram(glimpse="fc", filters=(4, 4, 8), features=32, hidden=32), "bf16", 2)
    noise = draw_noise(0, 0, (2, 16, learner.model.steps), "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        logits, trace = compact_rollout(
            learner.model, images, noise, lambda s, logits, left: torch.arange(len(left)) % 2 == 0
        )
    assert logits.dtype == trace.log_probs.dtype == torch.float32


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_gradient_is_near_that_in_fp32(model):
    gradients = {}
    for lowered in (False, True):
        learner, images, labels = made(model, "32")
        noise = draw_noise(0, 0, (learner.samples, 16, learner.model.steps), "cpu", learner.model.noises)
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            learner.losses(images, noise, labels).total.backward()
        parts = [p.grad.flatten() for p in learner.model.parameters() if p.grad is not None]
        gradients[lowered] = torch.cat(parts)
    error = ((gradients[True] - gradients[False]).norm() / gradients[False].norm()).item()
    assert 1e-4 < error < 0.3


@pytest.mark.parametrize("precision", ["32", "tf32", "bf16"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_who_is_trained_under_autocast(model, precision):
    learner, _, _ = made(model, precision)
    assert learner.lowered(torch.device("cuda")) == (precision == "bf16" and model.name != "soft_ram")
    assert not learner.lowered(torch.device("cpu"))


def test_a_cpu_lowers_nothing_but_the_operands_of_products():
    learner, images, labels = made(schema.SoftRam(features=32, hidden=32, filters=(4, 4, 8)), "bf16")
    seen, classify = [], learner.model.classify
    learner.model.classify = lambda hidden: (seen.append(hidden.dtype), classify(hidden))[1]
    learner.loss((images, labels, 0, 0))
    assert set(seen) == {torch.float32}
