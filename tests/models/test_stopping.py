"""The action "answer now": what is masked by hand, its gradient against the exact expectation, batches that shrink."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from attn_cli.config import schema
from attn_cli.data.splits import DataInfo
from attn_cli.errors import Refused
from attn_cli.inference.monte_carlo import Evaluation, evaluate, evaluate_views
from attn_cli.inference.regions import last_regions
from attn_cli.inference.stopping import answer_early
from attn_cli.learning.objectives import stopping
from attn_cli.learning.training import make_learner
from attn_cli.models.ram import RAM
from attn_cli.models.rollout import draw_noise, rollout
from attn_cli.models.stopping import MOST, SUREST, Bounded, decisions, enough, sureness
from attn_cli.models.trace import Trace


def make(glimpses=5, doubtful=True, **options) -> RAM:
    """A small model; a `doubtful` one stops here on one image and there on another."""
    torch.manual_seed(0)
    config = schema.Ram(
        hidden=24, glimpse_hidden=12, glimpse_features=16, sigma=0.2, **{"stop": "learned", **options}
    )  # fmt: skip
    model = RAM(config, schema.Glimpses(glimpses, 8), schema.Scales(1), channels=1, classes=4)
    if doubtful and model.stops:
        with torch.no_grad():
            model.stop_network.weight *= 40
            hidden = torch.stack([model.step(model.start(pictures(), 1), torch.randn(30, 3)).hidden for _ in range(9)])
            seen = torch.cat([hidden, sureness(model.classify(hidden))], -1)
            model.stop_network.bias.fill_(-(seen.mean((0, 1)) @ model.stop_network.weight[0]))
    return model


def pictures(batch=30) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 1, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def noise(model: RAM, samples=1, batch=30) -> torch.Tensor:
    return draw_noise(3, 0, (samples, batch, model.glimpses), numbers=model.noises)


def test_decisions_by_hand():
    """Answers before going on, in the middle, never; what comes after an answer has no part in it."""
    logits = torch.tensor([[0.0, 5.0, 5.0], [math.log(3), math.log(3), 5.0], [0.0, 0.0, math.log(3)]])
    answers = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    half, quarter = math.log(1 / 2), math.log(1 / 4)
    glimpses, log_probs = decisions(logits, answers)
    assert glimpses.tolist() == [1, 2, 4]
    expected = torch.tensor([[half, 0, 0], [quarter, math.log(3 / 4), 0], [half, half, quarter]])
    torch.testing.assert_close(log_probs, expected)


def test_how_sure_it_is_by_hand():
    logits = torch.tensor([[0.0, math.log(2), 0.0], [0.0, 0.0, 90.0]], requires_grad=True)
    odds = sureness(logits)
    torch.testing.assert_close(odds, torch.tensor([[0.0], [MOST]]), atol=1e-6, rtol=0)
    assert not odds.requires_grad
    double = sureness(torch.tensor([0.0, math.log(9)], dtype=torch.float64))
    assert double.dtype == torch.float64 and double.item() == pytest.approx(math.log(9))


def test_it_answers_as_often_as_it_says():
    logit, draws = torch.tensor(math.log(0.3 / 0.7)), torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert enough(logit, draws, greedy=False).float().mean().item() == pytest.approx(0.3, abs=0.005)
    assert enough(torch.tensor([-0.1, 0.1]), torch.zeros(2), greedy=True).tolist() == [False, True]


@pytest.mark.parametrize("sign", [-1, 1])
def test_it_is_never_so_sure_that_it_would_not_try_the_other(sign):
    model, images = make(glimpses=2, doubtful=False), pictures()
    with torch.no_grad():
        model.stop_network.weight.zero_()
        model.stop_network.bias.fill_(sign * 1000.0)
    other = rollout(model, images, noise(model, samples=1000))[1].glimpses == (2 if sign > 0 else 1)
    assert other.float().mean().item() == pytest.approx(1 / (1 + math.exp(SUREST)), abs=0.003)
    assert (rollout(model, images, noise(model), greedy=True)[1].glimpses == (1 if sign > 0 else 2)).all()


def test_where_it_is_surest_its_logit_can_only_come_back():
    logits = torch.tensor([-9.0, -9.0, 0.5, 9.0, 9.0], requires_grad=True)
    bounded = Bounded.apply(logits)
    assert bounded.tolist() == [-SUREST, -SUREST, 0.5, SUREST, SUREST]
    bounded.backward(torch.tensor([1.0, -2.0, 3.0, 4.0, -5.0]))  # a descent goes against it
    assert logits.grad.tolist() == [0, -2, 3, 4, 0]


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_surest_decision_of_a_model_can_only_come_back(sign):
    model, hidden = make(doubtful=False), torch.rand(3, 24)
    with torch.no_grad():
        model.stop_network.bias.fill_(sign * 1000.0)
    for pull in (-1.0, 1.0):
        model.zero_grad()
        logits = model.stop_logit(hidden, model.classify(hidden))
        (pull * logits.sum()).backward()  # a descent moves the logits against the pull
        assert model.stop_network.bias.grad.item() == (3 * pull if pull == sign else 0)
    assert (logits == sign * SUREST).all()


def test_the_decision_sees_how_sure_the_answer_is():
    model, hidden = make(doubtful=False), torch.rand(3, 24)
    answers = torch.tensor([[0.0, 0, 0, 0], [2, 0, 0, 0], [0, 9, 0, 0]])
    logits = model.stop_logit(hidden, answers) - model.stop_logit(hidden, torch.zeros(3, 4))
    weight = model.stop_network.weight[0, -1]
    torch.testing.assert_close(logits, weight * (sureness(answers) - math.log(1 / 3))[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("policy", ["gaussian", "random"])
def test_a_learned_baseline_judges_the_states_that_decide(policy):
    """And learns from them, as from the locations that are chosen there."""
    model, images = make(glimpses=3, policy=policy, baseline="learned"), pictures()
    draws = noise(model)
    logits, trace = rollout(model, images, draws)
    state = model.start(images, 1)
    for t in range(2):
        state = model.step(state, draws[0, :, t])
        torch.testing.assert_close(trace.baselines[0, :, t], model.baseline(state.hidden), atol=1e-5, rtol=1e-4)
    stopping(logits, trace, torch.arange(30) % 4, baseline="learned").total.backward()
    assert model.baseline_network.weight.grad.abs().max() > 0


def test_the_loss_by_hand():
    """Three paths of three glimpses that answer after one, two and all: what is given counts and what comes last; a
    path pays for each glimpse until its answer, and decisions after it have no part.
    """
    right = torch.tensor([[0.5, 0.6, 0.9], [0.25, 0.4, 0.7], [0.3, 0.5, 0.75]], dtype=torch.float64)
    step_logits = torch.stack([right.log(), (1 - right).log()], -1)[:, None]  # M 3, B 1, N 3, K 2
    looked = torch.tensor([[-0.3, -0.4], [-0.6, -0.7], [-0.8, -0.9]], dtype=torch.float64)
    decided = torch.tensor([[-0.5, 0.0], [-1.0, -1.5], [-2.0, -2.5]], dtype=torch.float64)
    baselines = torch.tensor([[0.1, 0.4], [0.2, 0.3], [0.5, 0.6]], dtype=torch.float64, requires_grad=True)
    logits = torch.stack([step_logits[0, :, 0], step_logits[1, :, 1], step_logits[2, :, 2]])
    trace = Trace(
        torch.zeros(3, 1, 3, 2), looked[:, None], baselines[:, None], logits, step_logits,
        glimpses=torch.tensor([[1], [2], [3]]), stop_log_probs=decided[:, None],
    )  # fmt: skip
    options = {"reward": "probability", "glimpse_cost": 0.1, "discount": 0.5}
    weights = {"reinforce_weight": 0.3, "baseline_weight": 0.7}
    losses = stopping(logits, trace, torch.tensor([0]), baseline="learned", **options, **weights)
    short, middle, long = [0.5 - 0.1, 0.0], [0.4 / 2 - 0.2, 0.4 - 0.2], [0.75 / 4 - 0.3, 0.75 / 2 - 0.3]  # decisions
    decisions_bring = torch.tensor([short, middle, long], dtype=torch.float64)
    locations_bring = torch.tensor([[0.45, 0.9], [(0.4 + 0.35) / 2, 0.7], [0.375, 0.75]], dtype=torch.float64)
    own = decided * (decisions_bring - baselines) + looked * (locations_bring - baselines)
    assert losses.reinforce.item() == pytest.approx(-own.sum().item() / 3)
    assert losses.baseline.item() == pytest.approx((locations_bring - baselines).square().mean().item())
    assert losses.reward.item() == pytest.approx((0.4 + 0.2 + 0.45) / 3)
    assert losses.cross_entropy.item() == pytest.approx(-math.log(0.5 * 0.4 * 0.75 * 0.9 * 0.7 * 0.75) / 3)
    assert losses.error.item() == pytest.approx(1 / 3)  # of the answers that are given
    parts = losses.cross_entropy + 0.3 * losses.reinforce + 0.7 * losses.baseline
    assert losses.total.item() == pytest.approx(parts.item())
    losses.total.backward()  # of the baselines by their fit alone
    torch.testing.assert_close(baselines.grad, 0.7 * 2 / 6 * (baselines - locations_bring).detach())

    others = stopping(logits, trace, torch.tensor([0]), baseline="leave_one_out", **options)
    decisions_bring[0, 1] = 0.5 - 0.1  # what the others compare with: nothing more to be discounted
    gain = [values - (values.sum(0) - values) / 2 for values in (decisions_bring, locations_bring)]
    assert others.reinforce.item() == pytest.approx(-(decided * gain[0] + looked * gain[1]).sum().item() / 3)


@pytest.mark.parametrize("baseline", ["learned", "leave_one_out"])
def test_the_gradient_equals_that_of_the_exact_expectation(baseline):
    """Four glimpses of which each has its answer: E[reward − cost·τ] over τ is a sum over four outcomes."""
    cost, right = 0.07, torch.tensor([0.3, 0.6, 0.7, 0.75], dtype=torch.float64)
    logits = torch.tensor([-1.0, 0.2, -0.5], dtype=torch.float64, requires_grad=True)
    stop = torch.cat([logits.sigmoid(), torch.ones(1, dtype=torch.float64)])
    chance = stop * torch.cat([torch.ones(1, dtype=torch.float64), (1 - stop[:-1]).cumprod(0)])
    (chance * (right - cost * torch.arange(1, 5))).sum().backward()
    exact, logits.grad = logits.grad.clone(), None

    M, B = 4, 150_000
    draws = torch.randn(M * B, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    glimpses, log_probs = decisions(logits.expand(M * B, 3), enough(logits.detach(), draws, greedy=False))
    each = torch.stack([right.log(), (1 - right).log()], 1)
    trace = Trace(
        torch.zeros(M, B, 4, 2),
        torch.zeros(M, B, 0),
        torch.full((M, B, 3), 0.4, dtype=torch.float64),
        each[glimpses - 1].view(M, B, 2),
        each.expand(M, B, 4, 2),
        glimpses=glimpses.view(M, B),
        stop_log_probs=log_probs.view(M, B, 3),
    )
    targets, options = torch.zeros(B, dtype=torch.long), {"reward": "probability", "baseline": baseline}
    stopping(trace.logits, trace, targets, **options, glimpse_cost=cost).total.backward()
    torch.testing.assert_close(-logits.grad, exact, rtol=0.03, atol=1e-3)


@pytest.mark.parametrize("policy", ["gaussian", "grid", "random"])
def test_a_rollout_ends_where_its_decisions_say(policy):
    """Against the same path with all its glimpses: the answer is the one after the last glimpse that is used."""
    model, images = make(policy=policy), pictures()
    draws = noise(model, samples=2)
    logits, trace = rollout(model, images, draws, record=True)
    assert trace.stop_log_probs.shape == trace.baselines.shape == (2, 30, 4)
    assert set(trace.glimpses.flatten().tolist()) >= {1, 2, 5}
    for m, b in itertools.product(range(2), range(30)):
        state, total = model.start(images[b : b + 1], 1), 0.0
        for t in range(5):
            state = model.step(state, draws[m, b : b + 1, t])
            if t == 4:
                break
            stop = model.stop_logit(state.hidden, model.classify(state.hidden))
            answer = bool(torch.special.ndtr(draws[m, b, t, 2]) < stop.sigmoid())
            total += (stop if answer else -stop).sigmoid().log()
            if answer:
                break
        assert trace.glimpses[m, b] == t + 1
        torch.testing.assert_close(logits[m, b], model.classify(state.hidden)[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(trace.stop_log_probs[m, b].sum(), total[0], atol=1e-3, rtol=1e-4)
        if m == 0:
            assert torch.equal(last_regions(trace)[b], trace.boxes[m, b, t, -1])


@pytest.mark.parametrize(("samples", "greedy"), [(1, True), (3, False)])
@pytest.mark.parametrize("core", ["relu", "lstm"])
def test_a_batch_that_shrinks_gives_what_each_image_gives_alone(core, samples, greedy):
    model, images = make(core=core), pictures()
    draws = noise(model, samples)
    rows = []
    step = model.step
    model.step = lambda state, *rest: (rows.append(len(state.hidden)), step(state, *rest))[1]
    logits, glimpses = answer_early(model, images, draws, greedy)
    assert sum(rows) == glimpses.sum() < samples * 30 * 5  # nothing is run after an answer
    assert rows == sorted(rows, reverse=True)
    for m, b in itertools.product(range(samples), range(30)):
        alone, trace = rollout(model, images[b : b + 1], draws[m : m + 1, b : b + 1], greedy)
        assert trace.glimpses[0, 0] == glimpses[m, b]
        torch.testing.assert_close(logits[m, b], alone[0, 0], atol=1e-5, rtol=1e-4)


def test_evaluation_counts_the_glimpses_that_were_used():
    """The same over all batch sizes; along one path every time, and over several."""
    model, images = make(), pictures()
    labels = torch.arange(30) % 4
    few, many = (evaluate(model, images, labels, repeats=2, batch_size=size) for size in (7, 1000))
    assert few == many and 1 < few.mean_glimpses < few.most_glimpses == 5
    sampled = evaluate(model, images, labels, samples=3, greedy=False)
    assert 1 < sampled.mean_glimpses < 5 and sampled.mean_glimpses != few.mean_glimpses
    once = evaluate(model, images, labels)
    assert evaluate_views(model, [images], labels) == once


@pytest.mark.parametrize(("gradient", "reaches"), [("full", True), ("detached", False)])
def test_the_policy_gradient_reaches_the_stop_network_and_the_core(gradient, reaches):
    model = make(policy_gradient=gradient, policy="random")
    logits, trace = rollout(model, pictures(), noise(model, samples=2))
    trace.stop_log_probs.sum().backward()
    assert model.stop_network.weight.grad.abs().max() > 0 and model.action_network.weight.grad is None
    core = model.core.weight.grad
    assert (core is not None and core.abs().max() > 0) == reaches


@pytest.mark.parametrize(("stop", "price"), [("learned", 100 * 0.02 * 2.5), ("never", 0.0)])
def test_the_best_checkpoint_has_least_error_and_price_together(monkeypatch, stop, price):
    """In points of the error, where one is right with the probability that it is rewarded with."""
    model = schema.Ram(hidden=24, glimpse_hidden=12, glimpse_features=16, stop=stop, glimpse_cost=0.02)
    info = DataInfo("none", 1, 20, 20, 4, ("a", "b", "c", "d"), 0, 8, 8, 8)
    learner = make_learner(schema.Config(model=model), SimpleNamespace(info=info), compile_step=False)
    found = Evaluation(100, 1, True, [[7]], 2.5, 6, torch.zeros(1, 100, dtype=torch.bool))
    monkeypatch.setattr(learner, "validate", lambda: found)
    row = learner.close_epoch(1, 10, 0.1)
    assert row["val_error"] == pytest.approx(7) and learner.score == pytest.approx(7 + price)


@pytest.mark.parametrize(("cost", "glimpses"), [(0.3, 1), (0.0, 4)])
def test_it_learns_to_stop_at_once_if_looking_is_dear_and_not_at_all_if_it_is_free(cost, glimpses):
    """The digit's class stands in the brightness of one quarter, which the first glimpse at random seldom shows."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 4
    images = torch.zeros(64, 1, 16, 16, dtype=torch.uint8)
    for b, label in enumerate(labels):
        y, x = divmod(int(label), 2)
        images[b, 0, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 255
    model = make(glimpses=4, doubtful=False, policy="random")
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        draws = torch.randn(4, 64, 4, 3, generator=generator)
        logits, trace = rollout(model, images, draws)
        losses = stopping(logits, trace, labels, reward="probability", baseline="leave_one_out", glimpse_cost=cost)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    used = evaluate(model, images, labels, repeats=5).mean_glimpses
    assert abs(used - glimpses) < 0.7


def test_what_makes_no_sense_is_refused():
    with pytest.raises(Refused, match="glimpses.count=1"):
        make(glimpses=1, doubtful=False)
    with pytest.raises(Refused, match="policy=fixed"):
        schema.check_model(schema.Ram(stop="learned", policy="fixed"))


def test_multiply_adds_against_torch():
    """A rollout runs all glimpses and answers after each, as training does."""
    from torch.utils.flop_counter import FlopCounterMode

    from attn_cli.models.parts import multiply_adds

    model = make(doubtful=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        rollout(model, pictures(1), noise(model, batch=1))
    forward = sum(part.adds * part.calls for part in model.parts())
    assert counter.get_total_flops() == 2 * (forward + 4 * 24)  # and the baseline, which only `learned` counts
    assert multiply_adds(model.parts()) == forward
