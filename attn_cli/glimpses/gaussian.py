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

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# An operator of its own, because `trainer.precision=bf16` multiplies fp32 matrices with bf16 operands elsewhere, which
# neither the positions of the filters nor the pixels survive. A compiled step calls it as it is.
library = torch.library.Library("attn", "FRAGMENT")
library.define("exact_product(Tensor a, Tensor b) -> Tensor")


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product a·bᵀ, (R, n, k) and (R, m, k) to (R, n, m), in the precision of its operands. In this form
    neither it nor its gradients read a large operand against its grain.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return torch.bmm(a, b.transpose(1, 2))
    finally:
        torch.set_float32_matmul_precision(before)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    product, (for_a, for_b) = torch.ops.attn.exact_product, ctx.needs_input_grad
    return (
        product(gradient, b.transpose(1, 2)) if for_a else None,
        product(gradient.transpose(1, 2), a.transpose(1, 2)) if for_b else None,
    )


library.impl("exact_product", exact_product, "CompositeExplicitAutograd")
torch.library.register_autograd("attn::exact_product", _backward, setup_context=_save, lib=library)


@torch.library.register_fake("attn::exact_product", lib=library)
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[1])


def _of_all(info: Any, dims: tuple[int | None, int | None], a: Tensor, b: Tensor) -> Any:
    """Under `torch.vmap`, for several models at once: (P, R, n, k) @ (P, R, k, m) as one product of P·R matrices."""
    every = [
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip((a, b), dims, strict=True)
    ]
    product = torch.ops.attn.exact_product(*(x.flatten(0, 1) for x in every))
    return product.unflatten(0, every[0].shape[:2]), 0


torch.library.register_vmap("attn::exact_product", _of_all, lib=library)

SMALLEST = 0.1  # pixels; a narrower filter reads one pixel all the same
FAINTEST = -60.0  # exponent; fainter weights would be subnormal numbers, with which processors calculate slowly


@dataclass(frozen=True)
class Grid:
    """Where the filters are, fp32."""

    centre: Tensor  # (R, 2) x, y; the image spans [-1, 1]
    stride: Tensor  # (R, 2) δ_x, δ_y in pixels
    sigma: Tensor  # (R,) in pixels
    gain: Tensor  # (R,) γ


class Gaussians(torch.autograd.Function):
    """Weights (R, N, L) of Gaussians with means (R, N) and standard deviations (R,) over L pixels, and their gradients
    by the closed form, in half the passes over the weights that the chain rule takes.
    """

    generate_vmap_rule = True

    @staticmethod
    def distances(means_RN: Tensor, pixels: int) -> Tensor:
        return torch.arange(pixels, device=means_RN.device, dtype=means_RN.dtype) - means_RN[:, :, None]

    @staticmethod
    def forward(means_RN: Tensor, sigma_R: Tensor, pixels: int) -> Tensor:
        outside = (means_RN - means_RN.clamp(0, pixels - 1)).square()  # no pixel is nearer than that
        excess = Gaussians.distances(means_RN, pixels).square() - outside[:, :, None]
        weights = (excess * (-0.5 / sigma_R.square())[:, None, None]).clamp(min=FAINTEST).exp()
        return weights / weights.sum(-1, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1], output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        means, sigma, weights = ctx.saved_tensors
        distance = Gaussians.distances(means, weights.shape[-1])
        product = weights * gradient
        exponent = product - weights * product.sum(-1, keepdim=True)  # the gradient of −(a − μ)²/2σ²
        first = exponent * distance
        return first.sum(-1) / sigma.square()[:, None], (first * distance).sum((1, 2)) / sigma**3, None


def filters(centre_R: Tensor, stride_R: Tensor, sigma_R: Tensor, count: int, pixels: int) -> Tensor:
    """(R, N, L): the weights of N filters over L pixels of one axis. The centre spans [-1, 1] from edge to edge; pixel
    a has its middle at a.
    """
    middle = (centre_R + 1) * (pixels / 2) - 0.5  # (R,)
    steps = torch.arange(count, device=centre_R.device, dtype=centre_R.dtype) - (count - 1) / 2
    means = middle[:, None] + steps * stride_R[:, None]  # (R, N)
    weights: Tensor = Gaussians.apply(means, sigma_R.clamp(min=SMALLEST), pixels)
    return weights


def extract(images_BCHW: Tensor, grid: Grid, count: int) -> Tensor:
    """Glimpses γ·F_y·image·F_xᵀ (R, C, N, N) of images in floating point: two batched matrix products, never in half
    precision.
    """
    B, C, H, W = images_BCHW.shape
    R = grid.centre.shape[0]
    with torch.autocast(images_BCHW.device.type, enabled=False):
        across = filters(grid.centre[:, 0], grid.stride[:, 0], grid.sigma, count, W)  # (R, N, W)
        down = filters(grid.centre[:, 1], grid.stride[:, 1], grid.sigma, count, H)  # (R, N, H)
        images = images_BCHW.repeat(R // B, 1, 1, 1) if R != B else images_BCHW
        product = torch.ops.attn.exact_product
        columns = product(across, images.reshape(R, C * H, W)).view(R, count * C, H)
        seen = product(down, columns) * grid.gain[:, None, None]  # (R, N, N·C)
        return seen.view(R, count, count, C).permute(0, 3, 1, 2)


def boxes(grid: Grid, count: int, height: int, width: int) -> Tensor:
    """What the filters cover, half a stride beyond the outermost means: (R, 1, 4) as x0, y0, x1, y1 in pixels."""
    size = grid.centre.new_tensor([width, height])
    middle = (grid.centre + 1) * size / 2
    half = grid.stride * (count / 2)
    return torch.cat([middle - half, middle + half], 1)[:, None]
