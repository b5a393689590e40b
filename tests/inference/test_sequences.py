"""Reading sequences against reading image by image, and what it costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attn_cli.config.schema import Dram, Glimpses, Scales
from attn_cli.inference.combine import crop, focus_box, looked_at_labels
from attn_cli.inference.monte_carlo import evaluate, evaluation_noise
from attn_cli.inference.sequences import focused, read
from attn_cli.models.dram import DRAM
from attn_cli.models.rollout import rollout

N, LENGTH, B = 2, 3, 12


@pytest.fixture(scope="module")
def model():
    """Of four labels and the end; untrained, scaled up so that images are read to different lengths."""
    torch.manual_seed(6)
    config = Dram(filters=(4, 4, 8), features=24, hidden=16, sigma=0.5, coarse=12)
    model = DRAM(config, Glimpses(N, 12), Scales(1), channels=1, classes=4, length=LENGTH).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0)
        model.classification_network.output.bias.copy_(torch.tensor([-1.0, 0.0, 0.0, 0.0, 1.0]))
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (B, 1, 54, 54), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def naive(model, image, noise, average):
    """Labels (M, S) of one image, one path after the other, each average read to its end."""
    M = noise.shape[0]
    logits = torch.stack([rollout(model, image, noise[m : m + 1])[0][0, 0] for m in range(M)])  # (M, S, K + 1)
    log_p = F.log_softmax(logits, -1)
    rows = []
    for m in range(1, M + 1):
        mean = log_p[:m].mean(0) if average == "log_probabilities" else log_p[:m].exp().mean(0)
        said = mean.argmax(-1).tolist()
        stop = said.index(4) if 4 in said else len(said) - 1
        rows.append([label if s <= stop else -1 for s, label in enumerate(said)])
    return torch.tensor(rows)


@pytest.mark.parametrize("average", ["log_probabilities", "probabilities"])
def test_reading_equals_reading_image_by_image(model, images, average):
    noise = torch.stack([evaluation_noise(0, 0, m, B, model.steps) for m in range(3)])
    with torch.no_grad():
        reading = read(model, images, noise, greedy=False, average=average)
        expected = torch.stack([naive(model, images[i : i + 1], noise[:, i : i + 1], average) for i in range(B)], 1)
    assert reading.labels.equal(expected)
    lengths = (expected[-1] >= 0).sum(-1)
    assert lengths.unique().numel() > 1  # or nothing was tested


def test_no_glimpse_is_run_that_no_image_needs(model, images):
    noise = evaluation_noise(0, 0, 0, B, model.steps)[None]
    reading = read(model, images, noise, greedy=False)
    needed = (reading.labels[0] >= 0).sum().item() * N
    assert reading.glimpses == needed < B * model.steps


def test_evaluation_counts_whole_sequences_and_the_mean_cost(model, images):
    noise = torch.stack([evaluation_noise(5, 0, m, B, model.steps) for m in range(2)])
    said = read(model, images, noise, greedy=False).labels
    labels = said[1].clone()
    labels[0, 0] = (labels[0, 0] + 1) % 4  # one mistake in one image
    result = evaluate(model, images, labels, samples=2, greedy=False, seed=5, batch_size=8)
    assert result.errors == [[int((said[0] != labels).any(-1).sum()), 1]]
    assert N <= result.mean_glimpses < result.most_glimpses == model.steps


def test_the_first_look_for_the_focus_is_counted_once_an_image(model, images):
    seen, looked = focused(model, images, 20)
    noise = torch.stack([evaluation_noise(0, 0, m, B, model.steps) for m in range(2)])
    read_there = read(model, seen, noise, greedy=False).glimpses
    labels = torch.full((B, model.targets), -1)
    result = evaluate(model, images, labels, samples=2, greedy=False, focus=20, batch_size=2 * B)
    assert result.mean_glimpses == (looked + read_there) / (2 * B)
    assert result.most_glimpses == 2 * model.steps


def test_a_label_that_no_model_predicts_is_an_error(model, images):
    """An image of more digits than can be read: its row ends in a value outside the classes."""
    labels = read(model, images, evaluation_noise(0, 0, 0, B, model.steps)[None]).labels[0]
    labels[3, -1] = 99
    assert evaluate(model, images, labels, seed=0).errors == [[1]]


def test_probabilities_that_were_averaged_are_told_as_logarithms(model, images):
    """`attn combine` adds those of both readers."""
    noise = torch.stack([evaluation_noise(0, 0, m, B, model.steps) for m in range(3)])
    for average in ("log_probabilities", "probabilities"):
        found = read(model, images, noise, greedy=False, average=average)
        logits = torch.stack([rollout(model, images, noise[m : m + 1])[0][0, :, 0] for m in range(3)])
        log_p = F.log_softmax(logits, -1)
        wanted = log_p.mean(0) if average == "log_probabilities" else log_p.exp().mean(0).log()
        torch.testing.assert_close(found.log_probs[:, 0], wanted.detach(), atol=1e-5, rtol=1e-4)


def test_the_second_look_is_at_the_labels_of_the_first(model):
    """In an image wider than high; what was looked at to say "no more" is left out."""
    wide = torch.randint(0, 256, (B, 1, 60, 110), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    noise = torch.zeros(1, B, model.steps, 2)
    first = read(model, wide, noise)
    counted = looked_at_labels(first.used, first.labels[0], 4)
    corner = focus_box(first.locations, counted, 60, 110, 30)
    assert not torch.equal(corner, focus_box(first.locations, first.used, 60, 110, 30))  # or nothing was tested
    assert torch.equal(focused(model, wide, 30)[0], crop(wide, corner, 30))
