"""One rollout for every model: `start`, N times `step`, then the heads → (logits, trace).

Legend as in trace.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attn_cli.glimpses.retina import Canvas
from attn_cli.models.model import GlimpseModel
from attn_cli.models.stopping import decisions, enough
from attn_cli.models.trace import Trace


def draw_noise(
    seed: int, step: int, shape: tuple[int, int, int], device: torch.device | str = "cpu", numbers: int = 2
) -> Tensor:
    """Standard normal noise (M, B, N, numbers) of a whole batch, a pure function of (seed, step) on a given device.

    Drawn up front, so that a batch that stops early or shrinks uses the same numbers.
    """
    digest = hashlib.blake2b(f"policy {seed} {step}".encode(), digest_size=8).digest()
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(*shape, numbers, generator=generator, device=device)


def moving(images: Tensor) -> bool:
    """Whether these are videos (B, T, C, H, W) instead of images (B, C, H, W)."""
    return images.dim() == 5


def in_front(images: Tensor, t: int) -> Tensor:
    """What glimpse t looks at, (B, C, H, W): the images, or frame t of the videos."""
    return images[:, t] if moving(images) else images


def answers(model: GlimpseModel, hidden: Tensor) -> Tensor:
    """Logits (…, K) of the classification network, in fp32 where autocast gave them fewer digits than losses and
    rewards need.
    """
    logits = model.classify(hidden)
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def rollout(
    model: GlimpseModel, images_BCHW: Tensor, noise_MBN2: Tensor, greedy: bool = False, record: bool = False
) -> tuple[Tensor, Trace]:
    """Look at each image along M paths; returns logits (M, B, K) after the last glimpse that is used, and the trace.

    Of videos (B, N, C, H, W), for a model that `watches`, glimpse n sees frame n.

    The noise has as many steps as the model, N·S. With a sequence model the logits are (M, B, S, K), after every N-th
    glimpse.
    """
    M, B, N, _ = noise_MBN2.shape
    state = model.start(in_front(images_BCHW, 0), M)
    states = []
    for t in range(N):
        if t and moving(images_BCHW):
            state = model.watch(state, in_front(images_BCHW, t))
        state = model.step(state, noise_MBN2[:, :, t].flatten(0, 1), greedy)
        states.append(state)
    chosen = [s for s in states if s.log_prob is not None]
    step_logits = None
    if model.every_step or model.stops or record:
        step_logits = torch.stack([answers(model, s.hidden) for s in states], 1).view(M, B, N, -1)
    if model.sequence:
        hidden_RSD = torch.stack([s.hidden for s in states[model.glimpses - 1 :: model.glimpses]], 1)
        logits = answers(model, hidden_RSD).view(M, B, model.targets, -1)
    elif step_logits is not None and model.every_step:
        logits = model.conclude(step_logits)
    elif step_logits is not None and model.stops:
        logits = step_logits[:, :, -1]
    else:
        logits = answers(model, state.hidden).view(M, B, -1)
    if chosen:
        log_probs = torch.stack([s.log_prob for s in chosen], 1).view(M, B, -1)
        baselines = model.baseline(torch.stack([s.emitter for s in chosen], 1)).view(M, B, -1)
    else:
        log_probs = baselines = logits.new_zeros(M, B, 0)
    trace = Trace(torch.stack([s.location for s in states], 1).view(M, B, N, 2), log_probs, baselines, logits)
    if getattr(state, "shift", None) is not None:
        trace.shifts = torch.stack([s.shift for s in states], 1).view(M, B, N, 2)
    if getattr(state, "magnification", None) is not None:
        trace.magnifications = torch.stack([s.magnification for s in states], 1).view(M, B, N)
    trace.step_logits = step_logits
    if model.stops:
        trace = stopped(model, trace, states, noise_MBN2, greedy)
        logits = trace.logits
    if record:
        height, width = images_BCHW.shape[-2:]
        trace.patches = torch.stack([model.patches(s) for s in states], 1).unflatten(0, (M, B))
        trace.boxes = torch.stack([model.boxes(s, height, width) for s in states], 1).unflatten(0, (M, B))
        for name in ("mask", "sigma"):
            if getattr(state, name, None) is not None:
                values = torch.stack([getattr(s, name) for s in states], 1).unflatten(0, (M, B))
                setattr(trace, f"{name}s", values)
    return logits, trace


def stopped(model: GlimpseModel, trace: Trace, states: list[Any], noise_MBN3: Tensor, greedy: bool) -> Trace:
    """The trace of paths that answer where the model has seen enough, from that of paths with an answer after each of
    their N glimpses.
    """
    assert trace.step_logits is not None
    M, B, _, K = trace.step_logits.shape
    hidden_RAD = torch.stack([s.hidden for s in states[:-1]], 1)
    stop_RA = model.stop_logit(hidden_RAD, trace.step_logits[:, :, :-1].flatten(0, 1))
    answers_RA = enough(stop_RA, noise_MBN3[:, :, :-1, 2].flatten(0, 1), greedy)
    glimpses, log_probs = decisions(stop_RA, answers_RA)
    last = (glimpses - 1).view(M, B, 1, 1).expand(M, B, 1, K)
    looks = trace.log_probs.shape[-1] > 0
    return dataclasses.replace(
        trace,
        baselines=trace.baselines if looks else model.baseline(hidden_RAD).view(M, B, -1),
        logits=trace.step_logits.gather(2, last)[:, :, 0],
        glimpses=glimpses.view(M, B),
        stop_log_probs=log_probs.view(M, B, -1),
    )


def play(
    model: GlimpseModel, starts_B: Tensor, noise_MBN3: Tensor, greedy: bool = False, record: bool = False
) -> Trace:
    """Play each game M times from its start: a frame, a glimpse of it, an action, until the game is over."""
    assert model.game is not None
    M, B, N, _ = noise_MBN3.shape
    game = model.game.begin(starts_B.repeat(M, *[1] * (starts_B.dim() - 1)))
    state = model.start(game.screens(), 1)
    screens, states, step_logits, actions = [], [], [], []
    for t in range(N):
        screens.append(game.screens())
        noise_R3 = noise_MBN3[:, :, t].flatten(0, 1)
        state = model.step(model.watch(state, screens[-1]), noise_R3, greedy)
        logits = answers(model, state.hidden)
        actions.append(model.act(logits, noise_R3, greedy))
        states.append(state)
        step_logits.append(logits)
        game = game.step(actions[-1])
    step_logits_MBNA = torch.stack(step_logits, 1).unflatten(0, (M, B))
    actions_MBN = torch.stack(actions, 1).view(M, B, N)
    chosen = [s for s in states if s.log_prob is not None]
    # One call: what follows a glimpse is judged by the state that acted, and the next location by the same state.
    emitters = [s.emitter for s in chosen]
    baselines = model.baseline(torch.stack([*(s.hidden for s in states), *emitters], 1)).unflatten(0, (M, B))
    trace = Trace(
        torch.stack([s.location for s in states], 1).view(M, B, N, 2),
        torch.stack([s.log_prob for s in chosen], 1).view(M, B, -1) if chosen else baselines[..., :0],
        baselines[..., N:],
        step_logits_MBNA[:, :, -1],
        step_logits_MBNA,
        actions=actions_MBN,
        action_log_probs=step_logits_MBNA.log_softmax(-1).gather(-1, actions_MBN[..., None])[..., 0],
        action_baselines=baselines[..., :N],
        rewards=game.rewards().view(M, B),
    )
    if record:
        all_screens = torch.stack([*screens, game.screens()], 1)
        trace.screens = all_screens.unflatten(0, (M, B))
        trace.patches = torch.stack([model.patches(s) for s in states], 1).unflatten(0, (M, B))
        boxes = [model.boxes(s, *all_screens.shape[-2:]) for s in states]
        trace.boxes = torch.stack(boxes, 1).unflatten(0, (M, B))
    return trace


def compact_rollout(
    model: GlimpseModel,
    images_BCHW: Tensor,
    noise_MBN2: Tensor,
    going: Callable[[int, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Trace]:
    """The rollout of a sequence that leaves out what nobody asks for: after each target `going(s, logits (M, b, K),
    left (b,))` says which of the b images, numbered by `left`, go on, bool (b,).

    Shapes are those of `rollout`, with zeros where nothing was run. One host-device sync per target.
    """
    M, B, _, _ = noise_MBN2.shape
    N, S = model.glimpses, model.targets
    state, left = model.start(images_BCHW, M), torch.arange(B, device=images_BCHW.device)
    parts: dict[str, list[Tensor]] = {"location": [], "log_prob": [], "baseline": [], "logits": []}
    for s in range(S):
        rows = (torch.arange(M, device=left.device)[:, None] * B + left).view(-1)
        seen = []
        for t in range(s * N, (s + 1) * N):
            state = model.step(state, noise_MBN2[:, left, t].flatten(0, 1))
            seen.append(state)
        logits = answers(model, state.hidden)
        values = {
            "location": torch.stack([x.location for x in seen], 1),
            "log_prob": torch.stack([x.log_prob for x in seen], 1),
            "baseline": model.baseline(torch.stack([x.emitter for x in seen], 1)),
            "logits": logits[:, None],
        }
        for name, value in values.items():
            parts[name].append(value.new_zeros(M * B, *value.shape[1:]).index_copy(0, rows, value))
        if s + 1 < S:
            on = going(s, logits.detach().view(M, len(left), -1), left)
            if not on.any():
                break
            if not on.all():
                state, left = keep(state, on.nonzero()[:, 0], M), left[on]
    for values_of in parts.values():
        values_of += [torch.zeros_like(values_of[0])] * (S - len(values_of))
    whole = {name: torch.cat(values_of, 1).unflatten(0, (M, B)) for name, values_of in parts.items()}
    return whole["logits"], Trace(whole["location"], whole["log_prob"], whole["baseline"], whole["logits"])


def keep(state: Any, images: Tensor, samples: int) -> Any:
    """A state of fewer images: int64 (b',) of its B, for all M paths. Fields with M·B rows and canvases are cut."""
    B = state.canvas.pixels.shape[0]
    rows = (torch.arange(samples, device=images.device)[:, None] * B + images).view(-1)
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    cut = {name: value[rows] for name, value in fields.items() if isinstance(value, Tensor)}
    canvases = {
        name: dataclasses.replace(value, pixels=value.pixels[images].contiguous())
        for name, value in fields.items()
        if isinstance(value, Canvas)
    }
    return dataclasses.replace(state, **canvases, **cut)
