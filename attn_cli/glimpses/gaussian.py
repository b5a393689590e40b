"""A grid of Gaussian filters over an image: a glimpse that can be differentiated with respect to where it looks.

Gregor et al. 2015 (DRAW, arXiv 1502.04623, section 3.2), with the changes of Semeniuta & Barth 2016, section III:
strides of their own for x and y, and a centre that never leaves the image.

Filter i of an axis has its mean at μ_i = c + (i − (N−1)/2)·δ for i from 0, in pixels, the same standard deviation σ for
all, and weights that sum to 1. The exponent −(a − μ)²/2σ² is taken relative to that of the nearest point of the image,
as a softmax would, so that there is no division by zero however small σ is or however far outside the image a filter
lies: there it reads the pixels at the edge.

Legend: B images, R rows (one path of one image; R = M·B, row m·B + b looks at image b), C channels, H × W image,
N filters per axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Operators of their own, because `trainer.precision=bf16` multiplies fp32 matrices with bf16 operands elsewhere, which
# neither the positions of the filters nor the pixels survive. A compiled step calls them as they are.
library = torch.library.Library("attn", "FRAGMENT")
library.define("look(Tensor down, Tensor across, Tensor pixels) -> (Tensor, Tensor)")
library.define("look_back(Tensor error, Tensor down, Tensor across, Tensor pixels, Tensor columns) -> (Tensor, Tensor)")


@contextmanager
def exact() -> Iterator[None]:
    """Products in the precision of their operands."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def look(down_RNH: Tensor, across_RNW: Tensor, pixels_RYW: Tensor) -> tuple[Tensor, Tensor]:
    """What filters see of Y = C·H rows of pixels, (R, N, N·C), and the columns (R, N·C, H) between the two products. In
    this form neither these nor their gradients read the pixels against their grain.
    """
    with exact():
        columns = torch.bmm(across_RNW, pixels_RYW.transpose(1, 2)).view(down_RNH.shape[0], -1, down_RNH.shape[2])
        return torch.bmm(down_RNH, columns.transpose(1, 2)), columns


def look_back(
    error: Tensor, down_RNH: Tensor, across_RNW: Tensor, pixels_RYW: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of `down` and `across` from that of what was seen."""
    with exact():
        of_columns = torch.bmm(error.transpose(1, 2), down_RNH).view(*across_RNW.shape[:2], -1)
        return torch.bmm(error, columns), torch.bmm(of_columns, pixels_RYW)


def _seen(down: Tensor, across: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    (R, N, H), C = down.shape, pixels.shape[1] // down.shape[2]
    return down.new_empty(R, N, N * C), down.new_empty(R, N * C, H)


def _gradients(error: Tensor, down: Tensor, across: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(down), torch.empty_like(across)


def _of_all(operator: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """Under `torch.vmap`, for P models at once: one call for P·R rows."""

    def call(info: Any, dims: tuple[int | None, ...], *arguments: Tensor) -> Any:
        P = info.batch_size
        every = [
            x.expand(P, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in zip(arguments, dims, strict=True)
        ]
        first, second = operator(*(x.flatten(0, 1) for x in every))
        return (first.unflatten(0, (P, -1)), second.unflatten(0, (P, -1))), (0, 0)

    return call


for _operator, _shapes in ((look, _seen), (look_back, _gradients)):
    _name = f"attn::{_operator.__name__}"
    library.impl(_operator.__name__, _operator, "CompositeExplicitAutograd")
    torch.library.register_fake(_name, _shapes, lib=library)
    torch.library.register_vmap(_name, _of_all(getattr(torch.ops.attn, _operator.__name__)), lib=library)

SMALLEST = 0.1  # pixels; a narrower filter reads one pixel all the same
FAINTEST = -60.0  # exponent; fainter weights would be subnormal numbers, with which processors calculate slowly


@dataclass(frozen=True)
class Grid:
    """Where the filters are, fp32."""

    centre: Tensor  # (R, 2) x, y; the image spans [-1, 1]
    stride: Tensor  # (R, 2) δ_x, δ_y in pixels
    sigma: Tensor  # (R,) in pixels
    gain: Tensor  # (R,) γ


def distances(means_RN: Tensor, pixels: int) -> Tensor:
    """(R, N, L) from each mean to each of L pixels."""
    return torch.arange(pixels, device=means_RN.device, dtype=means_RN.dtype) - means_RN[:, :, None]


def gaussians(means_RN: Tensor, sigma_R: Tensor, pixels: int) -> Tensor:
    """Weights (R, N, L) of L pixels, 1 for the nearest point of the image."""
    outside = (means_RN - means_RN.clamp(0, pixels - 1)).square()  # no pixel is nearer than that
    excess = distances(means_RN, pixels).square() - outside[:, :, None]
    return (excess * (-0.5 / sigma_R.square())[:, None, None]).clamp(min=FAINTEST).exp()


class Look(torch.autograd.Function):
    """What Gaussians with means (R, N) down and across, and standard deviations (R,), see of images (R, C, H, W):
    (R, N, N, C). Weights sum to 1: what is seen is divided by their sums, which is less to do than to divide the
    weights. Gradients are by the closed form, in one pass over the weights of an axis; images have none.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(down_RN: Tensor, across_RN: Tensor, sigma_R: Tensor, images_RCHW: Tensor) -> tuple[Tensor, ...]:
        C, H, W = images_RCHW.shape[1:]
        down, across = gaussians(down_RN, sigma_R, H), gaussians(across_RN, sigma_R, W)
        sums = down.sum(-1), across.sum(-1)  # (R, N)
        seen, columns = torch.ops.attn.look(down, across, images_RCHW.flatten(1, 2))
        seen = seen.unflatten(-1, (-1, C)) / (sums[0][:, :, None, None] * sums[1][:, None, :, None])
        return seen, down, across, columns, *sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, error_RNNC: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        *places, sigma, images, seen, down, across, columns, down_sum, across_sum = ctx.saved_tensors
        share = error_RNNC / (down_sum[:, :, None, None] * across_sum[:, None, :, None])
        found = torch.ops.attn.look_back(share.flatten(2), down, across, images.flatten(1, 2), columns)
        gradients, of_sigma = [], torch.zeros_like(sigma)
        product = (error_RNNC * seen).sum(-1)  # its sums are those of weights × gradient, too
        banks = (down, across), (product.sum(2) / down_sum, product.sum(1) / across_sum)
        for mean, weights, through_sum, gradient in zip(places, *banks, found, strict=True):
            # By −(a − μ)²/2σ². What is left of the gradient adds up to 0, so distances from the nearest point of the
            # image do as well as those from the mean, which may be large and would leave nothing but rounding.
            nearest = mean.clamp(0, weights.shape[-1] - 1)
            distance = distances(nearest, weights.shape[-1])
            first = weights * (gradient - through_sum[:, :, None]) * distance
            by_mean, by_square = first.sum(-1), (first * distance).sum(-1)  # in one loop
            gradients.append(by_mean / sigma.square()[:, None])
            of_sigma = of_sigma + (by_square + 2 * (nearest - mean) * by_mean).sum(-1) / sigma**3
        return *gradients, of_sigma, None


def means(centre_R: Tensor, stride_R: Tensor, count: int, pixels: int) -> Tensor:
    """(R, N): where N filters lie on an axis of L pixels. The centre spans [-1, 1] from edge to edge; pixel a has its
    middle at a.
    """
    middle = (centre_R + 1) * (pixels / 2) - 0.5  # (R,)
    steps = torch.arange(count, device=centre_R.device, dtype=centre_R.dtype) - (count - 1) / 2
    return middle[:, None] + steps * stride_R[:, None]


def extract(images_BCHW: Tensor, grid: Grid, count: int) -> Tensor:
    """Glimpses γ·F_y·image·F_xᵀ (R, C, N, N) of images in floating point: two batched matrix products, never in half
    precision. Raises ValueError for images that want a gradient: there is none.
    """
    if images_BCHW.requires_grad:
        raise ValueError("A Gaussian grid has no gradient with respect to its images; detach them.")
    B, H, W = images_BCHW.shape[0], *images_BCHW.shape[2:]
    R = grid.centre.shape[0]
    with torch.autocast(images_BCHW.device.type, enabled=False):
        down = means(grid.centre[:, 1], grid.stride[:, 1], count, H)
        across = means(grid.centre[:, 0], grid.stride[:, 0], count, W)
        images = images_BCHW.repeat(R // B, 1, 1, 1) if R != B else images_BCHW
        seen: Tensor = Look.apply(down, across, grid.sigma.clamp(min=SMALLEST), images)[0]
        return (seen * grid.gain[:, None, None, None]).permute(0, 3, 1, 2)


def boxes(grid: Grid, count: int, height: int, width: int) -> Tensor:
    """What the filters cover, half a stride beyond the outermost means: (R, 1, 4) as x0, y0, x1, y1 in pixels."""
    across, down = (grid.centre + 1).unbind(1)
    middle = torch.stack([across * (width / 2), down * (height / 2)], 1)
    half = grid.stride * (count / 2)
    return torch.cat([middle - half, middle + half], 1)[:, None]
