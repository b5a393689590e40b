"""RAM that chooses its scale: what it sees there, its policy gradient against the exact expectation, what it learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attn_cli.config import schema
from attn_cli.errors import Refused
from attn_cli.glimpses.zoom import Zoom
from attn_cli.inference.attention import attention
from attn_cli.inference.monte_carlo import evaluate, evaluation_noise
from attn_cli.inference.stopping import answer_early
from attn_cli.learning.objectives import hybrid
from attn_cli.models.parts import multiply_adds
from attn_cli.models.ram import RAM
from attn_cli.models.rollout import draw_noise, rollout
from attn_cli.models.stopping import sureness
from attn_cli.models.trace import Trace


def make(glimpses=4, scales=1, classes=4, **options) -> RAM:
    torch.manual_seed(0)
    config = schema.Ram(hidden=24, glimpse_hidden=12, glimpse_features=16, **{"scale": "learned", **options})
    return RAM(config, schema.Glimpses(glimpses, 6), schema.Scales(scales), channels=1, classes=classes, background=9)


def pictures(batch=5, height=30, width=40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 1, height, width), dtype=torch.uint8, generator=generator)


def noise(model: RAM, samples=1, batch=5, seed=3) -> torch.Tensor:
    return draw_noise(seed, 0, (samples, batch, model.glimpses), numbers=model.noises)


@pytest.mark.parametrize(("core", "scales"), [("relu", 1), ("lstm", 2)])
def test_what_is_seen_lies_where_and_as_large_as_the_trace_says(core, scales):
    model, images = make(core=core, scales=scales), pictures()
    draws = noise(model, samples=2)
    logits, trace = rollout(model, images, draws, record=True)
    assert logits.shape == (2, 5, 4) and trace.log_probs.shape == trace.baselines.shape == (2, 5, 3)
    assert trace.magnifications.shape == (2, 5, 4)
    assert torch.allclose(trace.magnifications[:, :, 0], torch.tensor(8.0))  # at first the largest
    assert 1 <= trace.magnifications.min() < trace.magnifications[:, :, 1:].max() <= 8
    sides = trace.boxes[..., 2:] - trace.boxes[..., :2]
    for s in range(scales):
        expected = (6 * 2**s * trace.magnifications[..., None]).double().expand(2, 5, 4, 2)
        torch.testing.assert_close(sides[..., s, :], expected, rtol=1e-6, atol=1e-6)
    middle = (trace.boxes[..., 0, :2] + trace.boxes[..., 0, 2:]) / 2
    torch.testing.assert_close(middle, (trace.locations.double() + 1) * torch.tensor([20, 15]), rtol=1e-6, atol=1e-6)
    zoom = Zoom(6, scales, 1, 9)
    for t in range(4):
        seen = zoom.look(
            zoom.frame(images), trace.locations[:, :, t].flatten(0, 1), trace.magnifications[:, :, t].flatten()
        )
        torch.testing.assert_close(trace.patches[:, :, t].flatten(0, 1), seen)


def test_the_policy_by_hand():
    """Mean, noise and density of location and scale, each with its own σ; the glimpse network is told all three."""
    model, images = make(glimpses=2, sigma=0.2, scale_sigma=0.6, magnification=2, largest_magnification=16), pictures()
    draws = noise(model)
    told = []
    model.glimpse_network.register_forward_hook(lambda _, given, __: told.append(given[1]))
    _, trace = rollout(model, images, draws)
    state = model.step(model.start(images, 1), draws[0, :, 0])
    assert torch.equal(told[0], torch.cat([torch.erf(draws[0, :, 0, :2] * 0.5**0.5), torch.ones(5, 1)], 1))
    x, y, u = model.location_network(state.hidden).T
    octaves = 2.5 + 1.5 * u  # from 2 = 2^1 to 16 = 2^4, the middle between them at u = 0
    torch.testing.assert_close(trace.magnifications[0, :, 1].log2(), octaves + 0.6 * draws[0, :, 1, 2])
    torch.testing.assert_close(trace.locations[0, :, 1], torch.stack([x, y], 1) + 0.2 * draws[0, :, 1, :2])
    density = torch.distributions.Normal(0, torch.tensor([0.2, 0.2, 0.6 / 1.5]))
    expected = density.log_prob(draws[0, :, 1] * density.scale).sum(-1)
    torch.testing.assert_close(trace.log_probs[0, :, 0], expected)
    torch.testing.assert_close(told[1][:, :2], trace.locations[0, :, 1])
    torch.testing.assert_close(told[1][:, 2], (trace.magnifications[0, :, 1].log2() - 2.5) / 1.5)
    _, greedy = rollout(model, images, draws, greedy=True)
    torch.testing.assert_close(greedy.magnifications[0, :, 1].log2(), octaves)


def test_a_sample_beyond_the_range_is_clamped_to_look_but_not_in_its_density():
    model = make(glimpses=2, scale_sigma=1.5)
    with torch.no_grad():
        model.location_network.weight.zero_()
        model.location_network.bias.copy_(torch.tensor([0.0, 0.0, 0.8]))
    draws = torch.zeros(1, 5, 2, 3)
    draws[..., 2] = 2.0
    _, trace = rollout(model, pictures(), draws)
    torch.testing.assert_close(trace.magnifications, torch.full((1, 5, 2), 8.0))
    peak = -2 * math.log(0.12 * math.sqrt(2 * math.pi)) - math.log(math.sqrt(2 * math.pi))
    torch.testing.assert_close(trace.log_probs, torch.full((1, 5, 1), peak - 2.0))
    draws[..., 2] = -20.0
    assert rollout(model, pictures(), draws)[1].magnifications[0, :, 1].tolist() == [1.0] * 5


@pytest.mark.parametrize("mean", ["linear", "tanh"])
@pytest.mark.parametrize("baseline", ["learned", "leave_one_out"])
def test_the_gradient_equals_that_of_the_exact_expectation(mean, baseline):
    """The reward is largest at a magnification of 3; the mean is so near the largest that many samples are clamped."""
    sigma, bias, M, B = 0.9, 0.7, 4, 100_000
    model = make(scale_sigma=sigma, location_mean=mean).double()
    with torch.no_grad():
        model.location_network.bias.copy_(torch.tensor([0.1, -0.2, bias]))

    def reward(magnification):
        return torch.exp(-((magnification.log2() - math.log2(3)) ** 2))

    unit = sigma / 1.5  # σ where 1.5 octaves are 1
    center = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    mu = center.tanh() if mean == "tanh" else center
    u = torch.linspace(-8, 8, 200_001, dtype=torch.float64) * unit + mu.detach()
    density = torch.exp(-0.5 * ((u - mu) / unit) ** 2) / (unit * math.sqrt(2 * math.pi))
    torch.trapezoid(density * reward(torch.exp2(1.5 + 1.5 * u.clamp(-1, 1))), u).backward()

    draws = torch.randn(M * B, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = model.start(pictures(1), 1)
    hidden = torch.zeros(M * B, 24, dtype=torch.float64)
    state = type(state)(state.canvas, hidden, None, location=torch.zeros(M * B, 2))
    gaze, log_prob = model.choose(state, draws, greedy=False)
    right = reward(model.magnification(gaze)).view(M, B)
    logits = torch.stack([right.log(), (1 - right).log()], -1)
    baselines = torch.full((M, B, 1), 0.4, dtype=torch.float64)
    trace = Trace(torch.zeros(M, B, 2, 2), log_prob.view(M, B, 1), baselines, logits)
    targets = torch.zeros(B, dtype=torch.long)
    hybrid(logits, trace, targets, reward="probability", baseline=baseline).total.backward()
    gradient = model.location_network.bias.grad
    assert -gradient[2].item() == pytest.approx(center.grad.item(), rel=0.03)
    assert gradient[:2].abs().max() < 0.02  # on which the reward does not depend


@pytest.mark.parametrize("core", ["relu", "lstm"])
def test_every_parameter_gets_a_gradient(core):
    model, images = make(core=core), pictures(8)
    logits, trace = rollout(model, images, noise(model, samples=2, batch=8))
    hybrid(logits, trace, torch.arange(8) % 4, reward="probability", baseline="learned").total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert (model.location_network.weight.grad.abs().amax(1) > 0).all()
    assert (model.glimpse_network.where.weight.grad.abs().amax(0) > 0).all()


@pytest.mark.parametrize(("gradient", "reaches"), [("full", True), ("detached", False)])
def test_where_the_policy_gradient_goes(gradient, reaches):
    model = make(policy_gradient=gradient)
    _, trace = rollout(model, pictures(8), noise(model, batch=8))
    trace.log_probs.sum().backward()
    assert model.location_network.weight.grad[2].abs().max() > 0
    core = model.core.weight.grad
    assert (core is not None and core.abs().max() > 0) == reaches


def test_a_fixed_magnification_is_that_of_every_glimpse():
    """And is nothing that the network would have to be told."""
    model, images = make(scale="fixed", magnification=2.5, scales=2, policy="random"), pictures()
    _, trace = rollout(model, images, noise(model), record=True)
    assert not model.zooms and model.noises == 2
    assert trace.magnifications.unique().tolist() == [2.5]
    sides = trace.boxes[0, :, :, :, 2:] - trace.boxes[0, :, :, :, :2]
    torch.testing.assert_close(sides, torch.tensor([[15.0], [30.0]]).double().expand_as(sides))
    zoom = Zoom(6, 2, 1, 9)
    seen = zoom.look(zoom.frame(images), trace.locations[0, :, 1], torch.full((5,), 2.5))
    torch.testing.assert_close(trace.patches[0, :, 1], seen)
    pixels = make(scale="fixed", policy="random")
    assert rollout(pixels, images, noise(pixels), record=True)[1].magnifications is None
    assert [p.shape for p in model.parameters()] == [p.shape for p in make(scale="fixed", scales=2).parameters()]


@pytest.mark.parametrize("greedy", [True, False])
def test_with_an_action_that_stops(greedy):
    """Each has a number of its own; a batch that shrinks gives what each image gives alone."""
    model, images = make(glimpses=5, stop="learned"), pictures(30)
    with torch.no_grad():
        draws, network = noise(model, batch=30), model.stop_network
        network.weight *= 40
        hidden = model.step(model.start(images, 1), draws[0, :, 0]).hidden
        network.bias.fill_(-(torch.cat([hidden, sureness(model.classify(hidden))], 1) @ network.weight[0]).mean())
    assert model.noises == 4
    logits, trace = rollout(model, images, draws, greedy)
    early, glimpses = answer_early(model, images, draws, greedy)
    assert torch.equal(glimpses, trace.glimpses) and len(glimpses.unique()) > 1
    torch.testing.assert_close(early, logits, atol=1e-5, rtol=1e-4)
    other = draws.clone()
    other[..., 3] = 0.5  # another scale, with the same numbers for the decision to answer after the first glimpse
    moved = rollout(model, images, other)[1]
    assert torch.equal(moved.glimpses == 1, rollout(model, images, draws)[1].glimpses == 1)


def test_the_mean_magnification_of_the_glimpses_that_are_used():
    model, images, labels = make(glimpses=3), pictures(7), torch.arange(7) % 4
    draws = evaluation_noise(2, 0, 0, 7, 3, model.noises)[None]
    _, trace = rollout(model, images, draws, greedy=True)
    seen = attention(model, images, labels, seed=2).mean_magnification
    assert seen == pytest.approx(trace.magnifications[0].mean(0).tolist()) and seen[0] == pytest.approx(8)
    stops = make(glimpses=3, stop="learned")
    with torch.no_grad():
        stops.stop_network.bias.fill_(100.0)
    assert attention(stops, images, labels).mean_magnification == pytest.approx((8.0,))  # none has a second glimpse
    assert attention(make(scale="fixed", magnification=2), images, labels).mean_magnification is None


def test_it_learns_to_look_closely_where_only_that_tells():
    """Stripes two pixels wide, across or down: at the first, widest glimpse all is grey."""
    labels = torch.arange(64) % 2
    along = torch.stack([torch.arange(48)[:, None].expand(48, 48), torch.arange(48).expand(48, 48)])[labels]
    phase = torch.arange(64)[:, None, None] // 2
    images = (((along + phase) % 4 < 2) * 255).to(torch.uint8)[:, None]
    model = make(glimpses=2, classes=2, scale_sigma=0.7)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    generator = torch.Generator().manual_seed(0)
    assert 2.5 < attention(model, images, labels).mean_magnification[1] < 3.2
    for _ in range(120):
        draws = torch.randn(4, 64, 2, 3, generator=generator)
        logits, trace = rollout(model, images, draws)
        losses = hybrid(logits, trace, labels, reward="probability", baseline="leave_one_out")
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    assert attention(model, images, labels).mean_magnification[1] < 2.2
    assert evaluate(model, images, labels).error() < 5


def test_multiply_adds_against_torch_and_by_hand():
    model = make()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        rollout(model, pictures(1), noise(model, batch=1))
    by_hand = 4 * (36 * 12 + 3 * 12 + 24 * 16 + (24 + 16) * 24) + 3 * 3 * 24 + 24 * 4
    assert multiply_adds(model.parts()) == by_hand
    assert counter.get_total_flops() == 2 * (by_hand + 3 * 24)  # training's baseline network on top


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"policy": "grid"}, "use model.policy=gaussian, not grid"),
        ({"policy": "fixed"}, "use model.policy=gaussian, not fixed"),
        ({"magnification": 8.0}, "model.largest_magnification=8 must be above model.magnification=8"),
    ],
)
def test_what_makes_no_sense_is_refused(options, named):
    with pytest.raises(Refused, match=named):
        schema.check_model(schema.Ram(scale="learned", **options))
    schema.check_model(schema.Ram(**options))  # makes sense where the scale is fixed


def test_a_single_glimpse_is_refused():
    with pytest.raises(Refused, match="model.scale=learned has nothing to decide with glimpses.count=1"):
        make(glimpses=1)


def test_the_mean_magnification_leaves_out_glimpses_after_an_answer():
    """Some images are answered after the first glimpse, the others go on."""
    model, images = make(glimpses=3, stop="learned"), pictures(30)
    draws = evaluation_noise(2, 0, 0, 30, 3, model.noises)[None]
    with torch.no_grad():
        hidden = model.step(model.start(images, 1), draws[0, :, 0]).hidden
        seen = torch.cat([hidden, sureness(model.classify(hidden))], 1)
        model.stop_network.weight *= 40
        model.stop_network.bias.fill_(-(seen @ model.stop_network.weight[0]).median())
    _, trace = rollout(model, images, draws, greedy=True)
    used = torch.arange(3) < trace.glimpses[0][:, None]
    assert 0 < used[:, 1].sum() < 30
    wanted = [trace.magnifications[0, used[:, t], t].mean().item() for t in range(3) if used[:, t].any()]
    found = attention(model, images, torch.zeros(30, dtype=torch.long), seed=2).mean_magnification
    assert found == pytest.approx(wanted, rel=1e-4)
