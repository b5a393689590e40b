"""One rollout for every model: `start`, N times `step`, then the heads → (logits, trace).

Legend as in trace.py.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from attn_cli.models.model import GlimpseModel
from attn_cli.models.trace import Trace


def draw_noise(seed: int, step: int, shape: tuple[int, int, int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (M, B, N, 2) of a whole batch, a pure function of (seed, step) on a given device.

    Drawn up front, so that a batch that stops early or shrinks uses the same numbers.
    """
    digest = hashlib.blake2b(f"policy {seed} {step}".encode(), digest_size=8).digest()
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(*shape, 2, generator=generator, device=device)


def rollout(
    model: GlimpseModel, images_BCHW: Tensor, noise_MBN2: Tensor, greedy: bool = False, record: bool = False
) -> tuple[Tensor, Trace]:
    """Look at each image along M paths; returns logits (M, B, K) after the last glimpse, and the trace.

    The noise has as many steps as the model, N·S. With a sequence model the logits are (M, B, S, K), after every N-th
    glimpse.
    """
    M, B, N, _ = noise_MBN2.shape
    state = model.start(images_BCHW, M)
    states = []
    for t in range(N):
        state = model.step(state, noise_MBN2[:, :, t].reshape(M * B, 2), greedy)
        states.append(state)
    chosen = [s for s in states if s.log_prob is not None]
    if model.sequence:
        answers = torch.stack([s.hidden for s in states[model.glimpses - 1 :: model.glimpses]], 1)  # (R, S, D)
        logits = model.classify(answers).view(M, B, model.targets, -1)
    else:
        logits = model.classify(state.hidden).view(M, B, -1)
    if chosen:
        log_probs = torch.stack([s.log_prob for s in chosen], 1).view(M, B, -1)
        baselines = model.baseline(torch.stack([s.emitter for s in chosen], 1)).view(M, B, -1)
    else:
        log_probs = baselines = logits.new_zeros(M, B, 0)
    trace = Trace(torch.stack([s.location for s in states], 1).view(M, B, N, 2), log_probs, baselines, logits)
    if record:
        height, width = images_BCHW.shape[-2:]
        trace.step_logits = torch.stack([model.classify(s.hidden) for s in states], 1).view(M, B, N, -1)
        trace.patches = torch.stack([s.patches for s in states], 1).unflatten(0, (M, B))
        trace.boxes = torch.stack([model.boxes(s.location, height, width) for s in states], 1).unflatten(0, (M, B))
    return logits, trace
