"""Forward and backward answers put together against brute force; the focus box against a per-image loop."""

from __future__ import annotations

import itertools

import pytest
import torch

from attn_cli.inference.combine import combine, crop, focus_box, lengths, looked_at_labels
from attn_cli.inference.monte_carlo import paired_interval

K, S = 3, 4  # labels 0, 1, 2, the terminal class 3; at most three labels


def row(answer: tuple[int, ...]) -> list[int]:
    """Labels as a reader gives them; an answer of S labels never ended."""
    said = [*answer, K][:S]
    return said + [-1] * (S - len(said))


ANSWERS = [answer for n in range(S + 1) for answer in itertools.product(range(2), repeat=n)]


def test_lengths():
    assert lengths(torch.tensor([row(a) for a in ANSWERS]), K).tolist() == [min(len(a), S - 1) for a in ANSWERS]


def test_flip_against_brute_force():
    pairs = list(itertools.product(ANSWERS, repeat=2))
    forward = torch.tensor([row(a) for a, _ in pairs])
    backward = torch.tensor([row(b) for _, b in pairs])
    nothing = torch.zeros(len(pairs), S, K + 1)
    seen = combine(forward, backward, nothing, nothing, "flip")
    for (a, b), labels in zip(pairs, seen.tolist(), strict=True):
        k = min(len(a), len(b), S - 1)
        assert labels == row(tuple(reversed(b[:k])))


def test_average_against_brute_force():
    generator = torch.Generator().manual_seed(0)
    count = 200
    forward_p = torch.randn(count, S, K + 1, generator=generator).mul(3).log_softmax(-1)
    backward_p = torch.randn(count, S, K + 1, generator=generator).mul(3).log_softmax(-1)

    def read(log_p):
        said = log_p.argmax(-1).tolist()
        return tuple(itertools.takewhile(lambda label: label != K, said))

    forward, backward = ([read(p) for p in log_p] for log_p in (forward_p, backward_p))
    seen = combine(
        torch.tensor([row(a) for a in forward]),
        torch.tensor([row(b) for b in backward]),
        forward_p,
        backward_p,
        "average",
    )
    longest = 0
    for i in range(count):
        k = min(len(forward[i]), len(backward[i]), S - 1)
        mean = [(forward_p[i, j] + backward_p[i, k - 1 - j])[:K] for j in range(k)]
        assert seen[i].tolist() == row(tuple(int(m.argmax()) for m in mean))
        longest = max(longest, k)
    assert longest == S - 1


def test_agreeing_readers_keep_their_answer():
    for answer in (a for a in ANSWERS if len(a) < S):
        both = torch.tensor([row(answer)]), torch.tensor([row(tuple(reversed(answer)))])
        for rule in ("flip", "average"):
            certain = [torch.nn.functional.one_hot(x.clamp(min=0), K + 1).float().mul(9).log_softmax(-1) for x in both]
            assert combine(*both, *certain, rule)[0].tolist() == row(answer)


@pytest.mark.parametrize(("height", "width"), [(110, 110), (54, 54), (80, 200)])
def test_focus_box_and_crop_against_a_loop(height, width):
    generator = torch.Generator().manual_seed(1)
    locations = torch.rand(30, 6, 2, generator=generator) * 2.4 - 1.2
    locations.clamp_(-1, 1)
    used = torch.arange(6) < torch.randint(1, 7, (30, 1), generator=generator)
    images = torch.randint(0, 256, (30, 2, height, width), dtype=torch.uint8, generator=generator)
    corners = focus_box(locations, used, height, width, 54)
    crops = crop(images, corners, 54)
    for i in range(30):
        x, y = (locations[i, used[i]].T + 1) * torch.tensor([[width], [height]]) / 2
        left = min(max(int(torch.floor((x.min() + x.max()) / 2 - 27 + 0.5)), 0), width - 54)
        top = min(max(int(torch.floor((y.min() + y.max()) / 2 - 27 + 0.5)), 0), height - 54)
        assert (corners[i] - torch.tensor([top, left])).abs().max() <= 1  # float32 at a half
        top, left = corners[i].tolist()
        assert crops[i].equal(images[i, :, top : top + 54, left : left + 54])


def test_paired_interval():
    before, after = torch.tensor([True] * 30 + [False] * 70), torch.tensor([True] * 20 + [False] * 80)
    low, high = paired_interval(before, after)  # ten images got better, none worse: 10 ± 1.96·σ/√n points
    assert (low + high) / 2 == pytest.approx(10.0, abs=1e-6) and high - low == pytest.approx(2 * 1.96 * 3.015, rel=1e-3)
    assert paired_interval(before, before) == [0.0, 0.0]
    assert paired_interval(before[:1], before[:1]) == [-100.0, 100.0]  # of one image


def test_glimpses_beyond_the_last_label_do_not_count():
    """Two glimpses an answer; the third image is empty, the fourth never ended."""
    labels = torch.tensor([row((1, 0)), row((2,)), row(()), row((1, 1, 1, 1))])
    used = torch.ones(4, 8, dtype=torch.bool)
    used[0, 6:] = used[1, 4:] = used[2, 2:] = False
    counted = looked_at_labels(used, labels, K)
    assert counted.sum(1).tolist() == [4, 2, 2, 8]
    assert (counted & ~used).sum() == 0 and counted[0, :4].all() and counted[2, :2].all()
    # A box around a path that leaves to the right for the terminal class is that around the labels.
    locations = torch.tensor([[[-0.5, 0], [-0.4, 0], [0.3, 0], [0.4, 0], [1, 1], [1, 1], [0, 0], [0, 0]]])
    corner = focus_box(locations, counted[:1], 100, 100, 40)
    assert corner.tolist() == [[30, 28]]  # the middle of -0.5 and 0.4 is pixel 47.5
    assert focus_box(locations, used[:1], 100, 100, 40).tolist() == [[55, 43]]
