"""Gaussian grids that lie on what their glimpse network reads, for the differentiable RAM.

A reader that learned to find its digits in small scenes keeps a habit of them: its grids lie beside the digit, always
by the same distance, so they must reach far to hold it all, and some of their filters read nothing. Training does not
undo that, as grid and glimpse network would have to change together. `refit` does: the grids are moved and made as
small as what is read of them, and the weights of the glimpse layer are resampled to the new filters, so that the reader
says nearly what it said, from filters that lie closer together. None of the four papers does this. It changes the
parameters and hardly the function, as Net2Net does (Chen, Goodfellow, Shlens 2016, arXiv 1511.05641).

What filter (y, x) contributes is |W_yx|² times the variance of what it sees, over images and glimpses. Along each axis
the new grid lies around the mean of that, and reaches two standard deviations to either side.

Legend: R rows (every glimpse of every image), N filters per axis, F features, D hidden, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_cli.errors import Refused
from attn_cli.models.rollout import rollout

if TYPE_CHECKING:
    from attn_cli.models.soft_ram import SoftRAM

REACH = 2.0  # standard deviations to either side of the mean that a grid covers
BATCHES = 40  # of training images
EDGE = 0.99  # how near the edge of the image, at 1, a new centre may be: tanh never gives an edge itself


@torch.no_grad()
def refit(model: SoftRAM, images: Callable[[], Iterable[Tensor]]) -> str:
    """Move and narrow the grids of `model`, with a fully-connected glimpse network and absolute centres; `images` gives
    batches (B, C, H, W). Returns what was done in one line; raises Refused where nothing is read of them.
    """
    uppers, raws, seen = _watched(model, islice(images(), BATCHES))
    weight = model.glimpse_layer.weight
    N = model.size
    weights = weight.double().unflatten(1, (-1, N, N))  # (F, C, N, N)
    read = (weights.square().sum(0) * seen.var(0).unflatten(0, (-1, N, N))).sum(0)  # (N, N)
    if not read.sum() > 0:
        raise Refused(
            "model.refit: the glimpse network reads nothing of the training images, so there is nothing to fit."
        )
    (below, tall), (aside, wide) = _spread(read.sum(1)), _spread(read.sum(0))
    down, across = _resampling(N, below, tall).to(weights), _resampling(N, aside, wide).to(weights)
    weight.copy_(torch.einsum("fcyx,yb,xa->fcba", weights, down, across).flatten(1))
    # The extraction layer shall say where the new grids are: a linear regression on what it said.
    filters = weights.new_tensor([aside, below])
    ratio = weights.new_tensor([wide, tall])
    wanted = raws.clone()
    whole = 2 / (N - 1)  # of a filter's distance at which the grid covers the image, which is 2 wide
    strides = model.strides(raws)
    wanted[:, :2] = torch.atanh((torch.tanh(raws[:, :2]) + filters * strides * whole).clamp(-EDGE, EDGE))
    wanted[:, 2:4] = model.strides_from(strides * ratio)
    wanted[:, 4] += ratio.log().sum()
    inputs = torch.cat([uppers, uppers.new_ones(len(uppers), 1)], 1)  # (R, D + 1)
    layer = model.extraction
    square = inputs.T @ inputs
    square.diagonal().add_(1.0)  # where states never vary the layer stays as it is
    change = torch.linalg.solve(square, inputs.T @ (wanted - raws)).T  # (6, D + 1)
    layer.weight.add_(change[:, :-1].to(layer.weight))
    layer.bias.add_(change[:, -1].to(layer.bias))
    return (
        f"model.refit: grids {wide:.2f} times as wide and {tall:.2f} times as tall, moved by {aside:+.1f} and "
        f"{below:+.1f} filters (to the right, down)."
    )


def _watched(model: SoftRAM, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What the extraction layer was given (R, D) and said (R, 6), in float64, and what the glimpse layer was given
    (R, C·N·N), along mean paths.
    """
    given: dict[nn.Module, list[Tensor]] = {model.extraction: [], model.glimpse_layer: []}
    hooks = [layer.register_forward_pre_hook(lambda layer, inputs: given[layer].append(inputs[0])) for layer in given]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            images = batch.to(model.extraction.weight.device)  # the model goes to the data's device when it is trained
            noise = torch.zeros(1, len(images), model.steps, model.noises, device=images.device)
            rollout(model, images, noise, greedy=True)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    layer = model.extraction
    objects = model.glimpses * (model.targets - 1) if model.sequence else model.steps  # the last target is "no more"
    uppers = torch.cat(given[layer]).double()
    seen = torch.cat([x for n, x in enumerate(given[model.glimpse_layer]) if n % model.steps < objects]).double()
    return uppers, F.linear(uppers, layer.weight.double(), layer.bias.double()), seen


def _spread(read_N: Tensor) -> tuple[float, float]:
    """By how many filters the mean of what is read lies off the middle, and how wide REACH makes a grid of it."""
    N = len(read_N)
    share = read_N / read_N.sum()
    place = torch.arange(N).to(share) - (N - 1) / 2
    mean = (share * place).sum()
    deviation = (share * (place - mean).square()).sum().sqrt().clamp(min=0.5)  # one filter is one wide
    return float(mean), float(2 * REACH * deviation / N)


def _resampling(N: int, shift: float, ratio: float) -> Tensor:
    """What each of N old filters saw (N, N), as a mean of what those see that lie `shift` old filters further on and
    `ratio` times as close together: weights fall linearly with the distance, as for a picture that is made smaller.
    """
    middle = (N - 1) / 2
    old = (torch.arange(N, dtype=torch.float64) - middle - shift) / ratio + middle  # in new filters
    new = torch.arange(-N, 2 * N, dtype=torch.float64)  # those outside the new grid, too
    near = (1 - (old[:, None] - new).abs() * min(1.0, ratio)).clamp(min=0)
    return (near / near.sum(1, keepdim=True).clamp(min=1e-9))[:, N : 2 * N]
