"""Evaluation of a glimpse model: the mean-location policy, or M sampled paths whose predictions are averaged.

DRAM (arXiv 1412.7755), section 3.1, eq. 14: the class log-probabilities of several sampled paths are averaged, or the
probabilities, as the equation has it. Noise is drawn on the CPU and keyed by (seed, repeat, sample), so neither the
batch size, nor M, nor the device changes which path sample m of image i takes.

Legend: M samples, n images, B images at a time, N glimpses, K classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attn_cli import processes
from attn_cli.data.splits import Pictures
from attn_cli.inference.averages import running_averages
from attn_cli.inference.intervals import Z, wilson
from attn_cli.inference.sequences import focused, read
from attn_cli.inference.stopping import answer_early
from attn_cli.models.model import GlimpseModel
from attn_cli.models.rollout import play, rollout


def evaluation_noise(seed: int, repeat: int, sample: int, count: int, glimpses: int, numbers: int = 2) -> Tensor:
    """Standard normal (n, N, numbers) for one path through each of n images."""
    digest = hashlib.blake2b(f"evaluation {seed} {repeat} {sample}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(count, glimpses, numbers, generator=generator)


def paired_interval(before: Tensor, after: Tensor) -> list[float]:
    """95 % interval of the difference of two error rates on the same images, in points: (n,) each, 1 or true where
    wrong, or the share of repeats in which it was. A single image tells nothing.
    """
    difference = before.double() - after.double()
    if len(difference) < 2:
        return [-100.0, 100.0]
    mean, spread = difference.mean().item(), difference.std().item() / math.sqrt(len(difference))
    return [100 * (mean - Z * spread), 100 * (mean + Z * spread)]


@dataclass(frozen=True)
class Evaluation:
    """Errors of one split. Rates in %."""

    count: int  # images
    samples: int  # M; 1 with `greedy` means the mean-location policy
    greedy: bool
    errors: list[list[int]]  # [repeat][M − 1]: number of wrong images when the first M samples are averaged
    mean_glimpses: float  # per image and path
    most_glimpses: int  # N·S, of the longest sequence; with a first look as many again
    wrong: Tensor = field(compare=False)  # bool (repeats, n): which images, with all M samples averaged

    def error(self, samples: int | None = None) -> float:
        """Mean error over the repeats, in %."""
        column = [row[(samples or self.samples) - 1] for row in self.errors]
        return 100 * sum(column) / len(column) / max(self.count, 1)

    def deviation(self, samples: int | None = None) -> float:
        """Sample standard deviation over the repeats, in %; 0 for a single repeat."""
        column = [100 * row[(samples or self.samples) - 1] / max(self.count, 1) for row in self.errors]
        if len(column) < 2:
            return 0.0
        mean = sum(column) / len(column)
        return math.sqrt(sum((c - mean) ** 2 for c in column) / (len(column) - 1))

    def interval(self, samples: int | None = None) -> tuple[float, float]:
        """95 % Wilson interval of the error over the images, in %."""
        return wilson(self.error(samples) / 100 * self.count, self.count)


def answers(model: GlimpseModel, images_BCHW: Tensor, noise_MBN2: Tensor, greedy: bool) -> tuple[Tensor, int]:
    """Logits (M, B, K) of a model with one answer, and how many glimpses that took over all paths."""
    if model.stops:
        logits, glimpses_MB = answer_early(model, images_BCHW, noise_MBN2, greedy)
        return logits, int(glimpses_MB.sum())
    return rollout(model, images_BCHW, noise_MBN2, greedy)[0], math.prod(noise_MBN2.shape[:3])


@torch.no_grad()
def evaluate_views(
    model: GlimpseModel,
    views: Iterable[Tensor],
    labels_n: Tensor,
    *,
    repeats: int = 1,
    seed: int = 0,
    batch_size: int = 1000,
) -> Evaluation:
    """Errors of the mean probabilities over several views of each image (Krizhevsky et al. 2012, section 4.1), each
    seen along the mean path of a model with one answer. A view is uint8 (n, C, H, W) of all images.
    """
    was_training, n, steps = model.training, len(labels_n), model.steps
    model.eval()
    repeats = repeats if model.random_start else 1
    sums: list[list[Tensor]] = []  # [repeat][batch] (B, K)
    glimpses = paths = 0
    for number, images in enumerate(views):
        parts = [slice(low, low + batch_size) for low in range(0, n, batch_size)]
        paths += n * repeats
        for repeat in range(repeats):
            noise = evaluation_noise(seed, repeat, number, n, steps, model.noises)[None].to(images.device)
            seen = [answers(model, images[part], noise[:, part], greedy=True) for part in parts]
            glimpses += sum(used for _, used in seen)
            shares = [logits[0].float().softmax(-1) for logits, _ in seen]
            if number == 0:
                sums.append(shares)
            else:
                sums[repeat] = [a + b for a, b in zip(sums[repeat], shares, strict=True)]
    model.train(was_training)
    wrong = torch.stack([torch.cat(batches).argmax(-1) != labels_n for batches in sums])
    return Evaluation(n, 1, True, wrong.sum(1, keepdim=True).tolist(), glimpses / max(paths, 1), steps, wrong.cpu())


@torch.no_grad()
def evaluate(
    model: GlimpseModel,
    images_nCHW: Pictures,
    labels_n: Tensor,
    *,
    samples: int = 1,
    greedy: bool = True,
    average: str = "log_probabilities",
    repeats: int = 1,
    seed: int = 0,
    batch_size: int = 1000,
    focus: int | None = None,
) -> Evaluation:
    """Count errors on fixed images; of sequences, those in which anything is wrong. Every repeat draws new paths, and
    new first locations where these are random even for the mean policy; where nothing is drawn there is one repeat.
    With `focus` the model first reads along its mean path, then what counts is read in the box of that many pixels
    around it (DRAM, section 4.3). The processes of a run evaluate a part of the images each, and all return the whole.
    """
    was_training, device = model.training, images_nCHW.device
    model.eval()
    repeats = 1 if greedy and not model.random_start else repeats
    n, M, T = images_nCHW.shape[0], samples, model.steps
    labels_n = model.order(labels_n)
    B = max(1, min(n, batch_size // M))
    own = processes.share(n)
    errors, glimpses, which = [], 0, torch.zeros(repeats, n, dtype=torch.bool, device=device)
    for repeat in range(repeats):
        noise = torch.stack(
            [evaluation_noise(seed, repeat, m, n, T, model.noises) for m in range(M)]
        )  # (M, n, T, 2 or more)
        wrong = torch.zeros(M, dtype=torch.long, device=device)
        for low in range(own.start, own.stop, B):
            part = slice(low, min(low + B, own.stop))
            paths = noise[:, part].to(device)
            if model.sequence:
                seen = images_nCHW[part]
                if focus is not None:
                    seen, looked = focused(model, seen, focus)
                    glimpses += looked  # once for all paths
                reading = read(model, seen, paths, greedy=greedy, average=average)
                off_MB = (reading.labels != labels_n[part]).any(-1)
                glimpses += reading.glimpses
            elif model.game is not None:
                trace = play(model, labels_n[part], paths, greedy)
                assert trace.rewards is not None
                off_MB = trace.rewards < 0.5
                glimpses += paths.shape[1] * M * T
            else:
                logits, run = answers(model, images_nCHW[part], paths, greedy)
                off_MB = running_averages(logits, average).argmax(-1) != labels_n[part]
                glimpses += run
            wrong += off_MB.sum(1)
            which[repeat, part] = off_MB[-1]
        errors.append(processes.total(wrong).tolist())
    model.train(was_training)
    which = processes.total(which).bool().cpu()
    glimpses = int(processes.total(torch.tensor(glimpses)))
    most = T if focus is None else 2 * T
    return Evaluation(n, M, greedy, errors, glimpses / max(n * M * repeats, 1), most, which)
