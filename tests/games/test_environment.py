"""The gymnasium environment: gymnasium's own checker, and the same game as the batched one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium", reason="the extra `control` is not installed")
NAME = "attn_cli.games.environment:attn/Catch-v0"


def test_gymnasiums_checker_has_nothing_to_say():
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(NAME, render_mode="rgb_array").unwrapped)


def test_a_game_from_reset_to_reward():
    env = gymnasium.make(NAME)
    rewards = []
    for seed in range(12):
        screen, _ = env.reset(seed=seed)
        ended, steps = False, 0
        while not ended:
            rows, columns = np.nonzero(screen[:-1, :, 0])
            assert rows.tolist() == [steps]
            paddle = np.nonzero(screen[-1, :, 0])[0][0]
            screen, reward, ended, truncated, _ = env.step(1 + int(columns[0] > paddle + 1) - int(columns[0] < paddle))
            steps += 1
            assert not truncated
            assert ended or reward == 0
        assert steps == 23
        lit = np.nonzero(screen[-1, :, 0])[0]
        assert reward == (len(lit) == 2)  # the ball is over the paddle
        rewards.append(reward)
    assert 0 < sum(rewards) < 12


def test_a_game_that_is_over_must_be_reset():
    env = gymnasium.make(NAME).unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset first"):
        env.step(0)
    env.reset(seed=0)
    for _ in range(23):
        env.step(0)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset first"):
        env.step(0)
