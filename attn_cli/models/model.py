"""What a glimpse model offers; the rollout, evaluation, pictures and learners use nothing else.

Legend as in trace.py; R = M·B rows, row m·B + b is path m of image b; D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from attn_cli.errors import Refused
from attn_cli.games.catch import Catch
from attn_cli.glimpses.retina import Retina
from attn_cli.models.parts import Part, multiply_adds


class GlimpseModel(nn.Module):
    """Base of all models that look at an image N times for each of S targets."""

    glimpses: int  # N, per target
    targets: int = 1  # S, answers in a row, the last of a sequence being "no more"
    sequence: bool = False  # whether the answer is a sequence
    stochastic: bool = True  # whether paths differ, so that averaging over them makes sense
    random_start: bool = True  # whether chance plays a part in the mean-location path, too
    moves: bool = True  # whether it looks at parts of the image
    masks: bool = False  # whether a glimpse is the image times a mask
    every_step: bool = False  # whether it answers after every glimpse, and all answers count
    sized: bool = False  # whether the constructor wants the size of the images, as `height` and `width`
    stops: bool = False  # whether it decides after every glimpse if it has seen enough
    zooms: bool = False  # whether it chooses the magnification of its retina
    watches: bool = False  # whether it can look at something that changes: has `watch`
    frames: int = 0  # of the videos that it is built for, a glimpse each; 0: images
    plays: bool = False  # whether it plays games; the constructor wants the `game` then
    game: type[Catch] | None = None  # what it plays
    noises: int = 2  # numbers that a step is given: for a location, an action of a game or of stopping, a scale
    attention: tuple[str, ...] = ()  # the submodules that do nothing but choose where to look
    halves: bool = True  # whether `trainer.precision=bf16` may train it under autocast
    retina: Retina

    def attention_parameters(self) -> list[nn.Parameter]:
        """What `optimizer.attention` is for."""
        parts = (getattr(self, name) for name in self.attention)
        return [parameter for part in parts if part is not None for parameter in part.parameters()]

    def look_at_one_scale(self, name: str, scales: int) -> None:
        """Refuse several scales, for a model that chooses the size of what it looks at."""
        if scales != 1:
            raise Refused(f"model={name} looks at one scale, whose size it chooses: use scales=1.")

    @property
    def steps(self) -> int:
        """Glimpses in all: N·S."""
        return self.glimpses * self.targets

    def set_answers(self, classes: int, length: int) -> int:
        """One answer, or with a `length` up to that many and then "no more"; returns the classes of an answer."""
        self.targets, self.sequence = length + 1, length > 0
        return classes + self.sequence

    def prepare(self, images: Callable[[], Iterable[Tensor]]) -> str | None:
        """Called before training begins, with what gives the training images of an epoch in batches, uint8. Returns a
        report of one line, if any.
        """
        return None

    def start(self, images_BCHW: Tensor, samples: int) -> Any:
        """A state that has seen nothing, for M paths through each uint8 image."""
        raise TypeError(f"{type(self).__name__} has no start")

    def step(self, state: Any, noise_R2: Tensor, greedy: bool = False) -> Any:
        """Choose a location, look there, think; `greedy` takes the mean location instead of a sample.

        The new state has `hidden` (R, D), what the answer is read from; `location` (R, 2) of the glimpse; `log_prob`
        (R,) of that location, None where no policy chose it; `emitter` (R, D), the state that chose it; `patches`
        (R, k, C, g, g), what was seen, unless `patches` below says otherwise; of a model without a retina `box` (R, k,
        4) as `boxes` has it; with `masks`, `mask` (R, H, W). Soft attention has `shift` (R, 2), `sigma` (R,), too, and
        what is seen at other scales than pixels `magnification` (R,); see trace.py.
        """
        raise TypeError(f"{type(self).__name__} has no step")

    def watch(self, state: Any, frames_BCHW: Tensor) -> Any:
        """With `watches`: the same state in front of the next frame, uint8; in a game each row has its own."""
        raise TypeError(f"{type(self).__name__} has no watch")

    def act(self, logits_RA: Tensor, noise_R: Tensor, greedy: bool) -> Tensor:
        """With `plays`: int64 (R,) actions, sampled or with `greedy` the likeliest."""
        raise TypeError(f"{type(self).__name__} has no act")

    def classify(self, hidden: Tensor) -> Tensor:
        """Logits (…, K)."""
        raise TypeError(f"{type(self).__name__} has no classify")

    def stop_logit(self, hidden: Tensor, answer_K: Tensor) -> Tensor:
        """With `stops`: the logit (…) of giving the answer with these logits (…, K) now."""
        raise TypeError(f"{type(self).__name__} has no stop_logit")

    def conclude(self, step_logits_MBNK: Tensor) -> Tensor:
        """With `every_step`: the answer (M, B, K) from those after every glimpse."""
        raise TypeError(f"{type(self).__name__} has no conclude")

    def baseline(self, hidden: Tensor) -> Tensor:
        """Predicted return (…)."""
        raise TypeError(f"{type(self).__name__} has no baseline")

    def order(self, labels: Tensor) -> Tensor:
        """Labels as this model answers them: a backward reader from right to left."""
        return labels

    def boxes(self, state: Any, height: int, width: int) -> Tensor:
        """What the latest glimpse covers: (R, k, 4) as x0, y0, x1, y1 in pixels of the image, x1 and y1 exclusive."""
        box: Tensor | None = getattr(state, "box", None)
        if box is not None:
            return box
        if self.moves:
            return self.retina.boxes(state.location, height, width)
        return torch.tensor([0, 0, width, height], device=state.location.device).expand(len(state.location), 1, 4)

    def patches(self, state: Any) -> Tensor:
        """What the latest glimpse saw of the image, (R, k, C, g, g) in [0, 1], for pictures."""
        seen: Tensor = state.patches
        return seen

    def parts(self, targets: float | None = None) -> list[Part]:
        """The networks of this model with what each costs, for an image of so many answers (a sequence's "no more" is
        one; None: of as many as there can be).
        """
        raise TypeError(f"{type(self).__name__} has no parts")

    def multiply_adds(self, training: bool = False) -> int:
        """Of one path through one image with all its targets, by the closed form."""
        return multiply_adds(self.parts(), training)
