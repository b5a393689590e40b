"""RAM as a player: what it sees and does in every frame, and that REINFORCE reaches all that decides."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch

from attn_cli.config import schema
from attn_cli.errors import Refused
from attn_cli.games.catch import Catch, draw_starts
from attn_cli.learning.objectives import control
from attn_cli.models.build import build_model
from attn_cli.models.ram_catch import RamCatch
from attn_cli.models.rollout import draw_noise, play
from attn_cli.models.trace import Trace


def small(policy="gaussian", size=6, scales=3, **options):
    torch.manual_seed(0)
    section = schema.RamCatch(hidden=16, glimpse_hidden=8, glimpse_features=12, policy=policy, **options)
    return RamCatch(section, schema.Glimpses(6, size), schema.Scales(scales), game=Catch, channels=1, classes=3)


def played(model, games=5, seed=0, greedy=False, samples=1):
    noise = draw_noise(seed, 0, (samples, games, model.steps), numbers=model.noises)
    return play(model, draw_starts(games, "test"), noise, greedy, record=True)


def test_one_glimpse_a_frame_of_that_frame():
    model = small()
    trace = played(model, samples=2)
    assert trace.locations.shape == (2, 5, 23, 2) and trace.log_probs.shape == (2, 5, 23)
    assert trace.screens.shape == (2, 5, 24, 1, 24, 24)
    for t in range(23):
        canvas = model.retina.frame(trace.screens[:, :, t].flatten(0, 1))
        seen = model.retina.look(canvas, trace.locations[:, :, t].flatten(0, 1))
        assert torch.equal(seen, trace.patches[:, :, t].flatten(0, 1))


def test_the_ball_is_as_bright_on_every_scale():
    model = small()
    trace = played(model)
    inside = model.sense(trace.patches[0, :, 0])[:, :, 0]  # of the first frame, ball in the top row
    assert (inside.flatten(2).sum(-1)[:, -1] <= 3).all()
    game = Catch(torch.tensor([[12 * 1024, 0]]), torch.tensor([0]), 12)
    seen = model.sense(model.retina.look(model.retina.frame(game.screens()), torch.zeros(1, 2)))[0, :, 0]
    assert seen.flatten(1).amax(1)[:2].tolist() == [1, 1]
    assert seen[2, :5].max() == 1 and seen[2].sum() == 3  # with the paddle in the bottom row


def test_the_mean_location_is_scaled():
    model = small(location_scale=0.5)
    trace = played(model, greedy=True)
    state = model.start(trace.screens[0, :, 0], 1)
    assert torch.allclose(trace.locations[0, :, 0], 0.5 * model.location_network(state.hidden))


def test_screens_follow_the_actions():
    trace = played(small())
    game = Catch.begin(draw_starts(5, "test"))
    for t in range(23):
        assert torch.equal(trace.screens[0, :, t], game.screens())
        game = game.step(trace.actions[0, :, t])
    assert torch.equal(trace.screens[0, :, 23], game.screens())
    assert torch.equal(trace.rewards[0], game.rewards())


def test_actions_have_the_frequencies_of_their_distribution():
    model = small()
    logits = torch.tensor([0.5, -1.0, 0.2]).expand(30_000, 3)
    noise = torch.randn(30_000, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(model.act(logits, noise, greedy=False), minlength=3) / 30_000
    assert shares.tolist() == pytest.approx(logits[0].softmax(0).tolist(), abs=0.01)
    assert (model.act(logits, noise, greedy=True) == 0).all()


def test_recorded_log_probabilities_are_those_of_what_was_done():
    trace = played(small())
    log_p = trace.step_logits.log_softmax(-1)
    for b, t in itertools.product(range(5), range(23)):
        assert trace.action_log_probs[0, b, t] == log_p[0, b, t, trace.actions[0, b, t]]


def test_greedy_play_depends_on_nothing_but_the_game():
    model = small()
    first, second = played(model, seed=1, greedy=True), played(model, seed=2, greedy=True)
    assert torch.equal(first.locations, second.locations) and torch.equal(first.actions, second.actions)
    assert torch.equal(first.actions[0, :, 0], first.step_logits[0, :, 0].argmax(-1))


def test_a_fixed_gaze_stays_in_the_centre_and_can_see_all():
    trace = played(small("fixed", size=24, scales=1))
    assert trace.log_probs.shape == (1, 5, 0) and not trace.locations.any()
    assert torch.equal(trace.patches[0, :, :, 0, 0] * 255, trace.screens[0, :, :-1, 0].float())


@pytest.mark.parametrize(("place", "other"), [("location", "action"), ("action", "location")])
def test_either_policy_gradient_reaches_the_core_and_the_glimpse_network(place, other):
    """Unlike in classification with `policy_gradient: detached`, where the locations' stops at the location network."""
    model = small()
    trace = played(model)
    log_probs = trace.log_probs if place == "location" else trace.action_log_probs
    log_probs[..., -1].sum().backward()
    for module in (model.core, model.glimpse_network.what, model.get_submodule(f"{place}_network")):
        assert module.weight.grad.abs().sum() > 0
    assert model.get_submodule(f"{other}_network").weight.grad is None


def test_the_baseline_sends_no_gradient_into_the_core():
    model = small()
    played(model).action_baselines.sum().backward()
    assert model.baseline_network.weight.grad.abs().sum() > 0
    assert model.core.weight.grad is None


def by_hand():
    """Two games of two frames, the first lost."""
    values = {"log_probs": [[-1.0, -2.0], [-3.0, -4.0]], "baselines": [[0.5, 0.25], [0.0, 1.0]]}
    acted = {"action_log_probs": [[-0.1, -0.2], [-0.3, -0.4]], "action_baselines": [[0.5, 0.0], [1.0, 0.5]]}
    tensors = {name: torch.tensor([rows], requires_grad=True) for name, rows in (values | acted).items()}
    logits = torch.zeros(1, 2, 2, 3)
    actions, rewards = torch.zeros(1, 2, 2, dtype=torch.long), torch.tensor([[0.0, 1.0]])
    return Trace(
        torch.zeros(1, 2, 2, 2),
        logits=logits[:, :, -1],
        step_logits=logits,
        actions=actions,
        rewards=rewards,
        **tensors,
    )


def test_objective_by_hand():
    losses = control(by_hand(), discount=0.5, location_weight=2.0, baseline_weight=3.0, entropy_weight=10.0)
    # Returns of the game that was won: 1 after the last frame, 0.5 after the first, 0.25 for the first location.
    acted = [-(-0.1 * -0.5 + 0), -(-0.3 * (0.5 - 1) + -0.4 * (1 - 0.5))]
    looked = [-(-1 * -0.5 + -2 * -0.25), -(-3 * 0.25 + -4 * (0.5 - 1))]
    reinforce = sum(acted) / 2 + 2.0 * sum(looked) / 2
    fit = (0.5**2 + 0 + 0.5**2 + 0.5**2 + 0.5**2 + 0.25**2 + 0.25**2 + 0.5**2) / 8
    entropy = 2 * torch.tensor(3.0).log().item()
    assert losses.reinforce.item() == pytest.approx(reinforce)
    assert losses.baseline.item() == pytest.approx(fit)
    assert losses.total.item() == pytest.approx(reinforce + 3.0 * fit - 10.0 * entropy)
    assert (losses.reward.item(), losses.error.item()) == (0.5, 0.5)


@dataclass(frozen=True)
class Guess:
    """A game of one frame with a reward for one of the actions."""

    chosen: torch.Tensor
    frame: int
    frames = 1

    @staticmethod
    def begin(starts_R2):
        return Guess(starts_R2[:, 0], 0)

    def screens(self):
        return torch.full((len(self.chosen), 1, 24, 24), 255, dtype=torch.uint8)

    def step(self, actions_R):
        return Guess(actions_R, 1)

    def rewards(self):
        return (self.chosen == 2).float()


def test_gradient_is_that_of_the_expected_reward():
    """Exact for a game of one frame and a fixed gaze: ∂p(2) / ∂logits = p(2) · (1[a = 2] − p(a))."""
    torch.manual_seed(0)
    model = small("fixed")
    model.game, model.glimpses = Guess, 1
    games = 200_000
    trace = play(model, torch.zeros(games, 2, dtype=torch.long), draw_noise(0, 0, (1, games, 1), numbers=3))
    control(trace, baseline_weight=0.0).total.backward()
    p = trace.step_logits[0, 0, 0].softmax(-1).detach()
    exact = p[2] * (torch.eye(3)[2] - p)
    assert (-model.action_network.bias.grad).tolist() == pytest.approx(exact.tolist(), abs=4e-3)


def test_multiply_adds_by_layers():
    model = small()
    D, per_frame = 16, 8 * 108 + 8 * 2 + 12 * 16 + 4 * 16 * (16 + 12)
    assert model.multiply_adds() == 23 * (per_frame + 3 * D + 2 * D)
    first, inner, heads = 8 * 108 + 8 * 2, 12 * 16 + 4 * 16 * 28, (3 + 2) * D
    assert model.multiply_adds(training=True) == 23 * (2 * first + 3 * inner + 3 * heads + 2 * 2 * D)


def test_full_size_network_costs_what_was_expected():
    model = RamCatch(schema.RamCatch(), schema.Glimpses(6, 6), schema.Scales(3), game=Catch, channels=1, classes=3)
    assert model.multiply_adds(training=True) / 23 == pytest.approx(1.8e6, rel=0.02)


@pytest.mark.parametrize(("model", "data"), [("ram", "catch"), ("ram_catch", "digits"), ("convnet_10", "catch")])
def test_games_and_images_do_not_mix(model, data):
    from attn_cli.data.splits import DataInfo

    info = DataInfo(data, 1, 24, 24, 3, ("left", "stay", "right"), 0, 9, 9, 9, game=Catch if data == "catch" else None)
    config = replace(schema.Config(), model=schema.MODELS[model](name=model))
    with pytest.raises(Refused, match=f"data={data} is .*game.* model={model}: use model=ram_catch with data=catch"):
        build_model(config, info)
