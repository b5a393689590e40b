"""The Gaussian grid against a loop over pixels, its limits, and its gradients."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from attn_cli.glimpses.gaussian import Grid, boxes, extract, filters
from attn_cli.learning.training import precision


def grid(rows: int = 3, dtype: torch.dtype = torch.float64) -> Grid:
    torch.manual_seed(0)
    centre = torch.rand(rows, 2, dtype=dtype) * 1.6 - 0.8
    return Grid(
        centre,
        torch.rand(rows, 2, dtype=dtype) * 2 + 0.5,
        torch.rand(rows, dtype=dtype) + 0.4,
        torch.rand(rows, dtype=dtype) + 0.5,
    )


def naive(image: torch.Tensor, where: Grid, r: int, count: int) -> torch.Tensor:
    """One glimpse by the text: sums over single pixels."""
    C, H, W = image.shape
    sigma, gain = where.sigma[r].item(), where.gain[r].item()

    def weights(axis: int, size: int) -> list[list[float]]:
        c = (where.centre[r, axis].item() + 1) * size / 2 - 0.5
        rows = []
        for i in range(count):
            mean = c + (i - (count - 1) / 2) * where.stride[r, axis].item()
            row = [math.exp(-((a - mean) ** 2) / (2 * sigma**2)) for a in range(size)]
            rows.append([w / sum(row) for w in row])
        return rows

    across, down = weights(0, W), weights(1, H)
    seen = torch.zeros(C, count, count, dtype=image.dtype)
    for c in range(C):
        for i in range(count):
            for j in range(count):
                terms = (down[i][y] * image[c, y, x].item() * across[j][x] for y in range(H) for x in range(W))
                seen[c, i, j] = gain * sum(terms)
    return seen


@pytest.mark.parametrize("paths", [1, 2])
def test_against_a_loop_over_pixels(paths):
    torch.manual_seed(1)
    images = torch.rand(2, 3, 9, 12, dtype=torch.float64)
    where = grid(2 * paths)
    seen = extract(images, where, 4)
    for r in range(2 * paths):
        assert torch.allclose(seen[r], naive(images[r % 2], where, r, 4), atol=1e-12)


def test_filters_lie_where_the_paper_puts_them():
    """A centre of 0 is the middle of the image; half of an odd number of filters lies on each side; rows sum to 1."""
    one = torch.ones(1)
    weights = filters(torch.zeros(1), 2 * one, 0.1 * one, 3, 9)[0]
    assert weights.argmax(1).tolist() == [2, 4, 6]
    assert torch.allclose(weights.sum(1), torch.ones(3))
    edge = filters(-one, one, one, 1, 8)[0]
    assert edge.argmax().item() == 0


@pytest.mark.parametrize(("centre", "stride", "sigma"), [(0.0, 1e4, 0.5), (0.0, 1.0, 0.0), (40.0, 1.0, 1e-20)])
def test_far_away_and_tiny_grids_stay_finite(centre, stride, sigma):
    values = [torch.tensor([v], requires_grad=True) for v in (centre, stride, sigma)]
    weights = filters(*values, 5, 20)
    (weights * torch.arange(20)).sum().backward()
    assert torch.isfinite(weights).all() and torch.allclose(weights.sum(-1), torch.ones(1, 5))
    assert all(torch.isfinite(v.grad).all() for v in values)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 3.0])
def test_no_weight_is_so_faint_that_processors_slow_down(sigma):
    weights = filters(torch.tensor([0.0, 0.013, 1.0]), torch.full((3,), 7.3), torch.full((3,), sigma), 12, 100)
    assert weights.min() >= torch.finfo(torch.float32).tiny
    assert torch.allclose(weights.sum(-1), torch.ones(3, 12))


@pytest.mark.parametrize("middle", [4.5, 4.41, 4.59])
def test_the_narrowest_filter_reads_one_pixel_or_the_two_beside_it(middle):
    centre = torch.tensor([(middle + 0.5) * 2 / 10 - 1])
    weights = filters(centre, torch.ones(1), torch.zeros(1), 1, 10)[0, 0]
    assert weights[4:6].sum() > 0.9999 and (weights[4] > 0.49) == (middle <= 4.5)


def test_gradients_numerically():
    images = torch.rand(2, 1, 6, 7, dtype=torch.float64)
    where = grid(2)
    parts = [p.clone().requires_grad_() for p in (where.centre, where.stride, where.sigma, where.gain)]
    assert torch.autograd.gradcheck(lambda *values: extract(images, Grid(*values), 3), parts)


def test_never_in_half_precision():
    images, where = torch.rand(2, 1, 30, 30), grid(2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = extract(images, where, 5)
    assert half.dtype == torch.float32 and torch.equal(half, extract(images, where, 5))


def test_nor_with_bf16_operands_on_a_cpu():
    """What `trainer.precision=bf16` asks for elsewhere, forward and backward; a plain product shows that it is on."""
    torch.manual_seed(0)
    a, b = torch.rand(8, 64, 64), torch.rand(8, 64, 64)
    with precision("bf16"):
        rounded = torch.bmm(a, b)
    found = []
    for name in ("32", "bf16"):
        images, where = torch.rand(8, 1, 64, 64, generator=torch.Generator().manual_seed(0)), grid(8, torch.float32)
        centre = where.centre.clone().requires_grad_()
        with precision(name):
            seen = extract(images, dataclasses.replace(where, centre=centre), 12)
            seen.square().sum().backward()
        found.append((seen.detach(), centre.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    if torch.equal(rounded, torch.bmm(a, b)):
        pytest.skip("this CPU has no bf16 products")


def test_boxes_cover_the_grid():
    where = Grid(torch.tensor([[0.0, 0.5]]), torch.tensor([[2.0, 1.0]]), torch.ones(1), torch.ones(1))
    assert boxes(where, 4, 40, 20).tolist() == [[[10 - 4, 30 - 2, 10 + 4, 30 + 2]]]
