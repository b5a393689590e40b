"""Shares of masks and of errors that come from looking elsewhere, with models whose attention is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from attn_cli.config.model_sections import Rsam
from attn_cli.config.schema import Glimpses, Scales
from attn_cli.inference.attention import attention, gaze, on_object, used_glimpses
from attn_cli.models.model import GlimpseModel
from attn_cli.models.rsam import RSAM
from attn_cli.models.trace import Trace


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


def test_the_gaze_is_on_what_moves_frame_by_frame():
    """Two videos of 20×10 pixels, three frames, gazes and boxes chosen by hand; the second looks no more after two."""
    places = torch.tensor([[[2.0, 3], [6, 3], [9, 9]], [[19, 9], [0, 0], [5, 5]]])  # x, y in pixels
    boxes = torch.tensor(
        [
            [[0, 0, 5, 5], [2, 0, 6, 5], [5, 5, 10, 10]],  # inside; at its right edge, which is outside; inside
            [[15, 5, 20, 10], [10, 5, 15, 10], [5, 5, 10, 10]],  # inside; far away; would be inside
        ]
    )
    empty = torch.zeros(1, 2, 0)
    trace = Trace(places[None] / torch.tensor([20, 10]) * 2 - 1, empty, empty, torch.zeros(1, 2, 3))
    inside, used = on_object(trace, boxes, 10, 20), used_glimpses(trace)
    assert inside.tolist() == [[True, False, True], [True, False, True]] and used.all()
    trace.glimpses = torch.tensor([[3, 2]])
    used = used_glimpses(trace)
    assert used.tolist() == [[True, True, True], [True, True, False]]
    found = gaze(torch.where(used, inside.float(), torch.nan), boxes, 10, 20)
    assert found.on_target == pytest.approx(100 * 3 / 5)
    assert found.by_frame == pytest.approx((100, 0, 100))
    assert found.centre == pytest.approx(100 / 5)  # (10, 5) lies in one box: the lower right edge of two others is out
    assert found.random == pytest.approx(100 * (4 * 25 + 20) / 5 / 200)
    assert gaze(torch.tensor([[1.0, torch.nan]]), boxes[:1, :2], 10, 20).by_frame == (100, None)


class Follower(Guide):
    """Looks at the brightest pixel of the frame before it, at first at the centre."""

    glimpses, watches = 3, True

    def start(self, images, samples):
        return SimpleNamespace(frame=images, location=torch.zeros(len(images), 2), log_prob=None)

    def watch(self, state, frames):
        column = state.frame.flatten(1).argmax(1) % 10
        return SimpleNamespace(
            **{**vars(state), "frame": frames, "location": torch.stack([column, column * 0], 1) / 5 - 1}
        )

    def step(self, state, noise, greedy=False):
        answer, patches = torch.eye(4)[[1] * len(noise)], torch.zeros(len(noise), 1, 1, 1, 1)
        return SimpleNamespace(**{**vars(state), "hidden": answer, "patches": patches})


def test_a_video_is_compared_with_the_boxes_of_its_frames():
    """More than are looked at together; the object moves one column a frame, and the follower is late by one."""
    videos = torch.zeros(251, 3, 1, 10, 10, dtype=torch.uint8)
    boxes = torch.zeros(251, 3, 4, dtype=torch.long)
    for t, column in enumerate((5, 5, 6)):
        videos[:, t, 0, 0, column] = 200
        boxes[:, t] = torch.tensor([column, 0, column + 1, 1])
    boxes[:, 0, 3] = 6  # the first look, at the centre, is inside
    found = attention(Follower(), videos, torch.zeros(251, dtype=torch.long), boxes)
    assert found.gaze.by_frame == pytest.approx((100, 100, 0))
    assert found.gaze.on_target == pytest.approx(200 / 3) and found.mislocalised == 0
    still = attention(Guide(), videos[:, 0].contiguous(), torch.ones(251, dtype=torch.long), boxes[:, 0])
    assert still.gaze is None


class Glancer(Follower):
    """The same, but it answers after two frames: along the first path it has seen enough then."""

    stops, noises = True, 3

    def stop_logit(self, hidden, answer):
        return torch.tensor([-1.0, 1.0]).expand(len(hidden), 2)

    def baseline(self, hidden):
        return hidden[..., 0]

    def boxes(self, state, height, width):
        column = (state.location[:, 0] + 1) * 5
        return torch.stack([column, column * 0, column + 1, column * 0 + 1], 1)[:, None]


def test_of_a_video_only_the_frames_until_the_answer_count():
    """Frame 3, in which the gaze would be right, is not looked at; the region of frame 2 is half of the box there."""
    videos = torch.zeros(2, 3, 1, 10, 10, dtype=torch.uint8)
    videos[:, :, 0, 0, 7] = 200
    boxes = torch.tensor([[0, 5, 1, 6], [7, 0, 8, 2], [7, 0, 8, 1]]).expand(2, 3, 4).clone()
    found = attention(Glancer(), videos, torch.zeros(2, dtype=torch.long), boxes)
    assert found.gaze.by_frame == (0, 100, None) and found.iou == pytest.approx(0.5)
    assert found.whole_image_iou == pytest.approx(2 / 100) and found.mislocalised == 0
    boxes[:, 1] = torch.tensor([0, 8, 1, 9])
    assert attention(Glancer(), videos, torch.zeros(2, dtype=torch.long), boxes).mislocalised == 100
