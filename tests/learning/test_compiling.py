"""The compiled step computes what the eager one does, and the graph passes find what they are for."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._dynamo.testing import CompileCounter

from attn_cli.config import schema
from attn_cli.config.schema import Glimpses, Ram, Scales, SoftRam
from attn_cli.data.splits import DataInfo
from attn_cli.errors import Refused
from attn_cli.learning import compiling, parallel, training
from attn_cli.learning import learner as learners
from attn_cli.learning.compiling import (
    SUM_OF_PRODUCTS,
    SUM_OF_ROWS,
    compiled,
    compiler_found,
    improve,
    split_bias,
)
from attn_cli.learning.objectives import hybrid, stopping
from attn_cli.models.ram import RAM
from attn_cli.models.rollout import draw_noise, rollout
from attn_cli.models.soft_ram import SoftRAM

aten = torch.ops.aten


def gradient_graph(terms: int) -> fx.Graph:
    """Σ Gₜᵀ Xₜ and Σ 1ᵀ Gₜ over `terms` pairs, as autograd leaves them."""
    graph, pairs = fx.Graph(), []

    def call(target, *args):
        node = graph.call_function(target, args)
        node.meta["val"] = target(*fx.node.map_arg(args, lambda n: n.meta["val"]))
        return node

    for t in range(terms):
        g, x = graph.placeholder(f"g{t}"), graph.placeholder(f"x{t}")
        g.meta["val"], x.meta["val"] = torch.empty(5, 3, device="meta"), torch.empty(5, 4, device="meta")
        pairs.append((g, x))
    weight = bias = None
    for g, x in pairs:
        product = call(aten.mm.default, call(aten.permute.default, g, [1, 0]), x)
        total = call(aten.view.default, call(aten.sum.dim_IntList, g, [0], True), [3])
        weight = product if weight is None else call(aten.add.Tensor, weight, product)
        bias = total if bias is None else call(aten.add.Tensor, bias, total)
    graph.output((weight, bias))
    return graph


@pytest.mark.parametrize(("terms", "merged"), [(2, False), (3, True), (6, True)])
def test_gradients_of_a_rollout_are_accumulated(terms, merged):
    graph = gradient_graph(terms)
    improve(graph)
    targets = [node.target for node in graph.nodes]
    assert (SUM_OF_PRODUCTS in targets) == (SUM_OF_ROWS in targets) == merged
    assert (aten.mm.default in targets) == (aten.sum.dim_IntList in targets) != merged
    values = [torch.randn(5, 3 + t % 2) for t in range(2 * terms)]
    weight, bias = fx.GraphModule(torch.nn.Module(), graph)(*values)
    torch.testing.assert_close(weight, sum(values[2 * t].T @ values[2 * t + 1] for t in range(terms)))
    torch.testing.assert_close(bias, sum(values[2 * t].sum(0) for t in range(terms)))


def test_a_bias_is_added_after_its_product():
    graph = fx.Graph()
    nodes = [graph.placeholder(name) for name in "bxw"]
    for node, shape in zip(nodes, [(3,), (5, 4), (4, 3)], strict=True):
        node.meta["val"] = torch.empty(shape, device="meta")
    graph.output(graph.call_function(aten.addmm.default, tuple(nodes)))
    split_bias(graph)
    assert aten.addmm.default not in [node.target for node in graph.nodes]
    b, x, w = torch.randn(3), torch.randn(5, 4), torch.randn(4, 3)
    torch.testing.assert_close(fx.GraphModule(torch.nn.Module(), graph)(b, x, w), x @ w + b)


@pytest.mark.slow
@pytest.mark.skipif(not compiler_found(), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    ("changes", "graph"),
    [
        ({}, False),
        ({}, True),  # here the same kernels, called one by one
        ({"core": "lstm", "policy_gradient": "full", "samples": 2, "baseline": "leave_one_out"}, False),
        ({"scale": "learned", "samples": 2}, False),
        ({"stop": "learned", "samples": 2, "baseline": "leave_one_out"}, False),
    ],
)
def test_compiled_loss_and_gradients_equal_the_eager_ones(changes, graph):
    torch.manual_seed(0)
    config = Ram(hidden=32, glimpse_hidden=16, glimpse_features=24, **changes)
    model = RAM(config, Glimpses(4, 8), Scales(2), channels=1, classes=10)
    images = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)
    noise, labels = draw_noise(0, 0, (config.samples, 6, 4), numbers=model.noises), torch.arange(6)

    def loss(images, noise, labels):
        logits, trace = rollout(model, images, noise)
        objective = stopping if config.stop == "learned" else hybrid
        return objective(logits, trace, labels, baseline=config.baseline, reinforce_weight=0.5).total

    def gradients(function):
        model.zero_grad()
        value = function(images, noise, labels)
        value.backward()
        return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    eager, fast = gradients(loss), gradients(compiled(loss, graph))
    torch.testing.assert_close(fast[0], eager[0])
    assert fast[1].keys() == eager[1].keys()
    for name, gradient in eager[1].items():
        torch.testing.assert_close(fast[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.skipif(not compiler_found(), reason="torch.compile needs a C++ compiler")
def test_the_filters_of_a_grid_and_its_pixels_are_made_once(monkeypatch):
    """The backward pass of a compiled step takes them over, with the gradients of the eager one."""
    graphs: list[fx.Graph] = []

    def watched(graph: fx.Graph) -> None:
        split_bias(graph)
        graphs.append(graph)

    monkeypatch.setattr(compiling, "split_bias", watched)
    torch.manual_seed(0)
    config = SoftRam(hidden=16, features=16, filters=(2, 2, 4))
    model = SoftRAM(config, Glimpses(3, 8), Scales(1), channels=1, classes=10, height=40, width=30)
    images = torch.randint(0, 256, (5, 1, 40, 30), dtype=torch.uint8)
    noise, labels = draw_noise(0, 0, (1, 5, 3), numbers=model.noises), torch.arange(5)

    def loss(images, noise, labels):
        return torch.nn.functional.cross_entropy(rollout(model, images, noise)[0][0], labels)

    eager = torch.autograd.grad(loss(images, noise, labels), list(model.parameters()))
    fast = torch.autograd.grad(compiled(loss)(images, noise, labels), list(model.parameters()))
    for one, other in zip(eager, fast, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
    looks = [node for graph in graphs for node in graph.nodes if str(node.target) == "attn.look_back.default"]
    assert len(looks) == 3
    for node in looks:
        for kept in node.args[1:]:  # filters, pixels, and what lies between the two products
            assert compiling._made(kept).op == "placeholder"


@pytest.mark.gpu
def test_a_replayed_step_equals_the_eager_one_on_a_gpu():
    """Weights and logged means after six steps, of which the first are recorded."""
    from attn_cli.commands.bench import SHAPES, SyntheticData, make_learner, training_step

    device, ends = torch.device("cuda"), []
    for mode in ("off", "graph"):
        config = schema.Config(
            model=Ram(samples=2),
            trainer=schema.Trainer(batch_size=16, epochs=1, compile=mode),
            optimizer=schema.Optimizer(name="sgd", warmup=0.0, lr=0.01),  # Adam makes much of the last bits
        )
        data = SyntheticData(SHAPES["28x28"], 16, 100, device)
        learner = make_learner(config, data, device, mode == "graph")
        step = training_step(learner, data)
        for _ in range(6):
            step()
        ends.append([learner.totals, *learner.model.parameters()])
    for eager, replayed in zip(*ends, strict=True):
        torch.testing.assert_close(replayed, eager, rtol=1e-3, atol=1e-5)


def test_graphs_are_for_a_gpu(monkeypatch):
    monkeypatch.setattr(training, "compiler_found", lambda: True)
    data = SimpleNamespace(info=SimpleNamespace(length=0, game=None), steps_per_epoch=lambda batch_size: 10)
    config = schema.Config(trainer=schema.Trainer(accelerator="cpu", compile="graph"))
    with pytest.raises(Refused, match="trainer.compile=graph is for a GPU .* use trainer.compile=on"):
        training.should_compile(config, data)
    monkeypatch.setattr(training, "choose_device", lambda name: torch.device("cuda"))
    assert training.should_compile(config, data)


@pytest.mark.parametrize("mode", ["on", "graph"])
def test_the_learner_records_where_it_is_told_to(mode, monkeypatch):
    told = []
    monkeypatch.setattr(learners, "compiled", lambda function, graph: told.append(graph) or function)
    config = schema.Config(trainer=schema.Trainer(compile=mode))
    training.make_learner(config, SimpleNamespace(info=DataInfo("any", 1, 28, 28, 2, ("0", "1"), 0, 8, 4, 4)), True)
    assert told == [mode == "graph"]


@pytest.mark.parametrize("mode", ["on", "graph"])
def test_runs_trained_together_record_where_they_are_told_to(mode, monkeypatch):
    told = []
    monkeypatch.setattr(parallel, "compiled", lambda function, graph: told.append(graph) or function)
    config = schema.Config(trainer=schema.Trainer(compile=mode))
    data: Any = SimpleNamespace(info=DataInfo("any", 1, 28, 28, 2, ("0", "1"), 0, 8, 4, 4))
    parallel.ParallelLearner([training.make_learner(config, data, False)], [{}], True)
    assert told == [mode == "graph"]


def test_each_call_of_a_recorded_function_begins_a_step(monkeypatch):
    """Otherwise a replay waits until the results of the one before are gone."""
    seen: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **given: seen.append(given) or function)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: seen.append("begins"))
    step = compiled(seen.append, graph=True)
    step("one")
    step("two")
    assert seen[0]["options"] == {"triton.cudagraphs": True}
    assert seen[1:] == ["begins", "one", "begins", "two"]


@pytest.mark.parametrize("length", [0, 5])
def test_sequences_on_a_cpu_are_not_compiled_unless_told_to(length, monkeypatch):
    """There the step of DRAM leaves out what does not count: its shapes vary. That of Soft RAM does not."""
    monkeypatch.setattr(training, "compiler_found", lambda: True)
    data = SimpleNamespace(info=SimpleNamespace(length=length, game=None), steps_per_epoch=lambda batch_size: 10**6)
    for mode, expected in (("auto", length == 0), ("on", True), ("off", False)):
        config = schema.Config(model=schema.Dram(), trainer=schema.Trainer(accelerator="cpu", compile=mode))
        assert training.should_compile(config, data) == expected
        config = replace(config, model=schema.SoftRam())
        assert training.should_compile(config, data) == (mode != "off")


def test_a_step_on_sequences_leaves_out_what_does_not_count():
    from attn_cli.commands.bench import SHAPES, SyntheticData

    model = schema.Dram(filters=(2, 2, 2), features=4, hidden=4, samples=2)
    lengths = torch.arange(16)[:, None] % 5 + 1
    labels = torch.where(torch.arange(6) < lengths, 7, torch.where(torch.arange(6) == lengths, 10, -1))
    config = schema.Config(model=model, glimpses=schema.Glimpses(3, 12), trainer=schema.Trainer(compile="off"))
    data = SyntheticData(SHAPES["svhn"], 16, 1, torch.device("cpu"))
    learner = training.make_learner(config, data)
    rows, step = [], learner.model.step
    learner.model.step = lambda state, noise, greedy=False: (rows.append(len(noise)), step(state, noise))[1]
    loss = learner.loss((data.images, labels, 0, 0))
    learner.compile_step = True  # takes the whole rollout; nothing is compiled here
    learner.model.step = step
    whole = learner.loss((data.images, labels, 0, 0))
    assert torch.allclose(loss, whole, rtol=1e-5) and sum(rows) < 0.7 * 2 * 16 * 18


@pytest.mark.skipif(not compiler_found(), reason="needs a C++ compiler")
def test_dropout_falls_on_the_same_numbers_in_both_directions() -> None:
    """What is element-wise is worked out again for the backward pass: the random numbers must not be others there."""
    x = torch.randn(64, requires_grad=True)
    kept = compiled(lambda x: sum(F.dropout(torch.tanh(x), 0.5) for _ in range(3)))(x)
    kept.sum().backward()
    assert x.grad is not None and len((kept / torch.tanh(x)).round().unique()) > 1
    torch.testing.assert_close(x.grad, kept.detach() / torch.tanh(x.detach()) * (1 - torch.tanh(x.detach()) ** 2))


@pytest.mark.parametrize(
    ("epochs", "limit", "game", "expected"),
    [(300, None, None, True), (299, None, None, False), (300, 10, None, False), (300, None, "a game", False)],
)
def test_only_long_runs_are_compiled_unless_told_to(epochs, limit, game, expected, monkeypatch):
    """Of 10 steps an epoch; what compilation takes a short one never gains."""
    monkeypatch.setattr(training, "compiler_found", lambda: True)
    data = SimpleNamespace(info=SimpleNamespace(length=0, game=game), steps_per_epoch=lambda batch_size: 10)
    trainer = schema.Trainer(accelerator="cpu", epochs=epochs, limit_train_steps=limit)
    assert bool(training.should_compile(schema.Config(trainer=trainer), data)) == expected
    on = replace(trainer, compile="on")
    assert training.should_compile(schema.Config(trainer=on), data)


def test_every_variant_of_a_model_is_compiled(monkeypatch):
    """torch leaves what comes after the eighth as it is: a sweep over sizes trains more than that in one process."""
    compile_, counter = torch.compile, CompileCounter()
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, dynamic=False, backend=counter))

    def double(x):
        return 2 * x

    for size in range(2, 12):
        compiled(double)(torch.ones(size))
    assert counter.frame_count == 10


def test_compiling_is_silent_about_a_precision_that_is_meant():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        compiled(torch.tanh)
        warnings.warn(
            "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled.", stacklevel=1
        )
    assert not any("TensorFloat32" in str(one.message) for one in told)
