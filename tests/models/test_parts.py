"""Costs part by part: along several paths, of short sequences, in training; against torch's counter where it sees."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attn_cli.config import schema
from attn_cli.data.splits import DataInfo
from attn_cli.models.build import build_model
from attn_cli.models.counting import parameters, parts_of, weightless
from attn_cli.models.model import GlimpseModel
from attn_cli.models.parts import Part, multiply_adds
from attn_cli.models.rollout import compact_rollout, draw_noise, rollout

CONVNET = schema.ConvNet(filters=(4, 6), kernels=(5, 3), strides=(1, 2), pools=(3, 2), hidden=(16,), dropout=0.0)
READERS = {
    "dram": (schema.Dram(filters=(4, 4, 8), features=16, hidden=12), schema.Glimpses(2, 12)),
    "soft_ram": (schema.SoftRam(filters=(4, 4, 8), features=16, hidden=12), schema.Glimpses(2, 12)),
    "stn": (schema.Stn(filters=(4, 4, 8), features=16, hidden=12), schema.Glimpses(1, 12)),
    "convnet_10": (CONVNET, schema.Glimpses(1, 12)),
}


def settings(name: str) -> schema.Config:
    model, glimpses = READERS[name]
    return schema.Config(model=model, glimpses=glimpses)


def info(length: int, side: int = 40) -> DataInfo:
    return DataInfo("made", 1, side, side, 10, tuple("0123456789"), 0, 0, 0, 0, length)


def images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, 40, 40), dtype=torch.uint8, generator=generator)


def test_by_hand():
    parts = [
        Part("once", 100, spared=30, shared=True),
        Part("glimpse", 10, calls=4, spared=8),
        Part("judge", 5, calls=2, spared=10, training_only=True),
    ]
    assert multiply_adds(parts) == 100 + 40
    assert multiply_adds(parts, samples=3) == 100 + 3 * 40
    assert multiply_adds(parts, training=True) == (300 - 30) + (120 - 8) + (30 - 10)
    assert multiply_adds(parts, training=True, samples=3) == 270 + 3 * (112 + 20)


@pytest.mark.parametrize("name", ["dram", "stn", "convnet_10"])
def test_several_paths_against_torch(name):
    M, B = 3, 2
    model = build_model(settings(name), info(length=2)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        rollout(model, images(B), draw_noise(0, 0, (M, B, model.steps), numbers=model.noises))
    judge = M * model.steps * 12 if name == "dram" else 0  # a rollout works out the baseline, too
    assert counter.get_total_flops() / 2 == B * (multiply_adds(model.parts(), samples=M) + judge)


@pytest.mark.parametrize("name", ["dram", "soft_ram", "stn"])
def test_a_short_sequence_costs_what_a_model_for_short_sequences_does(name):
    """Which has the same networks; between two lengths the cost lies on a line."""
    costs = [multiply_adds(build_model(settings(name), info(k)).parts()) for k in (1, 2, 3)]
    longest = build_model(settings(name), info(5))
    assert [multiply_adds(longest.parts(k + 1)) for k in (1, 2, 3)] == costs
    assert multiply_adds(longest.parts(2.5)) == pytest.approx((costs[0] + costs[1]) / 2, abs=1)
    assert multiply_adds(longest.parts(6)) == longest.multiply_adds()


def test_reading_that_stops_early_against_torch():
    """Two images of four stop after one answer, the others after three."""
    model = build_model(settings("dram"), info(length=5)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        noise = draw_noise(0, 0, (1, 4, model.steps))
        compact_rollout(model, images(4), noise, lambda s, logits, left: (left < 2) & (s < 2))
    judge = (2 * 1 + 2 * 3) * 2 * 12  # of each glimpse
    counted = 2 * multiply_adds(model.parts(1)) + 2 * multiply_adds(model.parts(3))
    assert counter.get_total_flops() / 2 == counted + judge == 4 * multiply_adds(model.parts(2)) + judge


def test_a_convnet_costs_the_same_however_long_the_sequence():
    model = build_model(settings("convnet_10"), info(5))
    assert model.parts(1) == model.parts(6) == model.parts()


@pytest.mark.parametrize("name", READERS)
def test_without_weights(name):
    model, empty = build_model(settings(name), info(3)), weightless(settings(name), info(3))
    assert all(p.is_meta for p in empty.parameters()) and not empty.training
    assert parameters(empty) == sum(p.numel() for p in model.parameters())
    assert parts_of(settings(name), info(3), 2.5) == model.parts(2.5)


def test_a_model_without_a_closed_form_is_counted_by_torch(monkeypatch):
    closed = build_model(settings("convnet_10"), info(3)).multiply_adds()
    monkeypatch.setattr("attn_cli.models.convnets.ConvNet.parts", GlimpseModel.parts)
    (whole,) = parts_of(settings("convnet_10"), info(3), 2.0)
    assert (whole.adds, whole.calls) == (closed, 1)
