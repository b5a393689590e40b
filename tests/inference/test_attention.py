"""Shares of masks and of errors that come from looking elsewhere, with models whose attention is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from attn_cli.config.model_sections import Rsam
from attn_cli.config.schema import Glimpses, Scales
from attn_cli.inference.attention import attention
from attn_cli.models.model import GlimpseModel
from attn_cli.models.rsam import RSAM


class Guide(GlimpseModel):
    """Looks where the pixels say: x of glimpse 1 and 2, y of both, then the answer it gives."""

    glimpses = 2

    def start(self, images, samples):
        return SimpleNamespace(numbers=images[:, 0, 0].long(), at=0, log_prob=None)

    def step(self, state, noise, greedy=False):
        place = state.numbers[:, [state.at, 2]].float() / 5 - 1  # pixels of a 10×10 image → [-1, 1]
        answer = torch.nn.functional.one_hot(state.numbers[:, 3], 4).float()
        patches = place.new_zeros(len(place), 1, 1, 1, 1)
        return SimpleNamespace(
            numbers=state.numbers, at=state.at + 1, hidden=answer, location=place, log_prob=None, patches=patches
        )

    def classify(self, hidden):
        return hidden

    def boxes(self, state, height, width):
        return torch.zeros(len(state.location), 1, 4)


def test_errors_are_told_apart_by_where_the_model_looked():
    images = torch.zeros(5, 1, 10, 10, dtype=torch.uint8)
    boxes = torch.tensor([[4, 4, 7, 7]]).expand(5, 4)
    #        x1 x2 y answer, the label being 1
    numbers = [[9, 4, 4, 0], [9, 7, 4, 0], [4, 9, 9, 0], [6, 0, 6, 2], [9, 9, 9, 1]]
    images[:, 0, 0, :4] = torch.tensor(numbers, dtype=torch.uint8)
    found = attention(Guide(), images, torch.ones(5, dtype=torch.long), boxes)
    # Image 1: just beyond the box; 2: beside it in y; 4 is right although it looked elsewhere. 4 errors.
    assert found.mislocalised == pytest.approx(50) and found.mask_zeros is None
    assert attention(Guide(), images, torch.ones(5, dtype=torch.long)).mislocalised is None


def test_zeros_and_brightness_of_masks():
    torch.manual_seed(0)
    sizes = {"channels": 3, "classes": 10, "height": 32, "width": 32}
    model = RSAM(Rsam(), Glimpses(3, 8), Scales(1), **sizes)
    with torch.no_grad():
        model.mask[0].weight.zero_()
        model.mask[0].bias.fill_(-1.0)
        model.mask[0].bias.view(32, 32)[8:16, 4:12] = 2.0
    images = torch.randint(0, 256, (260, 3, 32, 32), dtype=torch.uint8)
    found = attention(model, images, torch.zeros(260, dtype=torch.long))
    assert found.mask_zeros == pytest.approx([100 * (1 - 64 / 1024)] * 3)
    assert found.mean_mask == pytest.approx([2.0 / (1 + 1e-5) ** 0.5 * 64 / 1024] * 3, rel=1e-4)
    assert found.mislocalised is None and model.training
