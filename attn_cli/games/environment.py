"""Catch as a gymnasium environment, one game at a time, for agents that were written elsewhere.

    import gymnasium
    env = gymnasium.make("attn_cli.games.environment:attn/Catch-v0")

Needs the extra `control`. The rules are those of attn_cli/games/catch.py. An observation is the screen, uint8
(24, 24, 1), 0 or 255; actions are 0 left, 1 stay, 2 right; `rgb_array` rendering enlarges the screen.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from attn_cli.games.catch import SIDE, STEEPEST, UNIT, Catch, as_starts

ZOOM = 8  # of a rendered screen


class CatchEnvironment(gymnasium.Env[np.ndarray, int]):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None):
        self.observation_space = spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8)
        self.action_space = spaces.Discrete(len(Catch.actions))  # type: ignore[assignment]
        self.render_mode = render_mode
        self.game: Catch | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        columns = self.np_random.integers(0, SIDE * UNIT, 1)
        self.game = Catch.begin(as_starts(columns, self.np_random.integers(-STEEPEST, STEEPEST + 1, 1)))
        return self._screen(self.game), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.game is None or self.game.over:
            raise gymnasium.error.ResetNeeded("There is no game to play: call reset first.")
        self.game = self.game.step(torch.tensor([int(action)]))
        reward = self.game.rewards().item() if self.game.over else 0.0
        return self._screen(self.game), reward, self.game.over, False, {}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        if self.render_mode is None or self.game is None:
            return None
        return self._screen(self.game).repeat(ZOOM, 0).repeat(ZOOM, 1).repeat(3, 2)

    @staticmethod
    def _screen(game: Catch) -> np.ndarray:
        return game.screens()[0].permute(1, 2, 0).numpy()


gymnasium.register("attn/Catch-v0", entry_point=f"{__name__}:{CatchEnvironment.__name__}")
