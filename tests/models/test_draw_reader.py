"""The classifier of DRAW against its equations: where the grid lies, what it reads, where gradients arrive."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attn_cli.config.model_sections import DrawReader as Config
from attn_cli.config.schema import Glimpses, Scales
from attn_cli.errors import Refused
from attn_cli.learning.objectives import supervised
from attn_cli.models.draw_reader import DrawReader
from attn_cli.models.rollout import draw_noise, rollout

TARGETS = torch.tensor([3, 1, 9, 0])


def make(glimpses: int = 3, size: int = 5, scales: int = 1, height: int = 40, width: int = 30) -> DrawReader:
    torch.manual_seed(0)
    sizes = {"channels": 2, "classes": 10, "height": height, "width": width}
    return DrawReader(Config(hidden=12), Glimpses(glimpses, size), Scales(scales), **sizes)


def images(count: int = 4, height: int = 40, width: int = 30) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 2, height, width), dtype=torch.uint8, generator=generator)


def run(model: DrawReader, samples: int = 1, record: bool = False):
    return rollout(model, images(), draw_noise(0, 0, (samples, 4, model.steps)), record=record)


@pytest.mark.parametrize("raw", [(0.0, 0.0, 0.0, 0.0, 0.0), (0.5, -0.3, 1.2, -1.5, 0.4), (1.6, -1.2, 0.7, 0.1, -0.5)])
def test_the_grid_is_that_of_equations_19_to_27(raw):
    """By hand, pixels counted from 1: means, filters, glimpse; also for centres outside the image."""
    A, B, N = 30, 40, 5
    model = make(glimpses=1).double()
    with torch.no_grad():
        model.grid.bias.copy_(torch.tensor(raw))
    _, trace = run(model, record=True)
    gx, gy = (A + 1) / 2 * (raw[0] + 1), (B + 1) / 2 * (raw[1] + 1)  # eqs. 22 and 23
    delta = (max(A, B) - 1) / (N - 1) * math.exp(raw[3])  # eq. 24

    def bank(centre: float, count: int) -> list[list[float]]:
        rows = []
        for i in range(1, N + 1):
            mean = centre + (i - N / 2 - 0.5) * delta  # eqs. 19 and 20
            row = [math.exp(-((a - mean) ** 2) / (2 * math.exp(raw[2]))) for a in range(1, count + 1)]
            rows.append(row)
        return rows

    across, down = bank(gx, A), bank(gy, B)
    picture, checked = images()[2].double() / 255, 0
    for i, column in enumerate(across):
        for j, row in enumerate(down):
            if min(sum(column), sum(row)) > 1e-4:  # the paper does not say what filters read that see nothing
                weights = torch.tensor(row)[:, None] * torch.tensor(column) / (sum(row) * sum(column))
                wanted = math.exp(raw[4]) * (picture * weights).sum((1, 2))  # eqs. 25 to 27
                assert torch.allclose(trace.patches[0, 2, 0, 0, :, j, i], wanted, atol=1e-9)
                checked += 1
    assert checked >= 4
    x0, y0, x1, y1 = trace.boxes[0, 2, 0, 0].tolist()
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((gx - 0.5, gy - 0.5))  # edges of pixel 1: 0 and 1
    assert (x1 - x0, y1 - y0) == pytest.approx((N * delta, N * delta))
    middle = (trace.locations[0, 2, 0] + 1) / 2 * torch.tensor([A, B])
    assert middle.tolist() == pytest.approx([gx - 0.5, gy - 0.5])


def test_the_first_grid_covers_the_image_with_filters_half_a_stride_wide():
    model = make()
    state = model.start(images(), 1)
    grid = model.place(state)
    assert (grid.centre == 0).all() and torch.allclose(grid.stride, torch.tensor(39 / 4))
    assert torch.allclose(grid.sigma, torch.tensor(39 / 8)) and (grid.gain == 1).all()
    _, trace = run(model)
    assert (trace.locations[0, :, 0] == 0).all()
    assert trace.locations[0, :, 1].std(0).min() > 1e-6  # the second follows what was seen


def test_paths_are_all_alike():
    logits, trace = run(make(), samples=2)
    assert torch.equal(logits[0], logits[1]) and trace.log_probs.numel() == 0 and not make().stochastic


def test_gradients_reach_every_part_and_from_the_first_grid_on():
    model = make()
    seen, place = [], model.place

    def watched(state):
        grid = place(state)
        grid.centre.retain_grad()
        seen.append(grid)
        return grid

    model.place = watched
    supervised(run(model)[0], TARGETS).total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.norm() > 0, name
    assert all(grid.centre.grad.norm() > 0 for grid in seen)


def test_multiply_adds_against_torch():
    """Torch does not see into the grid's products, which are added by hand: for each glimpse two, H·W·g and H·g·g;
    trained, the second costs three times as much and the first, which needs no gradient to pixels, twice.
    """
    model = make()
    rows, columns = 3 * 2 * 40 * 30 * 5, 3 * 2 * 40 * 5 * 5
    with FlopCounterMode(display=False) as counter:
        logits, _ = run(model)
    assert counter.get_total_flops() / 2 == 4 * (model.multiply_adds() - rows - columns)
    with FlopCounterMode(display=False) as counter:
        run(model)[0].sum().backward()
    assert counter.get_total_flops() / 2 == 4 * (model.multiply_adds(training=True) - 2 * rows - 3 * columns)


def test_learns_where_a_small_square_is():
    """Which quarter of the image it lies in, after some steps."""
    model = make(glimpses=2)
    labels = torch.arange(64) % 4
    pictures = torch.zeros(64, 2, 40, 30, dtype=torch.uint8)
    for b in range(64):
        y, x = 20 * (b % 4 // 2) + b % 7, 15 * (b % 2) + b % 5
        pictures[b, :, y : y + 6, x : x + 6] = 255
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for step in range(40):
        logits, _ = rollout(model, pictures, draw_noise(0, step, (1, 64, 2)))
        loss = supervised(logits, labels).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_more_scales_are_refused():
    with pytest.raises(Refused, match="model=draw_reader looks at one scale, whose size it chooses: use scales=1."):
        make(scales=4)
