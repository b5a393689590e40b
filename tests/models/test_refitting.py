"""Grids that are moved and narrowed to what is read of them: where they lie, and that the reader says the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attn_cli.config.schema import Glimpses, Scales, SoftRam
from attn_cli.errors import Refused
from attn_cli.models.refitting import REACH, _resampling, _spread
from attn_cli.models.rollout import rollout
from attn_cli.models.soft_ram import SoftRAM

N, SIDE = 12, 60
ROWS, COLUMNS = slice(3, 8), slice(6, 11)  # what the glimpse network reads


def make(length: int = 0, channels: int = 1, **changes: object) -> SoftRAM:
    torch.manual_seed(0)
    config = SoftRam(filters=(2, 2, 4), features=32, hidden=24, refit=True, **changes)
    sizes = {"channels": channels, "classes": 10, "length": length, "height": SIDE, "width": SIDE}
    model = SoftRAM(config, Glimpses(2, N), Scales(1), **sizes)
    with torch.no_grad():
        weight = model.glimpse_layer.weight.view(32, channels, N, N)
        read = torch.zeros(N, N)
        read[ROWS, COLUMNS] = 1.0
        weight.mul_(read)
        model.extraction.bias[2:4] = -0.7 if model.config.limit is None else 0.0  # half the image
    return model


def smooth(count: int = 200, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, channels, 9, 9, generator=generator)
    return (F.interpolate(coarse, SIDE, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def look(model: SoftRAM, images: torch.Tensor):
    noise = torch.zeros(1, len(images), model.steps, model.noises)
    with torch.no_grad():
        logits, trace = rollout(model.eval(), images, noise, greedy=True, record=True)
    boxes = trace.boxes[0, :, :, 0]  # (B, N, 4)
    middle = torch.stack([boxes[..., 0] + boxes[..., 2], boxes[..., 1] + boxes[..., 3]], -1) / 2
    sides = torch.stack([boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]], -1)
    return logits[0], middle, sides, trace.sigmas[0]


@pytest.mark.parametrize("changes", [{}, {"limit": 0.9}, {"layers": 1}, {"channels": 3}, {"length": 2}], ids=str)
def test_the_grids_lie_on_what_is_read_and_the_reader_says_the_same(changes):
    model, images = make(**changes), smooth(channels=changes.get("channels", 1))
    logits, middle, size, sigma = look(model, images)
    report = model.prepare(lambda: iter(images.split(50)))
    logits_after, middle_after, size_after, sigma_after = look(model, images)
    # the middle of the filters that are read, 8 and 5, lies 2.5 to the right of the grid's and 0.5 above it
    shift = (middle_after - middle) / (size / N)
    assert torch.allclose(shift.mean((0, 1)), torch.tensor([2.5, -0.5]), atol=0.15)
    assert shift.std((0, 1)).max() < 0.1
    # five filters that count alike have a standard deviation of √2
    ratio = size_after / size
    assert torch.allclose(ratio.mean((0, 1)), torch.full((2,), 2 * REACH * 2**0.5 / N), rtol=0.1)
    assert torch.allclose(sigma_after / sigma, ratio.prod(-1).sqrt(), rtol=0.1)  # the filters shrink with their grid
    assert "moved by +2." in report and " and -0." in report
    spread = logits.std(0).mean()
    assert (logits_after - logits).abs().mean() < 0.3 * spread


def test_without_new_weights_it_would_say_something_else():
    """So the test above can fail."""
    model, images = make(), smooth()
    logits, *_ = look(model, images)
    weight = model.glimpse_layer.weight.clone()
    model.prepare(lambda: iter(images.split(50)))
    with torch.no_grad():
        model.glimpse_layer.weight.copy_(weight)
    after, *_ = look(model, images)
    assert (after - logits).abs().mean() > 0.6 * logits.std(0).mean()


def test_grids_at_the_edge_stay_in_the_image():
    """tanh has no argument that gives a centre beyond the edge, where the new grids would lie."""
    model, images = make(), smooth()
    with torch.no_grad():
        model.extraction.bias[0] = 2.0
    model.prepare(lambda: iter(images.split(50)))
    _, middle, *_ = look(model, images)
    assert middle.isfinite().all() and middle[..., 0].min() > 0.95 * SIDE and middle[..., 0].max() < SIDE


def test_looks_for_the_end_of_a_sequence_do_not_count():
    """Where the glimpses after the last digit see nothing but the first ones do, the latter alone place the grids."""
    model, images = make(length=2), smooth()
    look_at = model.glimpse_layer.weight.view(32, 1, N, N)
    with torch.no_grad():
        look_at[:, :, :, 0:2] = 0.01  # hardly read
    seen = []
    step = model.step

    def strange(state, noise, greedy=False):
        seen.append(None)
        if len(seen) % model.steps in (5, 0):  # the last two of six see strong edges there
            state.canvas.pixels[..., :20] = torch.rand_like(state.canvas.pixels[..., :20]) * 1000
        return step(state, noise, greedy)

    model.step = strange
    report = model.prepare(lambda: iter(images.split(50)))
    assert "moved by +2." in report


def test_resampling():
    assert torch.equal(_resampling(N, 0.0, 1.0), torch.eye(N, dtype=torch.float64))
    moved = _resampling(N, 2.0, 1.0)  # old filter n is new filter n - 2
    assert torch.equal(moved[2:, :-2], torch.eye(N - 2, dtype=torch.float64)) and not moved[:2].any()
    narrow = _resampling(N, 1.0, 0.5)
    within = narrow.sum(1) > 1 - 1e-9
    assert within.tolist() == [False] * 5 + [True] * 4 + [False] * 3
    new = (torch.arange(N, dtype=torch.float64) - 5.5) * 0.5 + 1.0  # places of new filters, in old ones
    assert torch.allclose((narrow @ new)[within], (torch.arange(N, dtype=torch.float64) - 5.5)[within])


def test_spread():
    read = torch.zeros(N)
    read[7:9] = 1.0
    mean, width = _spread(read)
    assert mean == pytest.approx(2.0) and width == pytest.approx(2 * REACH * 0.5 / N)
    read[7] = 0.0
    assert _spread(read) == pytest.approx((2.5, 2 * REACH * 0.5 / N))  # never a grid of no width


def test_images_of_which_nothing_is_read_are_refused():
    model, blank = make(), torch.zeros(8, 1, SIDE, SIDE, dtype=torch.uint8)
    before = model.glimpse_layer.weight.clone()
    with pytest.raises(Refused, match="the glimpse network reads nothing of the training images"):
        model.prepare(lambda: iter([blank]))
    assert model.glimpse_layer.weight.equal(before)
