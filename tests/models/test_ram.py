"""RAM: shapes, where gradients go, and what its paper says."""

from __future__ import annotations

import math

import pytest
import torch

from attn_cli.config.schema import Config, Dram, Glimpses, Ram, Scales
from attn_cli.data.splits import DataInfo
from attn_cli.errors import Refused
from attn_cli.learning.objectives import hybrid
from attn_cli.models.build import build_model
from attn_cli.models.ram import RAM
from attn_cli.models.rollout import draw_noise, rollout

BASE = dict(
    name="ram", core="relu", hidden=256, glimpse_hidden=128, glimpse_features=256, sigma=0.1, samples=1,
    baseline="learned", reward="correct", discount=1.0, reinforce_weight=0.01, baseline_weight=1.0,
    policy_gradient="detached", location_mean="linear", policy="gaussian", grid=5,
)  # fmt: skip


def make(size=8, scales=1, glimpses=6, channels=1, classes=10, **changes) -> RAM:
    torch.manual_seed(0)
    return RAM(Ram(**{**BASE, **changes}), Glimpses(glimpses, size), Scales(scales), channels=channels, classes=classes)


def pictures(batch=5, channels=1, height=28, width=28):
    return torch.randint(
        0, 256, (batch, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def run(model, images, samples=1, seed=0, **options):
    return rollout(model, images, draw_noise(seed, 0, (samples, images.shape[0], model.glimpses)), **options)


def loss_of(model, images, labels, samples=1, **options):
    logits, trace = run(model, images, samples)
    return hybrid(logits, trace, labels, **options)


@pytest.mark.parametrize("core", ["relu", "lstm"])
@pytest.mark.parametrize(("channels", "height", "width", "scales"), [(1, 28, 28, 1), (3, 20, 45, 3)])
def test_shapes(core, channels, height, width, scales):
    model = make(core=core, channels=channels, scales=scales, glimpses=4, classes=7)
    logits, trace = run(model, pictures(5, channels, height, width), samples=2, record=True)
    assert logits.shape == (2, 5, 7)
    assert trace.locations.shape == (2, 5, 4, 2)
    assert trace.log_probs.shape == trace.baselines.shape == (2, 5, 3)  # N − 1: the first location is random
    assert trace.patches.shape == (2, 5, 4, scales, channels, 8, 8)
    assert trace.boxes.shape == (2, 5, 4, scales, 4)
    torch.testing.assert_close(trace.step_logits[:, :, -1], logits)


def test_multiply_adds_against_torch_and_by_hand():
    from torch.utils.flop_counter import FlopCounterMode

    model, images = make(), pictures(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(model, images)
    by_hand = 6 * (64 * 128 + 2 * 128 + 256 * 256 + 512 * 256) + 5 * 2 * 256 + 2560
    assert model.multiply_adds() == by_hand
    assert counter.get_total_flops() == 2 * (by_hand + 5 * 256)  # training's baseline network on top


@pytest.mark.parametrize("policy_gradient", ["detached", "full"])
@pytest.mark.parametrize("first", ["random", "learned"])
def test_multiply_adds_of_training_against_torch(first, policy_gradient):
    from torch.utils.flop_counter import FlopCounterMode

    model = make(first=first, policy_gradient=policy_gradient)
    with FlopCounterMode(display=False) as counter:
        loss_of(model, pictures(2), torch.tensor([0, 1])).total.backward()
    assert counter.get_total_flops() == 2 * 2 * model.multiply_adds(training=True)


def test_log_density_is_that_of_the_unclamped_sample():
    model = make(sigma=0.5, glimpses=3)
    with torch.no_grad():
        model.location_network.bias.copy_(torch.tensor([0.9, -0.9]))
        model.location_network.weight.zero_()
    noise = torch.full((1, 4, 3, 2), 0.0)
    noise[..., 0], noise[..., 1] = 1.0, -1.0  # samples (1.4, −1.4): outside
    _, trace = rollout(model, pictures(4), noise)
    assert torch.equal(trace.locations[0, :, 1], torch.tensor([[1.0, -1.0]]).expand(4, 2))
    expected = -0.5 * 2 - 2 * math.log(0.5 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(trace.log_probs, torch.full((1, 4, 2), expected))


def test_first_location_is_uniform_over_the_image_and_the_mean_policy_adds_no_noise():
    model = make(glimpses=2)
    noise = draw_noise(3, 0, (1, 4000, 2))
    _, trace = rollout(model, pictures(1).expand(4000, 1, 28, 28), noise)
    first = trace.locations[0, :, 0]
    assert torch.histc(first[:, 0], 4, -1, 1).sub(1000).abs().max() < 120
    assert first.abs().max() <= 1
    _, greedy = rollout(model, pictures(1).expand(4000, 1, 28, 28), noise, greedy=True)
    assert torch.equal(greedy.locations[0, :, 0], first)
    means = model.location_network(torch.zeros(1, 256))
    assert not torch.equal(greedy.locations, trace.locations)
    assert means.shape == (1, 2)


@pytest.mark.parametrize("policy", ["gaussian", "grid"])
def test_a_learned_first_location_is_chosen_by_the_policy_from_what_has_seen_nothing(policy):
    model, images = make(first="learned", policy=policy, glimpses=3), pictures(8)
    assert model.stochastic and not model.random_start
    _, greedy = run(model, images, greedy=True)
    chosen = model.location_network.bias
    expected = chosen if policy == "gaussian" else model.places[chosen.argmax()]
    torch.testing.assert_close(greedy.locations[0, :, 0], expected.expand(8, 2))
    _, trace = run(model, images, samples=2)
    assert trace.log_probs.shape == trace.baselines.shape == (2, 8, 3)
    assert trace.locations[:, :, 0].flatten(0, 1).unique(dim=0).shape[0] > 1
    trace.log_probs[..., 0].sum().backward()
    assert chosen.grad.abs().max() > 0
    assert model.core.weight.grad is None or model.core.weight.grad.abs().max() == 0


@pytest.mark.parametrize(("policy_gradient", "reaches"), [("detached", False), ("full", True)])
@pytest.mark.parametrize("core", ["relu", "lstm"])
def test_where_the_policy_gradient_goes(core, policy_gradient, reaches):
    model, images = make(core=core, policy_gradient=policy_gradient), pictures(8)
    logits, trace = run(model, images)
    trace.log_probs.sum().backward()
    assert model.location_network.weight.grad.abs().max() > 0
    core_gradient = model.core.weight.grad
    assert (core_gradient is not None and core_gradient.abs().max() > 0) == reaches
    assert model.action_network.weight.grad is None


def test_the_baseline_sends_nothing_into_the_core():
    model, images = make(policy_gradient="full"), pictures(8)
    _, trace = run(model, images)
    trace.baselines.sum().backward()
    assert model.baseline_network.weight.grad.abs().max() > 0
    assert model.core.weight.grad is None


def test_a_location_is_paired_with_the_baseline_of_the_state_that_emitted_it():
    model, images = make(glimpses=3), pictures(4)
    noise = draw_noise(0, 0, (1, 4, 3))
    _, trace = rollout(model, images, noise)
    state = model.step(model.start(images, 1), noise[0, :, 0])
    torch.testing.assert_close(trace.baselines[0, :, 0], model.baseline(state.hidden))
    deviation = trace.locations[0, :, 1] - model.location_network(state.hidden)
    torch.testing.assert_close(deviation, 0.1 * noise[0, :, 1], atol=1e-5, rtol=0)


def test_samples_are_separate_paths_of_the_same_images():
    model, images = make(), pictures(3)
    noise = draw_noise(0, 0, (4, 3, 6))
    logits, _ = rollout(model, images, noise)
    for m in range(4):
        alone, _ = rollout(model, images, noise[m : m + 1])
        torch.testing.assert_close(logits[m], alone[0], atol=1e-5, rtol=1e-4)


def test_grid_policy_looks_at_its_places_with_their_probabilities():
    model = make(policy="grid", grid=3, glimpses=2)
    with torch.no_grad():
        model.location_network.weight.zero_()
        model.location_network.bias.copy_(torch.arange(9.0) / 3)
    images = pictures(1).expand(20_000, 1, 28, 28)
    _, trace = rollout(model, images, draw_noise(2, 0, (1, 20_000, 2)))
    p = torch.softmax(model.location_network.bias, 0)
    counts = torch.stack([(trace.locations[0, :, 1] == place).all(-1).float().mean() for place in model.places])
    assert counts.sum() == pytest.approx(1.0)
    assert (counts - p).abs().max() < 0.01
    frequencies = trace.log_probs[0, :, 0].exp().mean()
    assert frequencies.item() == pytest.approx((p * p).sum().item(), abs=0.01)
    with pytest.raises(Refused, match="25"):
        make(policy="grid", grid=6)


def test_the_mean_path_of_a_grid_policy_looks_at_the_likeliest_place():
    model = make(policy="grid", grid=3, glimpses=2)
    with torch.no_grad():
        model.location_network.weight.zero_()
        model.location_network.bias.copy_(torch.tensor([0.0, 0, 0, 0, 0, 2, 0, 0, 0]))  # in the middle on the right
    _, trace = run(model, pictures(), samples=3, greedy=True)
    assert torch.allclose(trace.locations[:, :, 1], torch.tensor([2 / 3, 0.0]))
    assert torch.allclose(trace.log_probs, torch.log_softmax(model.location_network.bias, 0)[5].detach())


def test_random_policy_has_nothing_to_reinforce():
    model = make(policy="random")
    logits, trace = run(model, pictures(4))
    assert trace.log_probs.shape == (1, 4, 0)
    assert trace.locations.std() > 0.3
    loss_of(model, pictures(4), torch.arange(4)).total.backward()
    assert model.location_network.weight.grad is None


def test_a_fixed_gaze_stays_in_the_centre_and_leaves_nothing_to_chance():
    model = make(policy="fixed", glimpses=3)
    _, trace = run(model, pictures(), samples=2, seed=1)
    assert not trace.locations.any() and trace.log_probs.shape == (2, 5, 0)
    assert not model.stochastic and not model.random_start
    assert model.multiply_adds() == make(policy="random", glimpses=3).multiply_adds()


def test_noise_is_a_function_of_seed_and_step():
    shape = (2, 3, 4)
    assert torch.equal(draw_noise(1, 5, shape), draw_noise(1, 5, shape))
    assert not torch.equal(draw_noise(1, 5, shape), draw_noise(1, 6, shape))
    assert not torch.equal(draw_noise(1, 5, shape), draw_noise(2, 5, shape))


def test_single_image_and_image_smaller_than_the_retina():
    logits, _ = run(make(size=12, scales=3), pictures(1, 1, 10, 7))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("core", ["relu", "lstm"])
def test_full_policy_gradient_matches_finite_differences(core):
    """The derivative of the sum of log-densities at fixed samples, along a random direction of the core's weights."""
    model = make(
        core=core, policy_gradient="full", hidden=16, glimpse_hidden=8, glimpse_features=8, glimpses=3
    ).double()
    images, noise = pictures(4), draw_noise(0, 0, (1, 4, 3)).double()
    _, trace = rollout(model, images, noise)
    samples = trace.locations.detach()
    direction = torch.randn(model.core.weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def log_density_at(shift):
        with torch.no_grad():
            model.core.weight += shift * direction
            state, total = model.start(images, 1), 0.0
            for t in range(3):
                if t:
                    mean = model.location_network(state.hidden)
                    total = total - 0.5 * ((samples[0, :, t] - mean) / 0.1).square().sum()
                features = model.glimpse_network(
                    model.retina.look(state.canvas, samples[0, :, t]).flatten(1).double(), samples[0, :, t]
                )
                hidden, cell = model.think(state, features)
                state = type(state)(state.canvas, hidden, cell, samples[0, :, t])
            model.core.weight -= shift * direction
        return total

    assert samples.abs().max() < 1  # nothing was clamped
    trace.log_probs.sum().backward()
    numeric = (log_density_at(1e-5) - log_density_at(-1e-5)) / 2e-5
    assert (model.core.weight.grad * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-4)


@pytest.mark.parametrize("model", [Ram(), Ram(magnification=1.5), Dram()], ids=["ram", "zoomed", "dram"])
def test_beyond_the_image_lies_the_background_of_the_data(model):
    info = DataInfo("any", 1, 40, 40, 3, ("a", "b", "c"), 51, 8, 8, 8)
    built = build_model(Config(model=model, glimpses=Glimpses(2, 12), scales=Scales(1)), info)
    canvas, corner = built.start(torch.zeros(2, 1, 40, 40, dtype=torch.uint8), 1).canvas, torch.ones(2, 2)
    if zoom := getattr(built, "zoom", None):
        seen = zoom.look(canvas, corner, torch.full((2,), 1.5))
    else:
        seen = built.retina.look(canvas, corner)
    assert torch.allclose(seen[:, 0, 0, 6:], torch.tensor(51 / 255)) and (seen[:, 0, 0, :6, :6] == 0).all()
