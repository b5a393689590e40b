"""Pictures of games: a page a frame with the retina where it was, and how the game ended."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from attn_cli.games.catch import Catch
from attn_cli.glimpses.retina import Retina
from attn_cli.models.trace import Trace
from attn_cli.pictures.drawing import RIGHT, SENSOR, WRONG
from attn_cli.pictures.games import game_animation, games_figure


@pytest.fixture
def trace() -> Trace:
    """Two games with the paddle at rest, under a ball that falls straight down and under none; the gaze on the ball."""
    game, retina = Catch.begin(torch.tensor([[12 * 1024, 0], [3 * 1024, 0]])), Retina(6, 3, 1)
    screens, locations = [], []
    for _ in range(23):
        screens.append(game.screens())
        locations.append(
            torch.stack([(game.ball() + 0.25) / 12 - 1, torch.full((2,), (game.frame + 0.25) / 12 - 1)], -1)
        )
        game = game.step(torch.ones(2, dtype=torch.long))
    where = torch.stack(locations, 1)
    seen = [retina.look(retina.frame(s), loc) for s, loc in zip(screens, locations, strict=True)]
    boxes = torch.stack([retina.boxes(loc, 24, 24) for loc in locations], 1)
    logits = torch.zeros(1, 2, 23, 3)
    return Trace(
        where[None], logits[..., 0], logits[..., 0], logits[:, :, -1], logits, torch.stack(seen, 1)[None], boxes[None],
        screens=torch.stack([*screens, game.screens()], 1)[None], rewards=game.rewards()[None],
        actions=torch.ones(1, 2, 23, dtype=torch.long),
    )  # fmt: skip


def pages(path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        return [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(gif)]


def near(page, colour) -> np.ndarray:
    return (abs(page - colour) <= 12).all(-1)


@pytest.mark.parametrize(("index", "colour", "other"), [(0, RIGHT, WRONG), (1, WRONG, RIGHT)])
def test_a_page_a_frame_and_then_how_it_ended(trace, tmp_path, index, colour, other):
    drawn = pages(game_animation(trace, index, ("left", "stay", "right"), tmp_path / "a.gif"))
    assert len(drawn) == 24
    for page in drawn[:-1]:
        assert not near(page, colour).any()
    assert near(drawn[-1], colour).any() and not near(drawn[-1], other).any()


def test_the_retina_falls_with_the_ball(trace, tmp_path):
    drawn = pages(game_animation(trace, 0, ("left", "stay", "right"), tmp_path / "a.gif"))
    middles = []
    for page in drawn[:-1]:
        rows, columns = np.nonzero(near(page, SENSOR[0]))
        middles.append((np.median(columns), (rows.min() + rows.max()) / 2))
    x, y = np.array(middles).T
    assert np.ptp(x) == 0
    assert np.diff(y) == pytest.approx([10] * 22)  # pixels of the page for a pixel of the screen
    assert not near(drawn[-1], SENSOR[0]).any()


def test_the_whole_retina_is_drawn_where_it_reaches_out(trace, tmp_path):
    first = pages(game_animation(trace, 0, ("left", "stay", "right"), tmp_path / "a.gif"))[0]
    rows, columns = np.nonzero(near(first, SENSOR[2]))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (240, 240)  # 24 pixels of the screen a side


def test_the_sheet_tells_who_was_caught(trace, tmp_path):
    page = np.asarray(Image.open(games_figure(trace, tmp_path / "games.png"))).astype(int)
    left, right = np.split(page, 2, 1)
    assert near(left, RIGHT).any() and not near(left, WRONG).any()
    assert near(right, WRONG).any() and not near(right, RIGHT).any()


def test_other_traces_are_refused(trace, tmp_path):
    trace.screens = None
    with pytest.raises(ValueError, match="The trace has no screens"):
        games_figure(trace, tmp_path / "games.png")
    with pytest.raises(ValueError, match="The trace has no screens"):
        game_animation(trace, 0, ("left", "stay", "right"), tmp_path / "a.gif")
