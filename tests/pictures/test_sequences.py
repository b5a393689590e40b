"""Pictures of sequences: what was read where, and nothing after the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from attn_cli.config.schema import Dram, Glimpses, Scales
from attn_cli.models.dram import DRAM
from attn_cli.models.rollout import draw_noise, rollout
from attn_cli.pictures.animation import glimpse_animation
from attn_cli.pictures.drawing import RIGHT, WRONG, answer
from attn_cli.pictures.paths import glimpse_path_figure

N, LENGTH, END = 2, 3, 4  # glimpses per target; of four labels
NAMES = ("a", "b", "c", "d")


def logits(*said: int) -> torch.Tensor:
    return 9.0 * torch.nn.functional.one_hot(torch.tensor(said), END + 1).float()


@pytest.fixture(scope="module")
def recorded():
    """Two images: read as "b a" and then the end, and as four labels without an end."""
    torch.manual_seed(0)
    config = Dram(filters=(4, 4, 8), features=8, hidden=8)
    model = DRAM(config, Glimpses(N, 12), Scales(1), channels=1, classes=4, length=LENGTH)
    images = torch.randint(0, 256, (2, 1, 54, 54), dtype=torch.uint8)
    with torch.no_grad():
        _, trace = rollout(model, images, draw_noise(0, 0, (1, 2, model.steps)), record=True)
    trace.logits = torch.stack([logits(1, 0, END, 3), logits(2, 2, 2, 2)])[None]
    return images, trace


def test_answers():
    said = answer(logits(1, 0, END, 3).numpy(), [1, 0, END, -1], 8)
    assert (said.said, said.truth, said.right, said.glimpses) == ([1, 0], [1, 0], True, 6)
    assert said.chance == pytest.approx(float(logits(0).softmax(-1).max()) ** 3)
    empty = answer(logits(END, 0, 0, 0).numpy(), [2, END, -1, -1], 8)
    assert (empty.said, empty.right, empty.glimpses) == ([], False, 2)
    endless = answer(logits(2, 2, 2, 2).numpy(), [2, 2, 2, END], 8)
    assert (endless.said, endless.right, endless.glimpses) == ([2, 2, 2, 2], False, 8)
    single = answer(np.array([0.0, 3.0]), 1, 6)
    assert (single.said, single.truth, single.right, single.glimpses) == ([1], [1], True, 6)


def colours(path, colour) -> int:
    return int((np.asarray(Image.open(path).convert("RGB")) == colour).all(-1).sum())


def test_a_figure_marks_each_answer_and_ends_with_the_reader(recorded, tmp_path):
    images, trace = recorded
    right = torch.tensor([[1, 0, END, -1], [2, 2, 2, END]])
    both = glimpse_path_figure(images, trace, right, NAMES, tmp_path / "both.png")
    assert colours(both, RIGHT) > 300 and colours(both, WRONG) > 300
    first = {name: getattr(trace, name)[:, :1] for name in ("locations", "patches", "boxes", "logits", "step_logits")}
    short = type(trace)(log_probs=trace.log_probs, baselines=trace.baselines, **first)
    alone = glimpse_path_figure(images[:1], short, right[:1], NAMES, tmp_path / "one.png")
    assert Image.open(alone).width < Image.open(both).width  # six glimpses of eight
    wrong = glimpse_path_figure(images[:1], short, torch.tensor([[1, END, -1, -1]]), NAMES, tmp_path / "wrong.png")
    assert colours(wrong, WRONG) > colours(alone, WRONG)


def test_an_animation_has_a_frame_per_glimpse_that_was_used(recorded, tmp_path):
    images, trace = recorded
    for i, row, frames in ((0, [1, 0, END, -1], 6), (1, [2, 2, END, -1], 8)):
        path = glimpse_animation(images[i], trace, i, torch.tensor(row), NAMES, tmp_path / f"{i}.gif")
        assert Image.open(path).n_frames == frames
