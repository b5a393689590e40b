"""Spatial transformers against loops over pixels and torch's own grid; sequences, sizes, where gradients arrive."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from attn_cli.config.model_sections import Stn
from attn_cli.config.schema import Glimpses, Scales
from attn_cli.errors import Refused
from attn_cli.inference.monte_carlo import evaluate
from attn_cli.learning.objectives import supervised
from attn_cli.learning.training import precision
from attn_cli.models.rollout import draw_noise, rollout
from attn_cli.models.stn import STN, sample

TINY = {"filters": (4, 4, 8), "features": 16, "hidden": 12, "coarse": 12}
TARGETS = {0: torch.tensor([3, 1, 9, 0]), 2: torch.tensor([[3, 10, -1], [1, 2, 10], [9, 10, -1], [0, 0, 10]])}
TURNED = torch.tensor([[0.5, -0.3, 0.2], [0.4, 0.7, -0.6]])  # reaches over the edge


def make(
    length: int = 0,
    size: int = 10,
    glimpses: int = 1,
    scales: int = 1,
    background: int = 0,
    channels: int = 1,
    **changes,
) -> STN:
    torch.manual_seed(0)
    sizes = {"channels": channels, "classes": 10, "length": length, "background": background}
    return STN(Stn(**{**TINY, **changes}), Glimpses(glimpses, size), Scales(scales), **sizes)


def images(height: int = 40, width: int = 30, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, channels, height, width), dtype=torch.uint8, generator=generator)


def run(model: STN, pictures: torch.Tensor | None = None, samples: int = 1, record: bool = False):
    seen = images() if pictures is None else pictures
    return rollout(model, seen, draw_noise(0, 0, (samples, len(seen), model.steps)), record=record)


def set_transform(model: STN, theta: torch.Tensor) -> STN:
    with torch.no_grad():
        model.transform.bias.copy_(theta.flatten())
    return model


def let_it_move(model: STN) -> STN:
    """Away from the start, at which no gradient passes the linear map to the transform."""
    with torch.no_grad():
        model.transform.weight.normal_()
    return model


@pytest.mark.parametrize("transform", ["affine", "attention"])
@pytest.mark.parametrize(("height", "width"), [(12, 12), (24, 24), (24, 12), (40, 30)])
def test_the_first_crop_is_the_resized_image(transform, height, width):
    """The image itself, the mean of equal areas at half its size, and between two pixels otherwise."""
    pictures = images(height, width)
    _, trace = run(make(size=12, transform=transform), pictures, record=True)
    pixels = pictures.float() / 255
    wanted = F.interpolate(pixels, (12, 12), mode="bilinear", align_corners=False)
    if (height, width) != (40, 30):
        assert torch.allclose(wanted, F.adaptive_avg_pool2d(pixels, 12), atol=1e-6)
    assert torch.allclose(trace.patches[0, :, 0, 0], wanted, atol=1e-5)
    assert trace.boxes[0, :, 0, 0].tolist() == [[0, 0, width, height]] * 4
    assert (trace.locations == 0).all()


def naive(image: torch.Tensor, theta: torch.Tensor, size: int, outside: float) -> torch.Tensor:
    """One crop: the four pixels around every place, by their shares."""
    C, H, W = image.shape

    def pixel(c: int, y: int, x: int) -> float:
        return image[c, y, x].item() if 0 <= y < H and 0 <= x < W else outside

    crop = torch.zeros(C, size, size)
    for i in range(size):
        for j in range(size):
            u, v = (j + 0.5) / size * 2 - 1, (i + 0.5) / size * 2 - 1
            x = (theta[0, 0] * u + theta[0, 1] * v + theta[0, 2]).item()
            y = (theta[1, 0] * u + theta[1, 1] * v + theta[1, 2]).item()
            x, y = (x + 1) / 2 * W - 0.5, (y + 1) / 2 * H - 0.5  # pixel a has its middle at a
            left, top = math.floor(x), math.floor(y)
            for c in range(C):
                for down in (0, 1):
                    for right in (0, 1):
                        share = (1 - abs(x - left - right)) * (1 - abs(y - top - down))
                        crop[c, i, j] += share * pixel(c, top + down, left + right)
    return crop


@pytest.mark.parametrize("background", [0, 100])
def test_a_crop_against_a_loop_over_pixels(background):
    model = set_transform(make(size=9, channels=2, background=background), TURNED)
    pictures = images(13, 11, channels=2)
    _, trace = run(model, pictures, samples=2, record=True)
    for m in range(2):
        for b in range(4):
            wanted = naive(pictures[b].float() / 255, TURNED, 9, background / 255)
            assert torch.allclose(trace.patches[m, b, 0, 0], wanted, atol=1e-5)


def test_the_grid_is_torchs():
    theta = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pixels = torch.rand(5, 2, 7, 9, dtype=torch.float64)
    theirs = F.grid_sample(pixels, F.affine_grid(theta, (5, 2, 6, 6), align_corners=False), align_corners=False)
    assert torch.allclose(sample(pixels, theta, 6), theirs, atol=1e-12)


def test_half_precision_does_not_move_the_crop():
    model = set_transform(make(size=9), TURNED)
    crop = run(model, record=True)[1].patches
    with precision("bf16"):
        assert torch.equal(run(model, record=True)[1].patches, crop)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(model, record=True)[1].patches, crop)


def test_the_box_encloses_the_turned_crop():
    _, trace = run(set_transform(make(), TURNED), record=True)
    corners = torch.tensor([[x, y, 1.0] for x in (-1, 1) for y in (-1, 1)]) @ TURNED.T  # (4, 2)
    pixels = (corners + 1) / 2 * torch.tensor([30, 40])
    wanted = torch.cat([pixels.amin(0), pixels.amax(0)])
    assert torch.allclose(trace.boxes[0, 0, 0, 0], wanted, atol=1e-4)
    assert torch.allclose(trace.locations[0, 0, 0], TURNED[:, 2])


def test_attention_is_one_scale_and_two_shifts():
    model = set_transform(make(transform="attention"), torch.tensor([0.25, -0.5, 0.5]))
    assert torch.allclose(model.place(torch.zeros(1, 12)), torch.tensor([[[0.25, 0, -0.5], [0, 0.25, 0.5]]]))


@pytest.mark.parametrize("transform", ["affine", "attention"])
@pytest.mark.parametrize("length", [0, 2])
def test_gradients_reach_every_part(transform, length):
    model = make(length, transform=transform)
    supervised(run(model)[0], TARGETS[length]).total.backward()
    assert model.transform.weight.grad.norm() > 0  # even at the start, from which the rest follows
    model = let_it_move(model)
    model.zero_grad()
    supervised(run(model)[0], TARGETS[length]).total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.norm() > 0, name


@pytest.mark.parametrize("size", [10, 20])
@pytest.mark.parametrize("length", [0, 2])
def test_multiply_adds_against_torch(length, size):
    model = make(length, size)
    with FlopCounterMode(display=False) as counter:
        run(model)
    assert counter.get_total_flops() / 2 == 4 * model.multiply_adds()
    with FlopCounterMode(display=False) as counter:
        run(model)[0].sum().backward()
    assert counter.get_total_flops() / 2 == 4 * model.multiply_adds(training=True)


def test_every_target_has_a_crop_of_its_own_and_reading_ends():
    model = let_it_move(make(2))
    logits, trace = run(model, samples=2)
    assert logits.shape == (2, 4, 3, 11) and torch.equal(logits[0], logits[1])
    assert (trace.locations[0, :, 0] - trace.locations[0, :, 1]).abs().min() > 1e-6
    with torch.no_grad():
        model.classification_network.output.bias[10] = 100.0
    found = evaluate(model, images(), TARGETS[2])
    assert found.mean_glimpses == 1 and found.most_glimpses == 3 and found.error() == 100


@pytest.mark.parametrize("length", [0, 1])
def test_learns_to_tell_stripes(length):
    """Which way they run, in a part of a larger image; with sequences, then that there are no more."""
    model = make(length, size=16, features=32)
    kind = torch.arange(32) % 2
    pictures = torch.zeros(32, 1, 40, 30, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(20), torch.arange(20), indexing="ij")
    for b in range(32):
        along = x if kind[b] else y
        pictures[b, 0, b % 9 : b % 9 + 20, b % 7 : b % 7 + 20] = ((along % 8 < 4) * 255).to(torch.uint8)
    labels = kind if length == 0 else torch.stack([kind, torch.full_like(kind, 10)], 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.005)
    losses = []
    for _ in range(30):
        loss = supervised(run(model, pictures)[0], labels).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert run(model, pictures)[1].locations.abs().max() > 0.01  # and it looks about


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"glimpses": 4}, "model=stn looks once for each answer: use glimpses=1."),
        ({"scales": 2}, "model=stn looks at one scale, whose size it chooses: use scales=1."),
        ({"size": 8}, "glimpses.size=8 is too small for model=stn, whose three convolutions need 9 pixels."),
        ({"coarse": 8}, "model.coarse=8 is too small: three convolutions need at least 9 pixels."),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(Refused) as refused:
        make(**changes)
    assert str(refused.value) == says
