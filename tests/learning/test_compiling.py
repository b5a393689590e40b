"""The compiled step computes what the eager one does, and the graph pass finds its sums."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from attn_cli.config.schema import Glimpses, Ram, Scales
from attn_cli.learning.compiling import compiled, compiler_found, merge_products
from attn_cli.learning.objectives import hybrid
from attn_cli.models.ram import RAM
from attn_cli.models.rollout import draw_noise, rollout

aten = torch.ops.aten


def weight_gradient_graph(terms: int) -> fx.Graph:
    """Σ Gₜᵀ Xₜ over `terms` pairs, as autograd leaves it."""
    graph, pairs = fx.Graph(), []
    for t in range(terms):
        g, x = graph.placeholder(f"g{t}"), graph.placeholder(f"x{t}")
        g.meta["val"], x.meta["val"] = torch.empty(5, 3, device="meta"), torch.empty(5, 4, device="meta")
        pairs.append((g, x))
    total = None
    for g, x in pairs:
        product = graph.call_function(aten.mm.default, (graph.call_function(aten.permute.default, (g, [1, 0])), x))
        total = product if total is None else graph.call_function(aten.add.Tensor, (total, product))
    graph.output(total)
    return graph


@pytest.mark.parametrize(("terms", "products"), [(2, 2), (3, 1), (6, 1)])
def test_a_sum_of_products_becomes_one_product(terms, products):
    graph = weight_gradient_graph(terms)
    merge_products(graph)
    assert sum(node.target is aten.mm.default for node in graph.nodes) == products
    values = [torch.randn(5, 3 + t % 2) for t in range(2 * terms)]
    run = fx.GraphModule(torch.nn.Module(), graph)
    expected = sum(values[2 * t].T @ values[2 * t + 1] for t in range(terms))
    torch.testing.assert_close(run(*values), expected)


@pytest.mark.slow
@pytest.mark.skipif(not compiler_found(), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    "changes", [{}, {"core": "lstm", "policy_gradient": "full", "samples": 2, "baseline": "leave_one_out"}]
)
def test_compiled_loss_and_gradients_equal_the_eager_ones(changes):
    torch.manual_seed(0)
    config = Ram(hidden=32, glimpse_hidden=16, glimpse_features=24, **changes)
    model = RAM(config, Glimpses(4, 8), Scales(2), channels=1, classes=10)
    images = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)
    noise, labels = draw_noise(0, 0, (config.samples, 6, 4)), torch.arange(6)

    def loss(images, noise, labels):
        logits, trace = rollout(model, images, noise)
        return hybrid(logits, trace, labels, baseline=config.baseline, reinforce_weight=0.5).total

    def gradients(function):
        model.zero_grad()
        value = function(images, noise, labels)
        value.backward()
        return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    eager, fast = gradients(loss), gradients(compiled(loss))
    torch.testing.assert_close(fast[0], eager[0])
    assert fast[1].keys() == eager[1].keys()
    for name, gradient in eager[1].items():
        torch.testing.assert_close(fast[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
