"""Monte-Carlo averaging against a loop, and what evaluation must not depend on."""

from __future__ import annotations

import itertools
from statistics import stdev

import pytest
import torch

from attn_cli.config.schema import Glimpses, Ram, Scales
from attn_cli.inference.averages import running_averages
from attn_cli.inference.monte_carlo import Evaluation, evaluate, evaluation_noise, wilson
from attn_cli.models.ram import RAM
from attn_cli.models.rollout import rollout


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return RAM(Ram(hidden=32, sigma=0.4), Glimpses(3, 8), Scales(1), channels=1, classes=4)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (37, 1, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(37) % 4


def test_wilson_interval_against_published_values():
    low, high = wilson(10, 100)  # Newcombe 1998: 10 of 100 → 0.0552 to 0.1744
    assert (low, high) == (pytest.approx(5.52, abs=0.005), pytest.approx(17.44, abs=0.005))
    assert wilson(0, 50)[0] == 0.0 < wilson(0, 50)[1]
    assert wilson(50, 50)[1] == pytest.approx(100.0)
    assert wilson(0, 0) == (0.0, 100.0)


@pytest.mark.parametrize("average", ["log_probabilities", "probabilities"])
def test_running_averages_against_a_loop(average):
    logits = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0)) * 3
    seen = running_averages(logits, average)
    for m in range(5):
        for b in range(6):
            total = torch.zeros(4)
            for sample in range(m + 1):
                p = torch.softmax(logits[sample, b], 0)
                total += p.log() if average == "log_probabilities" else p
            torch.testing.assert_close(seen[m, b], total)


def test_the_two_averages_can_disagree():
    certain_wrong, mild_right = torch.tensor([0.0, 12.0]), torch.tensor([1.0, 0.0])
    logits = torch.stack([certain_wrong, mild_right, mild_right, mild_right])[:, None]
    assert running_averages(logits, "log_probabilities")[-1].argmax(-1).item() == 1
    assert running_averages(logits, "probabilities")[-1].argmax(-1).item() == 0


def test_evaluation_against_a_loop_over_images_and_samples(model, images):
    outcome = evaluate(model, images, LABELS, samples=3, greedy=False, repeats=2, seed=5, batch_size=10)
    for repeat in range(2):
        noise = [evaluation_noise(5, repeat, m, 37, 3) for m in range(3)]
        wrong, last = [0, 0, 0], []
        for i in range(37):
            total = torch.zeros(4)
            for m in range(3):
                with torch.no_grad():
                    logits, _ = rollout(model, images[i : i + 1], noise[m][None, i : i + 1])
                total = total + torch.log_softmax(logits[0, 0], 0)
                wrong[m] += int(total.argmax() != LABELS[i])
            last.append(bool(total.argmax() != LABELS[i]))
        assert outcome.errors[repeat] == wrong
        assert outcome.wrong[repeat].tolist() == last


def test_neither_batch_size_nor_number_of_samples_changes_a_path(model, images):
    few = evaluate(model, images, LABELS, samples=2, greedy=False, repeats=2, batch_size=7)
    many = evaluate(model, images, LABELS, samples=4, greedy=False, repeats=2, batch_size=1000)
    assert [row[:2] for row in many.errors] == few.errors


def test_every_seed_repeat_and_path_has_noise_of_its_own():
    keys = [(5, 1, 2), (6, 1, 2), (5, 2, 2), (5, 1, 3), (5, 2, 1)]
    draws = [evaluation_noise(*key, 37, 3) for key in keys]
    assert all(draw.equal(evaluation_noise(*key, 37, 3)) for key, draw in zip(keys, draws, strict=True))
    for one, other in itertools.combinations(draws, 2):
        assert abs(torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1]) < 0.3


def test_the_same_seed_measures_the_same(model, images):
    once = evaluate(model, images, LABELS, repeats=3, seed=1)
    again = evaluate(model, images, LABELS, repeats=3, seed=1)
    assert once == again
    assert once.count == 37
    assert once.error() == pytest.approx(100 * sum(r[0] for r in once.errors) / 3 / 37)
    assert once.interval()[0] < once.error() < once.interval()[1]


def test_what_has_no_chance_in_it_is_measured_once(model, images, monkeypatch):
    monkeypatch.setattr(model, "random_start", False, raising=False)
    assert len(evaluate(model, images, LABELS, repeats=3).errors) == 1
    assert len(evaluate(model, images, LABELS, repeats=3, greedy=False).errors) == 3


def test_evaluation_leaves_the_model_in_its_mode(model, images):
    model.train()
    evaluate(model, images, LABELS)
    assert model.training


def test_the_deviation_is_that_of_a_sample_of_repeats():
    found = Evaluation(200, 2, False, [[20, 10], [24, 12], [31, 20]], 3.0, 3, torch.zeros(3, 200, dtype=torch.bool))
    assert found.deviation() == pytest.approx(stdev([5.0, 6.0, 10.0]))
    assert found.deviation(1) == pytest.approx(stdev([10.0, 12.0, 15.5])) and found.error(1) == pytest.approx(12.5)
