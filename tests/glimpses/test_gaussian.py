"""The Gaussian grid against a loop over pixels, its limits, and its gradients."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from attn_cli.glimpses.gaussian import Grid, boxes, extract, gaussians, means
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


def filters(centre: float, stride: float, sigma: float, count: int, pixels: int) -> torch.Tensor:
    """(N, L): the weights of one axis, as they are found by looking at rows of one bright pixel each."""
    rows = torch.eye(pixels)[:, None, None]
    values = [torch.full((pixels, 2), centre), torch.full((pixels, 2), stride), torch.full((pixels,), sigma)]
    return extract(rows, Grid(*values, torch.ones(pixels)), count)[:, 0, 0].T


def test_filters_lie_where_the_paper_puts_them():
    """A centre of 0 is the middle of the image; half of an odd number of filters lies on each side; rows sum to 1."""
    weights = filters(0.0, 2.0, 0.1, 3, 9)
    assert weights.argmax(1).tolist() == [2, 4, 6]
    assert torch.allclose(weights.sum(1), torch.ones(3))
    assert filters(-1.0, 1.0, 1.0, 1, 8).argmax().item() == 0


@pytest.mark.parametrize(
    ("centre", "stride", "sigma"), [(0.0, 1e4, 0.5), (0.0, 1.0, 0.0), (0.3, 1e4, 0.0), (40.0, 1.0, 1e-20)]
)
def test_far_away_and_tiny_grids_stay_finite(centre, stride, sigma):
    """A filter outside the image reads the pixel at the edge, wherever it is: nothing to gain by moving it."""
    values = [torch.tensor([v] * n).view(1, -1).requires_grad_() for v, n in ((centre, 2), (stride, 2), (sigma, 1))]
    seen = extract(torch.rand(1, 2, 20, 20) + 1, Grid(values[0], values[1], values[2][0], torch.ones(1)), 5)
    seen.square().sum().backward()
    assert torch.isfinite(seen).all() and seen.min() >= 1 and seen.max() <= 2
    assert all(torch.isfinite(v.grad).all() for v in values)
    if stride > 100:
        assert values[1].grad.abs().max() < 1e-3
    assert torch.allclose(filters(centre, stride, sigma, 5, 20).sum(-1), torch.ones(5))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_no_weight_is_so_faint_that_processors_slow_down(sigma):
    places = means(torch.tensor([0.0, 0.013, 1.0]), torch.full((3,), 7.3), 12, 100)
    weights = gaussians(places, torch.full((3,), sigma), 100)
    assert weights.min() >= 1e3 * torch.finfo(torch.float32).tiny and weights.max() <= 1


@pytest.mark.parametrize("middle", [4.5, 4.41, 4.59])
def test_the_narrowest_filter_reads_one_pixel_or_the_two_beside_it(middle):
    weights = filters((middle + 0.5) * 2 / 10 - 1, 1.0, 0.0, 1, 10)[0]
    assert weights[4:6].sum() > 0.9999 and (weights[4] > 0.49) == (middle <= 4.5)


def test_gradients_numerically():
    """Of two paths through images of three channels, higher than wide."""
    images = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    where = grid(4)
    parts = [p.clone().requires_grad_() for p in (where.centre, where.stride, where.sigma, where.gain)]
    assert torch.autograd.gradcheck(lambda *values: extract(images, Grid(*values), 3), parts)


def test_images_that_want_a_gradient_are_refused():
    with pytest.raises(ValueError, match="no gradient with respect to its images"):
        extract(torch.rand(3, 1, 6, 7, dtype=torch.float64).requires_grad_(), grid(), 3)


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


def test_products_are_in_the_precision_of_their_operands(monkeypatch):
    """On a CPU without bf16 products, too."""
    asked, product = [], torch.bmm
    monkeypatch.setattr(
        torch, "bmm", lambda *matrices: asked.append(torch.get_float32_matmul_precision()) or product(*matrices)
    )
    where = grid(2, torch.float32)
    centre = where.centre.clone().requires_grad_()
    with precision("bf16"):
        extract(torch.rand(2, 1, 9, 9), dataclasses.replace(where, centre=centre), 3).sum().backward()
        assert torch.get_float32_matmul_precision() == "medium"
    assert asked == ["highest"] * 5


def test_boxes_cover_the_grid():
    where = Grid(torch.tensor([[0.0, 0.5]]), torch.tensor([[2.0, 1.0]]), torch.ones(1), torch.ones(1))
    assert boxes(where, 4, 40, 20).tolist() == [[[10 - 4, 30 - 2, 10 + 4, 30 + 2]]]
