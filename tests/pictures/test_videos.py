"""Videos as animations and strips: the frame that a glimpse saw, with its region and centre."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from attn_cli.pictures.animation import glimpse_animation
from attn_cli.pictures.videos import BETWEEN, CAPTION, GAP, HEADING, NARROWEST, strips_figure

NAMES = ("zero", "one", "two", "three")
SIDE, ZOOM = 30, 4  # pixels of a frame, and how much larger it is drawn
COLOURS = [(20, 40, 30 + 9 * t) for t in range(23)]  # of the frames


def video(frames: int) -> torch.Tensor:
    return torch.tensor(COLOURS[:frames], dtype=torch.uint8)[:, :, None, None].expand(frames, 3, SIDE, SIDE)


def colours(page: np.ndarray) -> set[tuple[int, ...]]:
    """Those of the frames that fill more of the page than edges of letters, which the palette may round to them."""
    found, counts = np.unique(page.reshape(-1, 3), axis=0, return_counts=True)
    return {*map(tuple, found[counts > 1000].tolist())} & set(COLOURS)


def test_an_animation_shows_each_frame_in_its_turn(tmp_path, make_trace):
    trace = make_trace([[[(0.0, 0.0)] * 5]], [0], scales=1, height=SIDE, width=SIDE)
    with Image.open(glimpse_animation(video(23)[::5], trace, 0, 0, NAMES, tmp_path / "a.gif")) as gif:
        pages = [(np.asarray(page.convert("RGB")), page.info["duration"]) for page in ImageSequence.Iterator(gif)]
    assert [colours(page) for page, _ in pages] == [{colour} for colour in COLOURS[::5]]
    assert [duration for _, duration in pages] == [250] * 4 + [2800]


@pytest.mark.parametrize(("frames", "drawn"), [(4, [0, 1, 2, 3]), (23, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22])])
def test_a_strip_has_frames_from_the_first_to_the_last(tmp_path, make_trace, frames, drawn):
    path = [[[(0.0, 0.0)] * frames] * 2]
    trace = make_trace(path, [0, 1], scales=1, height=SIDE, width=SIDE)
    written = strips_figure(torch.stack([video(frames)] * 2), trace, [0, 0], NAMES, tmp_path / "a.png")
    page = np.asarray(Image.open(written).convert("RGB"))
    row = page[CAPTION + HEADING + 5]
    shown = [colour for colour in dict.fromkeys(map(tuple, row.tolist())) if colour in COLOURS]
    assert shown == [COLOURS[t] for t in drawn]


def test_region_centre_and_answer_stand_where_they_belong(tmp_path, make_trace):
    """Two videos of two frames: the first right, the second wrong; the gaze in the upper left, then the lower right."""
    trace = make_trace([[[(-0.5, -0.5), (0.5, 0.5)]] * 2], [0, 1], scales=1, size=8, height=SIDE, width=SIDE)
    written = strips_figure(torch.stack([video(2)] * 2), trace, [0, 0], NAMES, tmp_path / "a.png")
    page = np.asarray(Image.open(written).convert("RGB")).astype(int)
    side = SIDE * ZOOM
    pitch = CAPTION + HEADING + 2 * side + BETWEEN + GAP
    for b, right in enumerate((True, False)):
        for t in range(2):
            x, y = GAP + t * (side + BETWEEN), b * pitch + CAPTION + HEADING
            frame = page[y : y + side, x : x + side]
            low = [edge * ZOOM for edge in trace.boxes[0, b, t, 0].tolist()]
            yellow = np.argwhere((abs(frame - (255, 196, 0)) <= 2).all(-1))
            assert [*yellow.min(0)[::-1], *(yellow.max(0)[::-1] + 1)] == low
            red, green, _ = frame[round((0.25 + 0.5 * t) * side), round((0.25 + 0.5 * t) * side)]
            assert (green > red + 80) == right and (red > green + 80) != right
            glimpse = page[y + side + BETWEEN + 2 : y + 2 * side + BETWEEN - 2, x + 2 : x + side - 2]
            assert (abs(glimpse - 200) <= 1).all()


@pytest.mark.parametrize("used", [1, 3])
def test_frames_after_the_answer_are_not_drawn(tmp_path, make_trace, used):
    """Of a model that stops by itself; a single frame still leaves room for the answer."""
    trace = make_trace([[[(0.0, 0.0)] * 5]], [0], scales=1, height=SIDE, width=SIDE)
    trace.glimpses = torch.tensor([[used]])
    with Image.open(strips_figure(video(5)[None], trace, [0], NAMES, tmp_path / "a.png")) as page:
        assert colours(np.asarray(page.convert("RGB"))) == set(COLOURS[:used]) and page.width >= NARROWEST
    with Image.open(glimpse_animation(video(5), trace, 0, 0, NAMES, tmp_path / "a.gif")) as gif:
        assert gif.n_frames == used
