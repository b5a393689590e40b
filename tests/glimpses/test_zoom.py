"""The retina of any magnification against exact means over areas, and against the retina of whole pixels."""

from __future__ import annotations

import pytest
import torch

from attn_cli.glimpses.retina import Retina
from attn_cli.glimpses.zoom import Zoom


def overlaps(begin: float, end: float, size: int) -> torch.Tensor:
    """How much of [begin, end) lies in each pixel of an axis, float64 (size,)."""
    return torch.tensor([max(0.0, min(end, p + 1) - max(begin, p)) for p in range(size)], dtype=torch.float64)


def look_naively(images, locations, magnifications, size, scales, background):
    """Row by row, cell by cell: the mean of the grey levels by the area that they have in the cell, in float64."""
    B, C, H, W = images.shape
    out = torch.zeros(len(locations), scales, C, size, size, dtype=torch.float64)
    for r, (x, y) in enumerate(locations.double().tolist()):
        for s in range(scales):
            cell = magnifications[r].item() * 2**s
            left, top = ((at + 1) * length / 2 - cell * size / 2 for at, length in ((x, W), (y, H)))
            for i in range(size):
                down = overlaps(top + i * cell, top + (i + 1) * cell, H)
                for j in range(size):
                    along = overlaps(left + j * cell, left + (j + 1) * cell, W)
                    inside = (images[r % B].double() * down[:, None] * along).sum((1, 2))
                    outside = cell**2 - down.sum() * along.sum()
                    out[r, s, :, i, j] = (inside + outside * background) / cell**2 / 255
    return out


def noise_images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("channels", "height", "width", "size", "scales", "samples", "background"),
    [(1, 28, 28, 8, 1, 1, 0), (3, 17, 30, 4, 2, 2, 0), (1, 20, 11, 5, 3, 1, 37), (2, 9, 9, 6, 1, 3, 255)],
)
def test_equal_to_the_mean_over_the_area(channels, height, width, size, scales, samples, background):
    images = noise_images(4, channels, height, width)
    generator = torch.Generator().manual_seed(4)
    rows = 4 * samples
    locations = torch.rand(rows, 2, generator=generator) * 2 - 1
    locations[0], locations[1] = torch.tensor([1.0, 1.0]), torch.tensor([-1.0, 1.0])  # and background beyond
    magnifications = 0.5 * 20 ** torch.rand(rows, generator=generator)  # also finer than the pixels
    zoom = Zoom(size, scales, channels, background)
    seen = zoom.look(zoom.frame(images), locations, magnifications)
    expected = look_naively(images, locations, magnifications, size, scales, background)
    assert seen.shape == (rows, scales, channels, size, size) and seen.dtype == torch.float32
    torch.testing.assert_close(seen.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("magnification", [1, 2, 4, 8])
def test_whole_pixels_are_seen_as_the_retina_of_whole_pixels_sees_them(magnification):
    """At a magnification of 2^s its patches are the patches from s on of a retina that has so many more."""
    images = noise_images(5, 2, 31, 40)
    pixels = torch.stack([torch.arange(5) * 10, torch.arange(5) * 7], 1)  # x to 40, y to 28
    locations = pixels / torch.tensor([20, 15.5]) - 1
    s = magnification.bit_length() - 1
    fixed, zoom = Retina(6, 2 + s, 2, 90), Zoom(6, 2, 2, 90)
    at = torch.full((5,), float(magnification))
    seen, known = zoom.look(zoom.frame(images), locations, at), fixed.look(fixed.frame(images), locations)
    torch.testing.assert_close(seen, known[:, s:], rtol=0, atol=1e-5)
    boxes = zoom.boxes(locations, at, 31, 40)
    torch.testing.assert_close(boxes, fixed.boxes(locations, 31, 40)[:, s:].double(), rtol=0, atol=1e-4)


def test_boxes_hold_what_was_seen():
    """Also where it is the fraction of a pixel: the box grey, all else white."""
    zoom, location, magnification = Zoom(4, 1, 1), torch.tensor([[0.31, -0.4]]), torch.tensor([2.3])
    x0, y0, x1, y1 = zoom.boxes(location, magnification, 40, 50)[0, 0].tolist()
    assert (x1 - x0, y1 - y0) == pytest.approx((9.2, 9.2))
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((1.31 * 25, 0.6 * 20))
    image = torch.zeros(1, 1, 40, 50, dtype=torch.uint8)
    image[0, 0, int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = 255
    assert zoom.look(zoom.frame(image), location, magnification).min() == 1.0
    image = torch.full_like(image, 255)
    image[0, 0, int(y0) + 1 : int(y1), int(x0) + 1 : int(x1)] = 0
    assert zoom.look(zoom.frame(image), location, magnification)[0, 0, 0, 1:-1, 1:-1].max() == 0.0


def test_a_large_bright_image_is_summed_exactly():
    """2.2 billion grey levels in all, beyond single precision and 32 bits."""
    image = torch.full((1, 1, 2100, 4096), 255, dtype=torch.uint8)
    image[0, 0, 2000, 4000] = 0
    zoom, location = Zoom(2, 1, 1), torch.tensor([[4001 / 2048 - 1, 2001 / 1050 - 1]], dtype=torch.float64)
    seen = zoom.look(zoom.frame(image), location, torch.tensor([1.0]))[0, 0, 0]
    torch.testing.assert_close(seen, torch.tensor([[0.0, 1.0], [1.0, 1.0]]), rtol=0, atol=1e-6)


def test_a_location_that_is_no_number_is_seen_in_what_it_gives():
    zoom = Zoom(4, 1, 1)
    locations = torch.tensor([[float("nan"), 0.0], [0.0, 0.0]])
    seen = zoom.look(zoom.frame(noise_images(2, 1, 9, 9)), locations, torch.ones(2))
    assert seen[0].isnan().all() and seen[1].isfinite().all()
