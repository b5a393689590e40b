"""Regions: overlap by hand, cutting against a loop over pixels, boxes in what was cut out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from attn_cli.inference import monte_carlo
from attn_cli.inference.attention import attention
from attn_cli.inference.monte_carlo import evaluate_views
from attn_cli.inference.regions import boxes_within, clipped, cut, overlap, widened
from attn_cli.models.model import GlimpseModel

HAND = (
    ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
    ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),
    ([0, 0, 4, 2], [1, 0, 2, 2], 1 / 4),
    ([0, 0, 2, 2], [2, 0, 4, 2], 0.0),  # side by side
    ([0, 0, 2, 2], [3, 3, 4, 4], 0.0),
    ([0, 0, 2, 2], [1, 1, 1, 2], 0.0),  # without area
    ([1, 1, 1, 1], [1, 1, 1, 1], 0.0),
)


def test_overlap_by_hand():
    ours, theirs = (torch.tensor([case[i] for case in HAND]) for i in (0, 1))
    assert overlap(ours, theirs).tolist() == pytest.approx([case[2] for case in HAND])
    assert overlap(theirs, ours.float()).tolist() == pytest.approx([case[2] for case in HAND])


def naive_cut(image, region, side):
    """One value at a time: bilinear between the four nearest middles of pixels."""
    channels, height, width = image.shape
    made = torch.empty(channels, side, side)
    x0, y0, x1, y1 = region
    for row in range(side):
        for column in range(side):
            x = min(max(x0 + (x1 - x0) * (column + 0.5) / side - 0.5, 0), width - 1)
            y = min(max(y0 + (y1 - y0) * (row + 0.5) / side - 0.5, 0), height - 1)
            left, top = min(int(x), width - 2), min(int(y), height - 2)
            a, b = x - left, y - top
            corner = image[:, top : top + 2, left : left + 2].float()
            rows = corner[:, :, 0] * (1 - a) + corner[:, :, 1] * a
            made[:, row, column] = rows[:, 0] * (1 - b) + rows[:, 1] * b
    return made


def test_cutting_against_a_loop_over_pixels():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 2, 20, 16), dtype=torch.uint8, generator=generator)
    regions = torch.tensor([[2.0, 3.0, 9.0, 15.0], [0.0, 0.0, 16.0, 20.0], [10.3, 1.7, 16.0, 6.2]])
    made = cut(images, regions, 24)
    assert made.dtype == torch.uint8 and made.shape == (3, 2, 24, 24)
    for b in range(3):
        wanted = naive_cut(images[b], regions[b].tolist(), 24)
        assert (made[b].float() - wanted).abs().max() <= 0.501


def test_the_whole_image_is_cut_out_as_it_is():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    whole = torch.tensor([[0.0, 0.0, 32.0, 32.0]]).expand(2, 4)
    assert torch.equal(cut(images, whole, 32), images)


def test_a_plain_crop_enlarged_by_a_whole_number():
    """Flat squares keep their colours where no neighbour is near."""
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    image[..., 4:8, 8:12] = 200
    made = cut(image, torch.tensor([[8.0, 4.0, 12.0, 8.0]]), 16)
    assert (made[..., 2:14, 2:14] == 200).all() and made[0, 0, 0, 0] < 200


def test_regions_stay_within_the_image_and_never_vanish():
    given = torch.tensor([[-5.0, 2.0, 30.0, 9.0], [15.9, 3.0, 17.0, 3.0], [4.2, 19.9, 4.3, 25.0]])
    inside = widened(given, 20, 16)
    assert torch.allclose(clipped(given, 20, 16)[0], torch.tensor([0.0, 2.0, 16.0, 9.0]))
    assert torch.allclose(
        inside, torch.tensor([[0.0, 2.0, 16.0, 9.0], [15.0, 3.0, 16.0, 4.0], [4.2, 19.0, 5.2, 20.0]]), atol=1e-5
    )


def test_boxes_within_by_hand():
    """Last column and row are covered; what lies outside ends at the edge and keeps a pixel."""
    boxes = torch.tensor([[4, 4, 8, 6], [0, 0, 20, 20], [0, 0, 3, 3], [18, 5, 20, 7]])
    regions = torch.tensor([[2.0, 2.0, 10.0, 10.0]] * 4)
    found = boxes_within(boxes, regions, 32)
    assert found.tolist() == [[8, 8, 23, 15], [0, 0, 31, 31], [0, 0, 3, 3], [31, 12, 31, 19]]
    # Painted into the image, the box is found where the image was cut.
    image = torch.zeros(1, 1, 20, 20, dtype=torch.uint8)
    image[..., 4:6, 4:8] = 255
    bright = cut(image, regions[:1], 32)[0, 0] > 127
    rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
    assert [columns[0], rows[0], columns[-1], rows[-1]] == found[0].tolist()


class Teller(GlimpseModel):
    """Its logits are the logarithms of the first three pixels; its last region is the next four, the first one is
    elsewhere.
    """

    glimpses = 2

    def start(self, images, samples):
        return SimpleNamespace(pixels=images[:, 0, 0].float(), log_prob=None, looks=0)

    def step(self, state, noise, greedy=False):
        x, looks = state.pixels, state.looks + 1
        place, patches = x.new_zeros(len(x), 2), x.new_zeros(len(x), 1, 1, 1, 1)
        seen = {"hidden": x[:, :3].log(), "location": place, "log_prob": None, "patches": patches}
        return SimpleNamespace(pixels=x, looks=looks, **seen)

    def classify(self, hidden):
        return hidden

    def boxes(self, state, height, width):
        return state.pixels[:, None, 3:7] * (1 if state.looks == 2 else 0.1)


def view(*rows):
    """uint8 (n, 1, 10, 8): each image has one row of pixels of interest."""
    images = torch.zeros(len(rows), 1, 10, 8, dtype=torch.uint8)
    images[:, 0, 0, : len(rows[0])] = torch.tensor(rows, dtype=torch.uint8)
    return images


def test_probabilities_of_views_are_averaged():
    """Image 1: 0.7 against 1.4 says class 1. Image 2: 1.48 against 1.10 says class 0, the product says class 1."""
    views = [view((50, 40, 10), (97, 2, 1)), view((10, 50, 40), (1, 60, 39)), view((10, 50, 40), (50, 48, 2))]
    for labels, wrong in (([1, 0], 0), ([0, 1], 2), ([1, 1], 1)):
        for batch in (1, 2):
            found = evaluate_views(Teller(), iter(views), torch.tensor(labels), repeats=2, batch_size=batch)
            assert found.errors == [[wrong], [wrong]] and found.count == 2


def test_overlap_of_the_last_region_and_of_the_whole_image():
    images = view((9, 1, 1, 0, 0, 4, 5), (9, 1, 1, 2, 2, 250, 250))
    found = attention(Teller(), images, torch.zeros(2, dtype=torch.long), torch.tensor([[0, 0, 4, 5], [2, 2, 5, 10]]))
    # The second reaches beyond the 10×8 image and counts as 6×8 pixels of it.
    assert found.iou == pytest.approx((1 + 24 / 48) / 2)
    assert found.whole_image_iou == pytest.approx((20 + 24) / 80 / 2)
    assert attention(Teller(), images, torch.zeros(2, dtype=torch.long)).iou is None


def test_every_repeat_of_every_view_draws_first_locations_of_its_own(monkeypatch):
    drawn, noise = [], monte_carlo.evaluation_noise
    monkeypatch.setattr(monte_carlo, "evaluation_noise", lambda *key: drawn.append(key[:3]) or noise(*key))
    views = [view((50, 40, 10)), view((10, 50, 40))]
    evaluate_views(Teller(), iter(views), torch.tensor([0]), repeats=2, seed=7)
    assert set(drawn) == {(7, repeat, number) for repeat in range(2) for number in range(2)}
