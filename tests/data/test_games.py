"""Games as a data set: fresh in training, fixed in validation and test, keyed and independent of the batch."""

from __future__ import annotations

import torch

from attn_cli.config import schema
from attn_cli.data.batches import open_data
from attn_cli.games.catch import Catch


def opened(**options):
    return open_data(schema.Catch(**options))


def test_an_epoch_is_a_fixed_number_of_games():
    data = opened(games=1000)
    assert data.steps_per_epoch(64) == 15
    assert opened(games=10).steps_per_epoch(64) == 1
    assert len(opened(games=10).train_batch(0, 0, 0, 64)[1]) == 10


def test_batches_are_a_function_of_seed_epoch_and_step():
    data = opened(games=1000)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    batches = {key: data.train_batch(*key, 64) for key in keys}
    again = opened(games=1000)
    for key, (screens, starts) in batches.items():
        assert torch.equal(starts, again.train_batch(*key, 64)[1])
        assert torch.equal(screens, Catch.begin(starts).screens())
    assert len({tuple(starts.flatten().tolist()) for _, starts in batches.values()}) == len(keys)


def test_fixed_games_are_of_keys_of_their_own():
    data = opened()
    counts = {split: len(data.fixed(split)[1]) for split in ("validation", "test")}
    assert counts == {"validation": data.info.validation, "test": 10_000}
    assert not torch.equal(data.fixed("validation")[1][:100], data.fixed("test")[1][:100])
    # The same on every machine: what results carry.
    assert data.digest("test") == opened(games=5).digest("test")
    assert data.digest("test").startswith("ed632342c5b7f681")


def test_info_tells_actions_and_the_game():
    info = opened().info
    assert (info.classes, info.class_names, info.game) == (3, ("left", "stay", "right"), Catch)
    assert (info.channels, info.height, info.width) == (1, 24, 24)
    assert schema.Catch.frames == Catch.frames
