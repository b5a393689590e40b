"""torch.compile for the training step, and the graph passes that a rollout needs.

A rollout uses the same weights N times, so its backward pass is a sum of N small products per weight, Σₜ GₜᵀXₜ, and
of N sums over rows per bias. `merge_products` and `merge_sums` have each accumulated in one buffer, without N products
that are written first and added later. The result differs from the eager one by the order of additions only.

Left alone, the partitioner keeps ReLU masks for the backward pass as bools, which CPU loops handle slowly, so it is
told to recompute whatever is element-wise. It would then also look a second time, make the filters of a grid and the
pixels that it lies on again for each glimpse, or draw other random numbers for a dropout than the forward pass had:
`save_looks` forbids that.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.checkpoint import CheckpointPolicy

aten = torch.ops.aten

VARIANTS = 256  # of one function that are compiled; what comes after them runs as it is written

# Defined by hand: a call of `torch.library.custom_op` costs as much as a small product.
library = torch.library.Library("attn", "FRAGMENT")
library.define("sum_of_products(Tensor[] gradients, Tensor[] inputs) -> Tensor")
library.define("sum_of_rows(Tensor[] gradients) -> Tensor")
SUM_OF_PRODUCTS = torch.ops.attn.sum_of_products.default
SUM_OF_ROWS = torch.ops.attn.sum_of_rows.default


def sum_of_products(gradients: list[Tensor], inputs: list[Tensor]) -> Tensor:
    """Σₜ Gₜᵀ Xₜ for Gₜ (rows, n) and Xₜ (rows, k), accumulated in one (n, k) buffer."""
    total = gradients[0].t() @ inputs[0]
    for gradient, value in zip(gradients[1:], inputs[1:], strict=True):
        total.addmm_(gradient.t(), value)
    return total


def sum_of_rows(gradients: list[Tensor]) -> Tensor:
    """The sum of all rows of all Gₜ (rows, n): (n,)."""
    total = gradients[0].sum(0)
    for gradient in gradients[1:]:
        total += gradient.sum(0)
    return total


library.impl("sum_of_products", sum_of_products, "CompositeExplicitAutograd")
library.impl("sum_of_rows", sum_of_rows, "CompositeExplicitAutograd")


@torch.library.register_fake("attn::sum_of_products", lib=library)
def _(gradients: list[Tensor], inputs: list[Tensor]) -> Tensor:
    return inputs[0].new_empty(gradients[0].shape[1], inputs[0].shape[1])


@torch.library.register_fake("attn::sum_of_rows", lib=library)
def _(gradients: list[Tensor]) -> Tensor:
    return gradients[0].new_empty(gradients[0].shape[1])


def compiler_found() -> bool:
    """Whether torch.compile can build for this CPU: it needs a C++ compiler."""
    from torch._inductor import config

    cxx = config.cpp.cxx
    names = [c for c in (cxx if isinstance(cxx, (list, tuple)) else [cxx]) if c]
    return any(shutil.which(name) for name in [*names, "g++", "clang++"])


def compiled(function: Callable[..., Any], graph: bool = False) -> Callable[..., Any]:
    """`torch.compile` for fixed shapes with the settings that suit rollouts. With `graph` what a GPU is given to do,
    forward and backward, is recorded once and replayed as a CUDA graph, which a CPU ignores: a result is then good
    until the next call.
    """
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    functorch.aggressive_recomputation = True
    inductor.joint_custom_post_pass = improve
    inductor.post_grad_custom_post_pass = split_bias
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # which trainer.precision=tf32 asks for
    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = VARIANTS
    if not graph:
        return torch.compile(function, dynamic=False)
    replayed = torch.compile(function, dynamic=False, options={"triton.cudagraphs": True})

    def step(*args: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return replayed(*args)

    return step


def improve(graph: fx.Graph) -> None:
    """All passes, on the joint graph of forward and backward."""
    save_looks(graph)
    merge_products(graph)
    merge_sums(graph)
    graph.eliminate_dead_code()


def save_looks(graph: fx.Graph) -> None:
    """Mark as values to keep for the backward pass what the retina copied, the filters of a grid and the pixels that it
    lies on, and the seeds of random numbers.
    """
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        kept = [node] if any(name in str(node.target) for name in ("attn.windows", "inductor_seed")) else []
        if str(node.target) == "attn.look.default":
            kept = [_made(value) for value in node.args]
        for value in kept:
            value.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def merge_products(graph: fx.Graph) -> None:
    """Replace add(…add(mm(G₁ᵀ, X₁), mm(G₂ᵀ, X₂))…, mm(Gₙᵀ, Xₙ)), n ≥ 3, by one `sum_of_products`."""
    for node, products in _sums(graph, _is_weight_gradient):
        inputs = [p.args[1] for p in products]
        with graph.inserting_before(node):
            total = _call(graph, SUM_OF_PRODUCTS, [p.args[0].args[0] for p in products], inputs)
        node.replace_all_uses_with(total)


def merge_sums(graph: fx.Graph) -> None:
    """The same for biases: add(…add(ΣG₁, ΣG₂)…, ΣGₙ), sums over rows, becomes one `sum_of_rows`."""
    for node, sums in _sums(graph, _is_bias_gradient):
        with graph.inserting_before(node):
            total = _call(graph, SUM_OF_ROWS, [_sum_under(s).args[0] for s in sums])
            total = _call(graph, aten.view.default, total, list(node.meta["val"].shape))
        node.replace_all_uses_with(total)


def split_bias(graph: fx.Graph) -> None:
    """addmm(b, X, W) → mm(X, W) + b, on the graph of one direction: on a CPU `addmm` copies the bias into its output
    first, while the addition joins the element-wise loop that comes next.
    """
    nodes: list[Any] = list(graph.nodes)
    for node in nodes:
        if not _is(node, aten.addmm.default) or node.kwargs or node.args[0].meta["val"].dim() != 1:
            continue
        bias, x, weight = node.args
        if bias.meta["val"].device.type == "cuda":  # there `addmm` adds the bias on the way
            continue
        with graph.inserting_before(node):
            total = _call(graph, aten.add.Tensor, _call(graph, aten.mm.default, x, weight), bias)
        node.replace_all_uses_with(total)
        graph.erase_node(node)


def _sums(graph: fx.Graph, wanted: Callable[[Any], bool]) -> Iterator[tuple[fx.Node, list[Any]]]:
    """Every tree of additions with three or more leaves, all of them wanted."""
    for node in list(graph.nodes):
        if not _is(node, aten.add.Tensor) or any(_is(user, aten.add.Tensor) for user in node.users):
            continue
        leaves = _terms(node, top=True)
        if len(leaves) >= 3 and all(map(wanted, leaves)):
            yield node, leaves


def _made(node: Any) -> Any:
    """What a view is one of, or a value itself."""
    while node.op == "call_function" and getattr(node.target, "is_view", False):
        node = node.args[0]
    return node


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


def _sum_under(node: Any) -> Any:
    """The sum that a view of it looks at."""
    return node.args[0] if _is(node, aten.view.default) else node


def _is_bias_gradient(node: Any) -> bool:
    total = _sum_under(node)
    return _is(total, aten.sum.dim_IntList) and total.args[1] == [0] and total.args[0].meta["val"].dim() == 2


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = target(*fx.node.map_arg(args, lambda n: n.meta["val"]))
    return node
