"""Players of Catch that learn nothing, to compare a model with: shares of the same games that they catch.

Legend: R games.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attn_cli.data.keys import below
from attn_cli.devices import send
from attn_cli.games.catch import LEFT, RIGHT, STAY, Catch

Player = Callable[[Catch], Tensor]  # games → actions (R,)


def chance(game: Catch) -> Tensor:
    """One of the three actions, whatever it sees."""
    actions = below(len(game.actions), (len(game.paddle),), "random player", game.frame)
    return send(actions, game.paddle.device)


def follow(game: Catch) -> Tensor:
    """Sees the whole screen but remembers nothing: it keeps the paddle where the ball is, a frame late."""
    return towards(game, game.ball())


def foresee(game: Catch) -> Tensor:
    """Knows start and angle, and goes to where the ball will land: what can be caught is."""
    return towards(game, game.ball(game.frames))


def towards(game: Catch, column_R: Tensor) -> Tensor:
    """One pixel towards a column, or nothing where it is covered."""
    distance = column_R - game.paddle
    stay = torch.full_like(distance, STAY)
    return torch.where(distance < 0, LEFT, torch.where(distance > 1, RIGHT, stay))


PLAYERS: dict[str, Player] = {"random": chance, "follows_the_ball": follow, "perfect": foresee}


def compared(starts_R2: Tensor) -> dict[str, float]:
    """Shares of games in % that each of these players catches."""
    return {name: caught(player, starts_R2) for name, player in PLAYERS.items()}


def caught(player: Player, starts_R2: Tensor) -> float:
    """Share of games in % that a player catches."""
    game = Catch.begin(starts_R2)
    while not game.over:
        game = game.step(player(game))
    return 100 * game.rewards().double().mean().item()
