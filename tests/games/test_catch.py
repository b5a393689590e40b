"""Catch: the batched games against one that is played pixel by pixel, and the players that learn nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from attn_cli.games.catch import LEFT, RIGHT, SIDE, STAY, UNIT, Catch, as_starts, draw_starts
from attn_cli.games.players import PLAYERS, caught, chance


def naive(column: int, speed: int, actions: list[int]) -> tuple[list[np.ndarray], int]:
    """One game by bouncing step by step: its 24 screens and the reward. Numbers in 1/1024 pixel."""
    x, paddle, screens = column, 11, []
    for row in range(24):
        if row:
            paddle = min(max(paddle + actions[row - 1] - 1, 0), 22)
            x += speed
            while not 0 <= x < 24 * 1024:
                if x < 0:
                    x, speed = -1 - x, -speed
                else:
                    x, speed = 2 * 24 * 1024 - 1 - x, -speed
        screen = np.zeros((24, 24), np.uint8)
        screen[23, [paddle, paddle + 1]] = 255
        screen[row, x // 1024] = 255
        screens.append(screen)
    return screens, int(x // 1024 in (paddle, paddle + 1))


def test_batched_games_are_the_naive_ones():
    starts = torch.cat([draw_starts(60, "a test"), torch.tensor([[0, -UNIT], [SIDE * UNIT - 1, UNIT]])])
    actions = torch.randint(0, 3, (len(starts), 23), generator=torch.Generator().manual_seed(0))
    game, seen = Catch.begin(starts), []
    for t in range(23):
        seen.append(game.screens())
        game = game.step(actions[:, t])
    seen.append(game.screens())
    assert game.over
    for i, (column, speed) in enumerate(starts.tolist()):
        screens, reward = naive(column, speed, actions[i].tolist())
        assert np.array_equal(torch.stack([s[i, 0] for s in seen]).numpy(), np.stack(screens))
        assert game.rewards()[i] == reward
    assert 0 < game.rewards().sum() < len(starts)


def test_starts_cover_the_columns_and_angles():
    starts = draw_starts(20_000, "another test")
    columns, speeds = (starts[:, 0] // UNIT).numpy(), starts[:, 1].numpy() / UNIT
    assert np.bincount(columns, minlength=24) == pytest.approx(20_000 / 24, rel=0.15)
    angles = np.degrees(np.arctan(speeds))
    assert (angles.min(), angles.max()) == pytest.approx((-45, 45), abs=0.05)
    assert np.quantile(angles, [0.25, 0.5, 0.75]) == pytest.approx([-22.5, 0, 22.5], abs=1)


def test_speed_is_the_tangent_of_the_angle():
    starts = as_starts(np.array([5, 5, 5]), np.array([-450, 0, 300]))
    assert starts.tolist() == [[5, -1024], [5, 0], [5, round(1024 * math.tan(math.pi / 6))]]


def test_starts_are_a_function_of_their_key():
    assert torch.equal(draw_starts(9, 1, 2), draw_starts(9, 1, 2))
    assert not torch.equal(draw_starts(9, 1, 2), draw_starts(9, 2, 1))


def test_paddle_stops_at_the_sides():
    game = Catch.begin(torch.tensor([[0, 0], [0, 0], [0, 0]]))
    for _ in range(23):
        game = game.step(torch.tensor([LEFT, STAY, RIGHT]))
    assert game.paddle.tolist() == [0, 11, 22]


@pytest.mark.parametrize(("column", "reward"), [(10, 0), (11, 1), (12, 1), (13, 0)])
def test_both_pixels_of_the_paddle_catch(column, reward):
    game = Catch(torch.tensor([[column * UNIT, 0]]), torch.tensor([11]), 23)
    assert game.rewards().tolist() == [reward]


def test_who_foresees_catches_all_and_who_guesses_little():
    starts = draw_starts(4000, "players")
    shares = {name: caught(player, starts) for name, player in PLAYERS.items()}
    assert shares["perfect"] == 100
    assert 50 < shares["follows_the_ball"] < 70  # it is a frame late
    assert 5 < shares["random"] < 12  # two of the columns around the middle


def test_a_random_player_takes_every_action():
    actions = chance(Catch.begin(draw_starts(3000, "actions")))
    assert torch.bincount(actions, minlength=3).tolist() == pytest.approx([1000] * 3, rel=0.12)
