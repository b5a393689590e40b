"""`attn bench` measures something real: the figures agree with each other and with the closed form."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_cli.commands import bench
from attn_cli.config import command_sections, schema
from attn_cli.errors import Refused
from attn_cli.glimpses.gaussian import extract
from attn_cli.learning.measuring import Clock
from attn_cli.learning.training import precision
from attn_cli.models.build import build_model


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One short measurement: its settings, and the row that it gave."""
    before, output = torch.get_num_threads(), tmp_path_factory.mktemp("bench") / "bench.json"
    small = command_sections.Bench(
        output=str(output), shapes=("28x28",), samples=1, threads=1, seconds=0.2, compile="off"
    )
    (row,) = bench.run(small)
    torch.set_num_threads(before)
    return small, row


def test_figures_agree_with_each_other(measured):
    small, row = measured
    assert json.loads(Path(small.output).read_text()) == [row]
    assert {"shape", "images_per_second", "sgemm_share", "ratio_to_reference", "lightning_share"} <= set(row)
    assert row["images_per_second"] == pytest.approx(128 / (row["step_ms"] / 1000))
    assert row["steps_per_second"] == pytest.approx(1000 / row["step_ms"])
    assert row["precision"] == "32" and row["gradient_error"] is row["busy_share"] is None
    # 6 glimpses: what and where twice (no gradient goes on), combine and core three times; see RAM.multiply_adds
    adds = 6 * (2 * (64 * 128 + 2 * 128) + 3 * (256 * 256 + 512 * 256)) + 5 * 256 * (3 * 2 + 2) + 3 * 2560
    assert row["multiply_adds_per_second"] == pytest.approx(row["images_per_second"] * adds)
    assert 0 < row["sgemm_share"] < 1


def test_the_loop_reference_is_slower(measured):
    assert measured[1]["ratio_to_reference"] > 1.2


def test_a_lower_precision_tells_its_error():
    """bf16 rounds operands to 8 bits, an error of 2⁻⁹ each, where the CPU does so; 32 against 32 is exact."""
    settings = schema.Config(
        model=schema.Ram(hidden=32), glimpses=schema.Glimpses(2, 8), trainer=schema.Trainer(precision="bf16")
    )
    data = bench.SyntheticData(bench.Shape(28, 28, 2, 8, 1), 64, 1, torch.device("cpu"))
    error = bench.gradient_error(settings, data, torch.device("cpu"))
    assert 1e-3 < error < 0.1 if torch.cpu._is_amx_tile_supported() else error < 1e-5
    exact = replace(settings, trainer=schema.Trainer(precision="32"))
    assert bench.gradient_error(exact, data, torch.device("cpu")) == 0


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("gpu", "cuda"):
        with pytest.raises(Refused, match="finds no GPU.*device=cpu"):
            bench.run(command_sections.Bench(device=device, shapes=("28x28",)))


def test_the_cpu_is_measured_where_there_is_a_gpu(monkeypatch):
    """Lightning, too, is told which of the two: it would take the GPU."""
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "lightning_step", lambda settings, *_: given.append(settings.trainer.accelerator) or 1.0)
    small = command_sections.Bench(device="cpu", shapes=("28x28",), batch_size=2, threads=1, seconds=0.01)
    bench.measure_shape(bench.SHAPES["28x28"], small, torch.device("cpu"), False)
    assert given == ["cpu"]


def test_graphs_are_for_a_gpu():
    with pytest.raises(Refused, match="compile=graph is for a GPU .* use compile=on"):
        bench.run(command_sections.Bench(compile="graph", device="cpu", threads=1))


def test_a_missing_output_folder_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(Refused, match="does not exist"):
        bench.run(command_sections.Bench(output=str(tmp_path / "no" / "bench.json"), shapes=("28x28",)))


def test_one_image_cannot_be_normalised_which_is_told_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(bench, "measure_shape", lambda *_: pytest.fail("measured"))
    with pytest.raises(Refused, match="at least 2 images a batch: use a larger batch_size"):
        bench.run(command_sections.Bench(batch_size=1, compile="off"))


@pytest.mark.parametrize("policy_gradient", ["detached", "full"])
def test_training_multiply_adds_against_torch(policy_gradient):
    """Torch counts the same products in forward and backward of a real step."""
    from torch.utils.flop_counter import FlopCounterMode

    from attn_cli.learning.objectives import hybrid
    from attn_cli.models.ram import RAM
    from attn_cli.models.rollout import draw_noise, rollout

    config = schema.Ram(samples=1, baseline="learned", policy_gradient=policy_gradient)
    model = RAM(config, schema.Glimpses(4, 8), schema.Scales(2), channels=1, classes=10)
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        logits, trace = rollout(model, images, draw_noise(0, 0, (1, 2, 4)))
        hybrid(logits, trace, torch.tensor([0, 1])).total.backward()
    # The first step's hidden state is a constant: its gradient is not needed, and autograd still computes it.
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(model.multiply_adds(training=True), rel=1e-3)


def test_the_product_that_a_step_is_compared_with_is_fp32(monkeypatch):
    """Whatever the precision of the step, so that shares of one machine can be compared."""
    found = []
    monkeypatch.setattr(torch, "mm", lambda *_, **__: found.append(torch.get_float32_matmul_precision()))
    product = bench.matrix_product(torch.device("cpu"))
    for name in ("32", "bf16"):
        with precision(name):
            product()
    assert found == ["highest", "highest"]


def test_runs_trained_together_are_compared_with_one_after_another():
    settings = command_sections.Bench(samples=2, batch_size=4, threads=1, seconds=0.01, compile="off", parallel_seeds=3)
    row = bench.measure_shape(bench.SHAPES["28x28"], settings, torch.device("cpu"), False)
    assert row["parallel_seeds"] == 3 and 0.3 < row["parallel_ratio"] < 3


@pytest.mark.parametrize("name", ["pairs", "svhn"])
def test_shapes_of_dram(name):
    """Each shape takes a real step of the learner that trains it, on labels that the learner understands. Sequences
    that stop early cannot be stacked on a CPU.
    """
    shape = bench.SHAPES[name]
    shape = replace(shape, model=replace(shape.model, filters=(4, 4, 8), features=32, hidden=16))
    settings = command_sections.Bench(
        samples=2, batch_size=2, threads=1, seconds=0.01, compile="off", parallel_seeds=2 if shape.length else 1
    )
    row = bench.measure_shape(shape, settings, torch.device("cpu"), False)
    assert row["parallel_seeds"] == settings.parallel_seeds and row["parallel_ratio"] is None
    assert str(shape) == row["shape"] and row["peak_memory_mb"] > 50 and row["kernel_launches"] is None
    data = bench.SyntheticData(shape, 64, 1, torch.device("cpu"))
    look = {"glimpses": schema.Glimpses(shape.glimpses, shape.size), "scales": schema.Scales(shape.scales)}
    model: Any = build_model(schema.Config(model=shape.model, **look), data.info)
    once = 3 * model.context_network.adds - model.context_network.convolutions.first_adds  # an image, for both paths
    adds = 2 * model.multiply_adds(training=True) - once
    assert row["multiply_adds_per_second"] == pytest.approx(row["images_per_second"] * adds)
    labels = data.labels
    if shape.length:
        assert labels.shape == (64, 6) and (labels[:, 5] == 10).all() and (labels[:, :5] < 10).all()
    else:
        assert labels.shape == (64,) and labels.max() >= 40


@pytest.mark.parametrize("name", ["soft_ram", "rsam"])
def test_shapes_of_soft_attention(name):
    """One path, no retina to compare with; of a Gaussian grid the time in that of its products."""
    settings = command_sections.Bench(shapes=(name,), samples=4, batch_size=3, threads=1, seconds=0.01, compile="off")
    row = bench.measure_shape(bench.SHAPES[name], settings, torch.device("cpu"), False)
    assert row["samples"] == 1 and row["ratio_to_reference"] is None
    assert row["shape"] == {"soft_ram": "Soft RAM 100x100, 4 glimpses 12x12x1", "rsam": "RSAM 32x32, 4 glimpses"}[name]
    assert (row["grid_ratio"] is None) == (name == "rsam") and (row["grid_ratio"] or 2) > 1
    assert (row["grid_ratio_within"] is None) == (name == "rsam")
    assert 1 < (row["grid_ratio_within"] or 2) < 100


@pytest.mark.parametrize("compiles", [False, True])
def test_what_a_grid_is_compared_with(monkeypatch, compiles):
    """The grids of a step with the products of as many, and with the share of their time that these take in them."""
    shape, data = bench.SHAPES["soft_ram"], bench.SyntheticData(bench.SHAPES["soft_ram"], 2, 1, torch.device("cpu"))
    looks, products, product = [], [], torch.bmm
    monkeypatch.setattr(bench, "compiled", lambda function: looks.append("compiled") or function)
    monkeypatch.setattr(bench, "extract", lambda *given: looks.append(given[0].shape) or extract(*given))
    monkeypatch.setattr(torch, "bmm", lambda a, b: products.append((*a.shape, b.shape[2])) or product(a, b))
    asked = {}

    def in_turns(functions, seconds, device):
        for name, function in functions.items():
            products.clear()
            function()
            asked[name] = sorted(products)
        return {"grid": 6.0, "products": 4.0}

    monkeypatch.setattr(bench, "in_turns", in_turns)
    monkeypatch.setattr(bench, "share_of", lambda function, operator: {"aten::bmm": 0.8}[operator])
    assert bench.grid_ratios(data, shape, 1.0, torch.device("cpu"), compiles) == (1.5, 1.25)
    assert asked["grid"] == asked["products"] and len(asked["grid"]) == 5 * shape.glimpses
    assert looks == ["compiled"] * compiles + [(2, 1, 100, 100)] * shape.glimpses


MEMORY = """
import torch
from attn_cli.learning.measuring import peak_memory, start_memory
device = torch.device("cpu")
start_memory(device)
before = peak_memory(device)
held = torch.ones(100_000_000)
during = peak_memory(device)
del held
start_memory(device)
print(before, during, peak_memory(device))
"""


def test_memory_of_each_shape_is_its_own():
    """What an earlier shape took is not counted again, where the system can forget it."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    before, during, after = map(float, done.stdout.split())
    assert during - before == pytest.approx(400, abs=40)
    if Path("/proc/self/clear_refs").exists():
        assert after < during - 300


def test_a_clock_that_looks_now_and_then_tells_the_seconds_of_one_step(monkeypatch):
    """On a GPU, where the host runs ahead, it looks at every few steps."""
    now = iter([0.0, 5.0, 6.0, 7.0])  # the first steps are slow
    monkeypatch.setattr("attn_cli.learning.measuring.time.perf_counter", lambda: next(now))
    clock, module = Clock(every=10), torch.nn.Linear(1, 1)
    module.device = torch.device("cpu")  # type: ignore[assignment]
    for number in range(40):
        clock.on_train_batch_start(None, module, None, number)
    assert len(clock.times) == 4 and clock.seconds() == pytest.approx(0.1)
