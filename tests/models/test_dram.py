"""DRAM against what the paper says of sizes, paths of information and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attn_cli.config.schema import Config, Dram, Glimpses, Ram, Scales
from attn_cli.data.splits import DataInfo
from attn_cli.errors import Refused
from attn_cli.learning.objectives import hybrid, sequence_hybrid, still_counting
from attn_cli.models.build import build_model
from attn_cli.models.dram import DRAM, Inside, reversed_targets
from attn_cli.models.rollout import compact_rollout, draw_noise, rollout

TARGETS = torch.tensor([[3, 10, -1], [1, 2, 10], [9, 10, -1], [0, 0, 10]])
TINY = {"filters": (4, 4, 8), "features": 16, "hidden": 12, "reward": "probability"}


def make(glimpses: int = 2, scales: int = 2, length: int = 2, **changes) -> DRAM:
    torch.manual_seed(0)
    return DRAM(
        Dram(**{**TINY, **changes}), Glimpses(glimpses, 12), Scales(scales), channels=1, classes=10, length=length
    )


def images(count: int = 4, height: int = 54, width: int = 54) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 1, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def sequence_losses(model: DRAM, samples: int = 3, **options):
    logits, trace = rollout(model, images(), draw_noise(0, 0, (samples, 4, model.steps)))
    return sequence_hybrid(logits, trace, TARGETS, baseline="leave_one_out", **options)


def test_sizes_of_table_5():
    """Published: 14 M parameters, at most 0.2 G multiply-adds for 18 glimpses (3 for each of 5 digits and the end)."""
    model = DRAM(Dram(), Glimpses(3, 12), Scales(1), channels=1, classes=10, length=5)
    assert model.steps == 18
    assert 11e6 <= sum(p.numel() for p in model.parameters()) <= 15e6
    assert 0.19e9 < model.multiply_adds() <= 0.2e9
    separate = DRAM(Dram(convolutions="separate"), Glimpses(3, 12), Scales(2), channels=1, classes=10, length=5)
    assert 13.4e6 <= sum(p.numel() for p in separate.parameters()) <= 13.6e6


@pytest.mark.parametrize("changes", [{}, {"glimpse": "fc"}, {"convolutions": "separate"}, {"context": "none"}])
def test_multiply_adds_against_torch(changes):
    model = make(baseline="learned", coarse=24, **changes)
    M, B, network = 2, 4, model.context_network
    context = network.adds if network else 0
    with FlopCounterMode(display=False) as counter:
        logits, trace = rollout(model, images(), draw_noise(0, 0, (M, B, model.steps)))
    judge = model.steps * model.config.hidden  # serves training only
    path = model.multiply_adds() - context + judge  # the context is worked out once an image, not once a path
    assert counter.get_total_flops() / 2 == M * B * path + B * context
    with FlopCounterMode(display=False) as counter:
        logits, trace = rollout(model, images(), draw_noise(0, 0, (M, B, model.steps)))
        sequence_hybrid(logits, trace, TARGETS, reward="probability").total.backward()
    # The last upper state leads nowhere, so its gradient is not worked out: the closed form is a little more.
    spared = (M * B - B) * (3 * context - (network.convolutions.first_adds if network else 0))
    seen = counter.get_total_flops() / 2 + spared
    assert 0.9 * model.multiply_adds(training=True) < seen / (M * B) <= model.multiply_adds(training=True)


def test_the_policy_gradient_reaches_every_part_that_chooses_locations():
    """Classification reads the lower layer alone: the others learn through log p(location) or not at all."""
    model = make()
    losses = sequence_losses(model, reward="probability")
    losses.total.backward()
    for name, p in model.named_parameters():
        if not name.startswith("baseline_network"):
            assert p.grad is not None and p.grad.norm() > 0, name


@pytest.mark.parametrize("policy_gradient", ["full", "upper"])
def test_where_the_policy_gradient_stops(policy_gradient):
    model = make(policy_gradient=policy_gradient)
    logits, trace = rollout(model, images(), draw_noise(0, 0, (1, 4, model.steps)))
    trace.log_probs.sum().backward()
    below = [model.lower.gates.weight.grad, model.glimpse_network.what.weight.grad]
    assert all((g is not None and g.norm() > 0) == (policy_gradient == "full") for g in below)
    assert model.upper.gates.weight.grad.norm() > 0 and model.context_network.what.weight.grad.norm() > 0


def test_the_answer_cannot_read_the_context():
    """At given locations the logits depend on the lower layer only (section 3, "short cut")."""
    model = make()
    logits, _ = rollout(model, images(), draw_noise(0, 0, (1, 4, model.steps)))
    parts = (model.context_network, model.emission_network, model.upper)
    gradients = torch.autograd.grad(
        logits.sum(), [p for part in parts for p in part.parameters()], allow_unused=True, retain_graph=True
    )
    assert all(g is None for g in gradients)
    assert torch.autograd.grad(logits.sum(), model.lower.gates.weight)[0].norm() > 0


def test_all_locations_of_the_first_target_are_scored_and_the_first_comes_from_the_context():
    model = make(length=0, glimpses=3)
    noise = draw_noise(0, 0, (1, 4, 3))
    _, trace = rollout(model, images(), noise, greedy=True)
    assert trace.log_probs.shape == (1, 4, 3) and trace.baselines.shape == (1, 4, 3)
    assert (trace.locations[0, 0, 0] - trace.locations[0, 1, 0]).abs().max() > 0  # it saw the coarse image
    blind = make(length=0, glimpses=3, context="none")
    _, trace = rollout(blind, images(), noise, greedy=True)
    assert (trace.locations[0, :, 0] == trace.locations[0, 0, 0]).all()  # it saw nothing yet


def test_locations_are_measured_in_units_of_pixels():
    """The same network says the same units; they span unit_width pixels whatever the image's size."""
    model = make(length=0, glimpses=1, context="none", unit_width=10.0)
    with torch.no_grad():
        model.emission_network.output.bias.copy_(torch.tensor([1.5, -0.5]))
        model.emission_network.output.weight.zero_()
    _, trace = rollout(model, images(2, 60, 100), torch.zeros(1, 2, 1, 2), greedy=True)
    torch.testing.assert_close(trace.locations[0, 0, 0], torch.tensor([15 / 50, -5 / 30]))


def test_beyond_the_edge_it_looks_at_the_edge_and_the_glimpse_network_is_told():
    model = make(length=0, glimpses=1, context="none", unit_width=10.0, sigma=0.5)
    told = []
    model.glimpse_network.where.register_forward_hook(lambda layer, given, _: told.append(given[0]))
    with torch.no_grad():
        model.emission_network.output.bias.copy_(torch.tensor([7.0, -0.5]))
        model.emission_network.output.weight.zero_()
    _, trace = rollout(model, images(2, 60, 100), torch.ones(1, 2, 1, 2))
    torch.testing.assert_close(trace.locations[0, 0, 0], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(told[0][0], torch.tensor([5.0, 0.0]))
    # Of the sample, not of the edge, around a mean that is at the edge at most.
    density = torch.distributions.Normal(torch.tensor([5.0, -0.5]), 0.5).log_prob(torch.tensor([5.5, 0.0])).sum()
    torch.testing.assert_close(trace.log_probs[0, 0, 0], density)


@pytest.mark.parametrize(("noise", "moves"), [(-1.0, [-1.0, -1.0]), (1.0, [0.0, 1.0])])
def test_a_mean_beyond_the_edge_comes_back_and_goes_no_further(noise, moves):
    """x lies beyond the right edge, y inside; a sample on either side turned out well."""
    model = make(length=0, glimpses=1, context="none", unit_width=10.0, sigma=0.5)
    bias = model.emission_network.output.bias
    with torch.no_grad():
        bias.copy_(torch.tensor([70.0, -0.5]))
        model.emission_network.output.weight.zero_()
    _, trace = rollout(model, images(1, 60, 100), torch.full((1, 1, 1, 2), noise))
    torch.testing.assert_close(trace.locations[0, 0, 0, 0], torch.tensor(min(1.0, (5 + 0.5 * noise) / 5)))
    (-trace.log_probs.sum()).backward()
    assert (-bias.grad).sign().tolist() == moves


def test_means_are_kept_inside_in_a_stack_of_models_too():
    means, limits = torch.randn(3, 50, 2) * 4, torch.tensor([2.0, 3.0])
    means.requires_grad_()
    weights = torch.randn(3, 50, 2)
    (alone,) = torch.autograd.grad((Inside.apply(means, limits) * weights).sum(), means)
    stacked = torch.vmap(Inside.apply, in_dims=(0, None))(means, limits)
    (together,) = torch.autograd.grad((stacked * weights).sum(), means)
    assert together.equal(alone) and 0 < (alone == 0).sum() < (means.abs() > limits).sum()


def test_the_baseline_teaches_nothing_but_itself():
    model = make()
    rollout(model, images(), draw_noise(0, 0, (1, 4, model.steps)))[1].baselines.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.norm() > 0} == {
        "baseline_network.weight",
        "baseline_network.bias",
    }


def test_the_reader_that_is_not_a_sequence_model_is_refused():
    info = DataInfo("numbers", 1, 54, 54, 10, tuple("0123456789"), 0, 1, 1, 1, length=5)
    with pytest.raises(Refused, match="model=dram"):
        build_model(Config(model=Ram()), info)
    assert build_model(Config(model=Dram(**TINY), glimpses=Glimpses(3, 12)), info).targets == 6


def test_too_small_for_three_convolutions():
    with pytest.raises(Refused, match=r"glimpses\.size=8 is too small"):
        DRAM(Dram(**TINY), Glimpses(2, 8), Scales(1), channels=1, classes=10)
    with pytest.raises(Refused, match=r"model\.coarse=6 is too small"):
        make(coarse=6)


def test_reversed_targets():
    forward = torch.tensor([[1, 2, 3, 10], [4, 10, -1, -1], [5, 6, 10, -1]])
    backward = torch.tensor([[3, 2, 1, 10], [4, 10, -1, -1], [6, 5, 10, -1]])
    torch.testing.assert_close(reversed_targets(forward), backward)
    assert make(reader="backward").order(forward).equal(backward) and make().order(forward).equal(forward)


def test_dropout_only_in_training():
    model = make(dropout=0.5)
    noise = draw_noise(0, 0, (1, 4, model.steps))
    model.eval()
    torch.testing.assert_close(rollout(model, images(), noise)[0], rollout(model, images(), noise)[0])
    model.train()
    assert not rollout(model, images(), noise)[0].equal(rollout(model, images(), noise)[0])


def test_dropout_falls_on_glimpses_and_on_what_is_read_of_the_lower_state():
    """Were all of it dropped, nothing would pass."""
    model = make(dropout=0.5)
    model.dropout.forward = torch.zeros_like
    first, other = model.start(images(), 1), model.start(255 - images(), 1)
    state, unlike = (model.step(start, torch.zeros(4, 2)) for start in (first, other))
    assert torch.equal(state.hidden, unlike.hidden) and state.hidden.abs().sum() > 0
    nothing = torch.zeros_like(state.hidden)
    assert torch.equal(state.upper, model.upper(nothing, first.upper, first.upper_cell)[0])
    assert torch.equal(model.classify(state.hidden), model.classification_network(nothing))


def test_one_target_with_the_objective_of_equation_13():
    model = make(length=0, glimpses=3, samples=2)
    logits, trace = rollout(model, images(), draw_noise(0, 0, (2, 4, 3)))
    losses = hybrid(logits, trace, torch.tensor([0, 1, 2, 3]), reward="probability", baseline="leave_one_out")
    losses.total.backward()
    assert logits.shape == (2, 4, 10) and model.context_network.state.weight.grad.norm() > 0


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("baseline", ["leave_one_out", "learned"])
def test_leaving_out_what_does_not_count_changes_no_gradient(baseline, stop):
    model, M = make(length=2, baseline=baseline).double(), 3
    noise = draw_noise(0, 0, (M, 4, model.steps)).double()
    with torch.no_grad():  # so that some first answers are right on some paths, and on none of other images
        for weight in model.classification_network.parameters():
            weight.mul_(5)  # untrained, all paths would answer the same
        right = rollout(model, images(), noise)[0].argmax(-1)
    targets = TARGETS.clone()
    targets[1, 0], targets[3, 0] = right[0, 1, 0], right[2, 3, 0]
    paths = (right[:, :, 0] == targets[:, 0]).sum(0)
    assert (paths == 0).any() and ((paths > 0) & (paths < M)).any()
    options = {"baseline": baseline, "stop_at_mistake": stop, "reward": "probability"}
    found, steps = [], []
    for run in ("whole", "compact"):
        model.zero_grad()
        ran = count_rows(model)
        if run == "whole":
            logits, trace = rollout(model, images(), noise)
        else:
            logits, trace = compact_rollout(model, images(), noise, still_counting(targets, M, stop))
        losses = sequence_hybrid(logits, trace, targets, **options)
        losses.total.backward()
        found.append((losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
        steps.append(sum(ran))
    (one, gradients), (other, compacted) = found
    for field in ("total", "cross_entropy", "reinforce", "baseline", "reward", "error"):
        assert torch.allclose(getattr(one, field), getattr(other, field), rtol=1e-12), field
    assert gradients.keys() == compacted.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, compacted[name], rtol=1e-9, atol=1e-12), name
    # Labels: 2, 3, 2 and 3 targets of 2 glimpses; with `stop` images 0 and 2, all of whose paths are wrong, stop at 1.
    wrong = ~(right[:, :, 0] == targets[:, 0]).any(0)
    wanted = [1 if stop and wrong[b] else int((targets[b] >= 0).sum()) for b in range(4)]
    if stop:
        again = ((right[:, :, :2] == targets[:, :2]).all(-1)).any(0)  # a path that is right twice reads on
        wanted = [w if w < 3 or again[b] else 2 for b, w in enumerate(wanted)]
    assert steps == [M * 4 * model.steps, M * model.glimpses * sum(wanted)]


def count_rows(model: DRAM) -> list[int]:
    """A list that grows by the rows of each step from now on."""
    rows: list[int] = []
    step = type(model).step

    def counted(state, noise, greedy=False):
        rows.append(len(noise))
        return step(model, state, noise, greedy)

    model.step = counted
    return rows


@pytest.mark.parametrize(("convolutions", "own"), [("separate", 3), ("shared", 1)])
def test_each_scale_has_convolutions_of_its_own_if_asked_for(convolutions, own):
    """Of three patches each changes what comes out of its own alone."""
    network = make(convolutions=convolutions, scales=3).glimpse_network
    called = [0] * len(network.convolutions)
    for i, part in enumerate(network.convolutions):
        part.register_forward_hook(lambda *_, i=i: called.__setitem__(i, called[i] + 1))
    network(torch.rand(4, 3, 1, 12, 12), torch.zeros(4, 2))
    assert called == [3 // own] * own
