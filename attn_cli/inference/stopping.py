"""Answering as soon as a model has seen enough (models/stopping.py): a batch shrinks as its paths stop.

Legend: M samples, B images, N glimpses, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attn_cli.models.model import GlimpseModel
from attn_cli.models.rollout import in_front, keep, moving
from attn_cli.models.stopping import enough


@torch.no_grad()
def answer_early(
    model: GlimpseModel, images_BCHW: Tensor, noise_MBN3: Tensor, greedy: bool = False
) -> tuple[Tensor, Tensor]:
    """The answers (M, B, K) of a model that stops by itself, and the glimpses run for each, int64 (M, B).

    A path leaves the batch when it answers, whatever the other paths of its image do. One host-device sync a glimpse.
    """
    M, B, N, _ = noise_MBN3.shape
    noise_RN3 = noise_MBN3.flatten(0, 1)
    images = images_BCHW.repeat(M, *[1] * (images_BCHW.dim() - 1))
    state = model.start(in_front(images, 0), 1)
    left = torch.arange(M * B, device=images_BCHW.device)
    glimpses = torch.full_like(left, N)
    logits: Tensor | None = None
    for t in range(N):
        noise = noise_RN3[left, t]
        if t and moving(images):
            state = model.watch(state, in_front(images, t)[left])
        state = model.step(state, noise, greedy)
        done = torch.ones_like(left, dtype=torch.bool)
        answers = model.classify(state.hidden)
        if t + 1 < N:
            done = enough(model.stop_logit(state.hidden, answers), noise[:, 2], greedy)
        stay = len(left) - int(done.sum())  # the one sync
        order = done.byte().argsort(stable=True)
        on, ended = order[:stay], order[stay:]
        logits = answers.new_zeros(M * B, answers.shape[-1]) if logits is None else logits
        logits[left[ended]], glimpses[left[ended]] = answers[ended], t + 1
        if stay == 0:
            break
        if len(ended):
            state, left = keep(state, on, 1), left[on]
    assert logits is not None
    return logits.view(M, B, -1), glimpses.view(M, B)
