"""torch.compile for the training step, and two graph passes that a rollout needs.

A rollout uses the same weights N times, so its backward pass is a sum of N small products per weight, Σₜ GₜᵀXₜ.
`merge_products` turns each such sum into one product of the concatenations: a longer inner dimension, and no N − 1
passes over the accumulator. The result differs from the eager one by the order of additions only.

Left alone, the partitioner keeps ReLU masks for the backward pass as bools, which CPU loops handle slowly, so it is
told to recompute whatever is element-wise. It would then also look a second time: `save_windows` forbids that.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

aten = torch.ops.aten


def compiler_found() -> bool:
    """Whether torch.compile can build for this CPU: it needs a C++ compiler."""
    from torch._inductor import config

    cxx = config.cpp.cxx
    names = [c for c in (cxx if isinstance(cxx, (list, tuple)) else [cxx]) if c]
    return any(shutil.which(name) for name in [*names, "g++", "clang++"])


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` for fixed shapes with the settings that suit rollouts."""
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    functorch.aggressive_recomputation = True
    inductor.joint_custom_post_pass = improve
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    return torch.compile(function, dynamic=False)


def improve(graph: fx.Graph) -> None:
    """Both passes, on the joint graph of forward and backward."""
    save_windows(graph)
    merge_products(graph)


def save_windows(graph: fx.Graph) -> None:
    """Mark what the retina copied as values to keep for the backward pass."""
    for node in graph.nodes:
        if node.op == "call_function" and "attn.windows" in str(node.target):
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def merge_products(graph: fx.Graph) -> None:
    """Replace add(…add(mm(G₁ᵀ, X₁), mm(G₂ᵀ, X₂))…, mm(Gₙᵀ, Xₙ)) by mm(cat(G)ᵀ, cat(X)), for n ≥ 3."""
    for node in list(graph.nodes):
        if not _is(node, aten.add.Tensor) or any(_is(user, aten.add.Tensor) for user in node.users):
            continue
        products = _terms(node, top=True)
        if len(products) < 3 or not all(map(_is_weight_gradient, products)):
            continue
        gradients = [p.args[0].args[0] for p in products]
        inputs = [p.args[1] for p in products]
        with graph.inserting_before(node):
            g = _call(graph, aten.cat.default, gradients, 0)
            x = _call(graph, aten.cat.default, inputs, 0)
            product = _call(graph, aten.mm.default, _call(graph, aten.permute.default, g, [1, 0]), x)
        node.replace_all_uses_with(product)
    graph.eliminate_dead_code()


def _is(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target


def _terms(node: fx.Node, top: bool = False) -> list[Any]:
    if _is(node, aten.add.Tensor) and not node.kwargs and (top or len(node.users) == 1):
        return [term for argument in node.args for term in _terms(argument)]  # type: ignore[arg-type]
    return [node]


def _is_weight_gradient(node: Any) -> bool:
    if not _is(node, aten.mm.default) or len(node.users) != 1:
        return False
    left = node.args[0]
    return _is(left, aten.t.default) or (_is(left, aten.permute.default) and left.args[1] == [1, 0])


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = target(*fx.node.map_arg(args, lambda n: n.meta["val"]))
    return node
