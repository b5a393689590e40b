"""The retina against a naive loop over pixels."""

from __future__ import annotations

import math

import pytest
import torch

from attn_cli.errors import Refused
from attn_cli.glimpses.reference import LoopRetina
from attn_cli.glimpses.retina import Retina


def look_naively(images, locations, size, scales, background):
    """Patch by patch, pixel by pixel, as section 4 describes it; images (B, C, H, W) uint8 → (R, k, C, g, g)."""
    B, C, H, W = images.shape
    R = locations.shape[0]
    out = torch.zeros(R, scales, C, size, size)
    for r in range(R):
        cx = math.floor((locations[r, 0].item() + 1) * W / 2 + 0.5)
        cy = math.floor((locations[r, 1].item() + 1) * H / 2 + 0.5)
        for k in range(scales):
            wide, cell = size * 2**k, 2**k
            for c in range(C):
                for i in range(size):
                    for j in range(size):
                        total = 0.0
                        for di in range(cell):
                            for dj in range(cell):
                                y, x = cy - wide // 2 + i * cell + di, cx - wide // 2 + j * cell + dj
                                inside = 0 <= y < H and 0 <= x < W
                                total += images[r % B, c, y, x].item() if inside else background
                        out[r, k, c, i, j] = total / cell**2 / 255
    return out


@pytest.mark.parametrize(
    ("channels", "height", "width", "size", "scales", "samples", "background"),
    [
        (1, 28, 28, 8, 1, 1, 0),
        (3, 17, 30, 4, 3, 2, 0),
        (1, 20, 11, 6, 4, 1, 37),
        (2, 9, 9, 5, 1, 3, 255),
        (1, 3, 4, 8, 2, 1, 9),
    ],
)
def test_retina_equals_the_naive_loop(channels, height, width, size, scales, samples, background):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (4, channels, height, width), dtype=torch.uint8, generator=generator)
    locations = torch.rand(samples * 4, 2, generator=generator) * 2 - 1
    locations[0] = torch.tensor([1.0, 1.0])  # every corner is legal and reads background outside
    locations[1] = torch.tensor([-1.0, 1.0])
    retina = Retina(size, scales, channels, background)
    seen = retina.look(retina.frame(images), locations)
    expected = look_naively(images, locations, size, scales, background)
    assert seen.shape == (samples * 4, scales, channels, size, size)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "scales"), [(8, 2), (7, 1)])
def test_boxes_hold_what_was_seen(size, scales):
    image = torch.zeros(1, 1, 40, 40, dtype=torch.uint8)
    retina = Retina(size, scales, 1)
    location = torch.tensor([[0.3, -0.4]])
    x0, y0, x1, y1 = retina.boxes(location, 40, 40)[0, -1].tolist()
    image[0, 0, y0:y1, x0:x1] = 255
    assert (x1 - x0, y1 - y0) == (retina.reach, retina.reach)
    assert retina.look(retina.frame(image), location).min() == 1.0  # the box is wholly inside the glimpse …
    image[0, 0, y0:y1, x0:x1] = 0
    assert retina.look(retina.frame(255 - image), location).min() == 1.0
    outside = torch.full_like(image, 255)
    outside[0, 0, y0:y1, x0:x1] = 0
    assert retina.look(retina.frame(outside), location)[0, -1].max() == 0.0  # … and nothing else is


def test_a_retina_that_reaches_beyond_every_image_is_refused():
    assert Retina(256, 6, 1).reach == 8192
    with pytest.raises(Refused, match="glimpses.size=256 with scales=7 reaches over 16384 pixels, .* fewer scales"):
        Retina(256, 7, 1)


def test_an_odd_retina_with_several_scales_is_refused():
    with pytest.raises(Refused, match="odd"):
        Retina(7, 2, 1)
    assert Retina(7, 1, 1).features == 49


@pytest.mark.parametrize(("size", "scales"), [(8, 1), (12, 3)])
def test_loop_retina_is_the_same_retina(size, scales):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (3, 2, 50, 33), dtype=torch.uint8, generator=generator)
    locations = torch.rand(6, 2, generator=generator) * 2 - 1
    fast, slow = Retina(size, scales, 2, 7), LoopRetina(size, scales, 2, 7)
    torch.testing.assert_close(fast.look(fast.frame(images), locations), slow.look(slow.frame(images), locations))
