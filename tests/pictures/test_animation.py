"""The GIF, frame by frame."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from attn_cli.pictures import animation
from attn_cli.pictures.animation import glimpse_animation

NAMES = ("zero", "one", "two", "three")
PATH = [(-0.5, -0.5), (0.4, -0.5), (0.4, 0.5)]


def frames(path) -> tuple[list[np.ndarray], list[int]]:
    with Image.open(path) as gif:
        pixels, durations = [], []
        for frame in ImageSequence.Iterator(gif):
            pixels.append(np.asarray(frame.convert("RGB")))
            durations.append(frame.info["duration"])
        assert gif.info["loop"] == 0
    return pixels, durations


@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_frame_per_glimpse_and_the_last_held_longer(tmp_path, make_trace, blue, count: int) -> None:
    trace = make_trace([[[(0.0, 0.0)] * count]], [0])  # frames that differ in nothing but their title
    written = glimpse_animation(blue(1, 28, 28)[0], trace, 0, 0, NAMES, tmp_path / "a.gif")
    pixels, durations = frames(written)
    assert len(pixels) == count
    assert durations == [700] * (count - 1) + [2800]


@pytest.mark.parametrize(("height", "width"), [(28, 28), (30, 60), (400, 300)])
def test_path_so_far_in_the_colour_of_the_prediction_so_far(
    tmp_path, make_trace, blue, finder, height: int, width: int
) -> None:
    other = [(0.0, 0.0)] * 3
    trace = make_trace([[other, PATH]], [[0, 0, 0], [2, 2, 1]], height=height, width=width, scales=1, size=6)
    pixels, _ = frames(glimpse_animation(blue(1, height, width)[0], trace, 1, 1, NAMES, tmp_path / "a.gif"))
    first, second, third = (finder(p) for p in pixels)
    (panel,) = first.panels()
    assert (panel[2] - panel[0]) / (panel[3] - panel[1]) == pytest.approx(width / height, rel=0.02)
    assert first.at(panel, -0.5, -0.5) == second.at(panel, -0.5, -0.5) == "red"
    assert third.at(panel, -0.5, -0.5) == "green"
    assert first.at(panel, 0, -0.5) == "blue"
    assert second.at(panel, 0, -0.5) == "red"
    assert second.at(panel, 0.4, 0) == "blue"
    assert third.at(panel, 0.4, 0) == "green"
    assert third.at(panel, 0.4, 0.5) == "blue"


def test_sensor_boxes_come_from_the_trace_and_may_reach_outside(tmp_path, make_trace, blue, finder) -> None:
    trace = make_trace([[[(0.0, 0.0), (-1.0, 0.0)]]], [0], size=4, scales=2)
    trace.boxes[0, 0, 0] = torch.tensor([[4, 6, 14, 20], [2, 3, 24, 25]])
    pixels, _ = frames(glimpse_animation(blue(1, 28, 28)[0], trace, 0, 0, NAMES, tmp_path / "a.gif"))
    (panel,) = finder(pixels[0]).panels()
    zoom = (panel[2] - panel[0]) / 28

    def colour(t: int, x: float, y: float) -> tuple[int, ...]:
        return tuple(int(v) for v in pixels[t][int(panel[1] + y * zoom), int(panel[0] + x * zoom)])

    fine, coarse = animation.SENSOR[:2]
    for x, y in ((4, 12), (10, 6), (14 - 1 / zoom, 12), (10, 20 - 1 / zoom)):
        assert colour(0, x, y) == fine
    for x, y in ((2, 12), (10, 3), (24 - 1 / zoom, 12), (10, 25 - 1 / zoom)):
        assert colour(0, x, y) == coarse
    for x, y in ((-2, 15), (-4, 15)):  # half of the second glimpse's boxes lies outside the image
        assert colour(0, x, y) == animation.OUTSIDE
        assert colour(1, x, y) == (fine if x == -2 else coarse)


def test_outlines_of_gaussian_grids_and_none_of_masks(tmp_path, make_trace, blue, finder) -> None:
    trace = make_trace([[[(0.9, 0.9)]]], [0], scales=1)
    trace.boxes[0, 0, 0] = torch.tensor([[4, 6, 14, 20]])
    trace.sigmas = torch.tensor([[[0.5]]])
    ((page,), _) = frames(glimpse_animation(blue(1, 28, 28)[0], trace, 0, 0, NAMES, tmp_path / "a.gif"))
    (panel,) = finder(page).panels()
    zoom = (panel[2] - panel[0]) // 28
    row = page[panel[1] + 12 * zoom, panel[0] + 4 * zoom - 2 : panel[0] + 4 * zoom + 10]
    assert [tuple(v) == animation.SENSOR[0] for v in row] == [False] * 2 + [True] * (zoom // 2) + [False] * 5
    trace.masks = torch.ones(1, 1, 1, 28, 28)
    ((page,), _) = frames(glimpse_animation(blue(1, 28, 28)[0], trace, 0, 0, NAMES, tmp_path / "b.gif"))
    (panel,) = finder(page).panels()
    shown = page[panel[1] : panel[3], panel[0] : panel[2]].reshape(-1, 3)
    assert len(np.unique(shown, axis=0)) == 1


def test_masks_of_oblong_images(tmp_path, make_trace, blue) -> None:
    trace = make_trace([[[(0.0, 0.0)]]], [0], scales=1, height=20, width=48)
    trace.masks = torch.ones(1, 1, 1, 20, 48)
    trace.patches = torch.ones(1, 1, 1, 1, 3, 20, 48) * torch.tensor([0.0, 0.5, 0.0])[:, None, None]
    ((page,), _) = frames(glimpse_animation(blue(1, 20, 48)[0], trace, 0, 0, NAMES, tmp_path / "a.gif"))
    green = (abs(page.astype(int) - (0, 127, 0)) <= 4).all(-1)
    rows, columns = np.flatnonzero(green.any(1)), np.flatnonzero(green.any(0))
    assert len(columns) == animation.GLIMPSE_SIDE // 48 * 48 and len(rows) == len(columns) * 20 // 48


def bar_lengths(page: np.ndarray, colour: tuple[int, int, int]) -> dict[int, int]:
    """Row of bars → pixels of this colour in the middle of the bar; beside the glimpse only."""
    found = {}
    for row in range(4):
        line = page[2 * animation.HEADING + row * animation.BAR + 8, -(animation.BAR_ROOM + animation.SHARE_ROOM + 8) :]
        found[row] = int((line == colour).all(-1).sum())
    return found


def test_bars_are_the_probabilities_with_the_truth_marked(tmp_path, make_trace, blue) -> None:
    trace = make_trace([[PATH]], [[2, 2, 1]])
    chances = torch.tensor([[0.1, 0.2, 0.6, 0.1], [0.05, 0.15, 0.8, 0.0], [0.02, 0.9, 0.05, 0.03]])
    trace.step_logits = (chances + 1e-9).log()[None, None]
    trace.logits = trace.step_logits[:, :, -1]
    pixels, _ = frames(glimpse_animation(blue(1, 28, 28)[0], trace, 0, 1, NAMES, tmp_path / "a.gif"))
    room = animation.BAR_ROOM
    for t, (guess, colour) in enumerate([(2, animation.WRONG), (2, animation.WRONG), (1, animation.RIGHT)]):
        lengths = bar_lengths(pixels[t], colour)
        assert lengths.pop(guess) == pytest.approx(room * chances[t, guess].item(), abs=4)
        assert set(lengths.values()) == {0}
        grey = bar_lengths(pixels[t], animation.FRAME)
        for k in range(4):
            if k != guess:
                assert grey[k] == pytest.approx(room * chances[t, k].item(), abs=4)
        outlined = []
        for row in range(4):  # the line along the upper edge of a bar
            line = pixels[t][2 * animation.HEADING + row * animation.BAR + 2, -(room + animation.SHARE_ROOM + 4) :]
            outlined.append(int((line == animation.INK).all(-1).sum()) >= room)
        assert outlined == [False, True, False, False]


def test_of_many_classes_those_that_matter_are_shown() -> None:
    chances = np.full((3, 40), 0.001)
    chances[0, 30], chances[1, 5], chances[2, 17] = 0.5, 0.6, 0.9
    chances[:, 8] = 0.3
    shown = animation._classes_to_show(chances, truths=[39])
    assert len(shown) == animation.MOST_BARS and shown == sorted(shown)
    assert {39, 30, 5, 17, 8} <= set(shown)
    assert animation._classes_to_show(chances[:, :12], truths=[3]) == list(range(12))


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_pages_keep_exact_colours_and_cost_little(tmp_path, make_trace, channels: int) -> None:
    image = torch.randint(0, 256, (channels, 100, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    places = torch.rand(1, 1, 8, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    trace = make_trace(places, [0], channels=channels, size=12, scales=4, height=100, width=100, classes=10)
    began = time.process_time()
    pixels, _ = frames(glimpse_animation(image, trace, 0, 0, [str(k) for k in range(10)], tmp_path / "a.gif"))
    assert (time.process_time() - began) / 8 < 0.1
    for page in pixels:
        assert (page[0, 0] == 255).all() and (page[-1, -1] == 255).all()  # white stays white in 256 colours
    if channels == 1:
        inside = pixels[-1][100:140, 100:140]
        assert len(np.unique(inside)) > 20
    trace.boxes = None
    with pytest.raises(ValueError, match="boxes"):
        glimpse_animation(image, trace, 0, 0, [str(k) for k in range(10)], tmp_path / "b.gif")
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]
