"""Reading a sequence: N glimpses for each answer until the terminal class (DRAM, sections 3.2 and 4.3).

Where a model looks never depends on what it answers, so one set of paths serves the averages of the first 1, 2, … M of
them. An image leaves the batch as soon as each of these averages has said "no more".

Legend: M samples, B images, b of them still being read, T = N·S steps, S targets, K classes and the terminal class K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attn_cli.inference.averages import running_averages
from attn_cli.inference.combine import crop, focus_box, looked_at_labels
from attn_cli.models.model import GlimpseModel
from attn_cli.models.rollout import keep


@dataclass(frozen=True)
class Reading:
    """What was read, for the average of the first m + 1 paths."""

    labels: Tensor  # int64 (M, B, S): labels, the terminal class, then -1
    log_probs: Tensor  # (B, S, K + 1) average over all paths; of answers that were not needed: 0
    glimpses: int  # run in all, over images and paths
    locations: Tensor  # (B, T, 2) of the first path, the image spanning [-1, 1]
    used: Tensor  # bool (B, T): which of its glimpses were run


@torch.no_grad()
def read(
    model: GlimpseModel,
    images_BCHW: Tensor,
    noise_MBT2: Tensor,
    *,
    greedy: bool = True,
    average: str = "log_probabilities",
) -> Reading:
    """Read every image along M paths, as long as it has something to say. One host-device sync per target."""
    M, B = noise_MBT2.shape[:2]
    state = model.start(images_BCHW, M)
    labels = torch.full((M, B, model.targets), -1, dtype=torch.long, device=images_BCHW.device)
    left = torch.arange(B, device=images_BCHW.device)  # (b,) images that are still being read
    locations = torch.zeros(B, model.steps, 2, device=images_BCHW.device)
    used = torch.zeros(B, model.steps, dtype=torch.bool, device=images_BCHW.device)
    log_probs, glimpses = None, 0
    for s in range(model.targets):
        for n in range(model.glimpses):
            t = s * model.glimpses + n
            state = model.step(state, noise_MBT2[:, left, t].flatten(0, 1), greedy)
            locations[left, t], used[left, t] = state.location[: len(left)].float(), True
        glimpses += M * len(left) * model.glimpses
        averages = running_averages(model.classify(state.hidden).view(M, len(left), -1), average)  # (M, b, K + 1)
        if log_probs is None:
            log_probs = averages.new_zeros(B, model.targets, averages.shape[-1])
        log_probs[left, s] = averages[-1] / M if average == "log_probabilities" else (averages[-1] / M).log()
        answer, terminal = averages.argmax(-1), averages.shape[-1] - 1
        ended = (labels[:, left] == terminal).any(-1)
        labels[:, left, s] = torch.where(ended, -1, answer)
        going = ~(ended | (answer == terminal)).all(0)
        if not going.any():
            break
        if s + 1 < model.targets and not going.all():
            state, left = keep(state, going.nonzero()[:, 0], M), left[going]
    assert log_probs is not None
    return Reading(labels, log_probs, glimpses, locations, used)


def focused(model: GlimpseModel, images_BCHW: Tensor, size: int) -> tuple[Tensor, int]:
    """Each image cut to the box (B, C, size, size) around the mean path of a first look at it, and the glimpses that
    this took (DRAM, section 4.3).
    """
    noise = torch.zeros(1, images_BCHW.shape[0], model.steps, model.noises, device=images_BCHW.device)
    first = read(model, images_BCHW, noise)
    used = looked_at_labels(first.used, first.labels[0], first.log_probs.shape[-1] - 1)
    corner = focus_box(first.locations, used, images_BCHW.shape[-2], images_BCHW.shape[-1], size)
    return crop(images_BCHW, corner, size), first.glimpses
