"""What a model saw and did: the one record that objectives, averaging, pictures and tests read.

Legend: M samples (paths) per image, B batch, N glimpses in all, S targets, A location actions that were sampled and
used to look, K classes, C channels, k scales, g glimpse width in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Trace:
    """Locations are (x, y) in units where the image spans [-1, 1] on each axis and (0, 0) is its centre."""

    locations: Tensor  # (M, B, N, 2) where each glimpse was centred
    log_probs: (
        Tensor  # (M, B, A) log-density of each sampled location, of the unclamped sample; RAM: A = N − 1, DRAM: A = N;
        # of a model that chooses its scale, too: of both
    )
    baselines: Tensor  # (M, B, A) predicted return from the state that emitted the location
    logits: Tensor  # (M, B, K) the classification after the last glimpse that is used; (M, B, S, K) of a sequence
    step_logits: Tensor | None = None  # (M, B, N, K) answers after every glimpse: where all count, or when recorded
    # Only when the rollout is asked to record (pictures, tests):
    patches: Tensor | None = None  # (M, B, N, k, C, g, g) in [0, 1], what the retina delivered
    boxes: Tensor | None = None  # (M, B, N, k, 4) x0, y0, x1, y1 in pixels of the image, x1 and y1 exclusive
    shifts: Tensor | None = None  # (M, B, N, 2) by how much attention was asked to move; of soft attention alone
    masks: Tensor | None = None  # (M, B, N, H, W) what multiplied the image
    sigmas: Tensor | None = None  # (M, B, N) standard deviation of the filters in pixels; of Gaussian grids
    # Of a retina at another scale than that of pixels alone:
    magnifications: Tensor | None = None  # (M, B, N) pixels of the image a side of a cell of the finest patch
    # Of a model that stops by itself alone, whose locations and answers go on to the last glimpse:
    glimpses: Tensor | None = None  # (M, B) int64, how many are used
    stop_log_probs: Tensor | None = None  # (M, B, N − 1) of each decision to answer or to go on, 0 after the answer
    # Of games alone, with the logits of the actions in step_logits:
    actions: Tensor | None = None  # (M, B, N) int64, what was done after each glimpse
    action_log_probs: Tensor | None = None  # (M, B, N)
    action_baselines: Tensor | None = None  # (M, B, N) predicted return from the state that acted
    rewards: Tensor | None = None  # (M, B) of the whole game
    screens: Tensor | None = None  # (M, B, N + 1, C, H, W) all frames and the last screen, when recorded
