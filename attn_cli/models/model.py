"""What a glimpse model offers; the rollout, evaluation, pictures and learners use nothing else.

Legend as in trace.py; R = M·B rows, row m·B + b is path m of image b; D hidden.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from attn_cli.glimpses.retina import Retina


class PathState(Protocol):
    """What a rollout reads of a model's state after each step; a model adds what it needs itself."""

    @property
    def hidden(self) -> Tensor: ...  # (R, D) what the answer is read from

    @property
    def location(self) -> Tensor | None: ...  # (R, 2) of the latest glimpse

    @property
    def log_prob(self) -> Tensor | None: ...  # (R,) of that location; None where no policy chose it

    @property
    def emitter(self) -> Tensor | None: ...  # (R, D) the state that chose it

    @property
    def patches(self) -> Tensor | None: ...  # (R, k, C, g, g) what was seen there


class GlimpseModel(nn.Module):
    """Base of all models that look at an image N times."""

    glimpses: int  # N
    retina: Retina

    def start(self, images_BCHW: Tensor, samples: int) -> Any:
        """A state that has seen nothing, for M paths through each uint8 image."""
        raise TypeError(f"{type(self).__name__} has no start")

    def step(self, state: Any, noise_R2: Tensor, greedy: bool = False) -> Any:
        """Choose a location, look there, think; `greedy` takes the mean location instead of a sample."""
        raise TypeError(f"{type(self).__name__} has no step")

    def classify(self, hidden: Tensor) -> Tensor:
        """Logits (…, K)."""
        raise TypeError(f"{type(self).__name__} has no classify")

    def baseline(self, hidden: Tensor) -> Tensor:
        """Predicted return (…)."""
        raise TypeError(f"{type(self).__name__} has no baseline")

    def multiply_adds(self, training: bool = False) -> int:
        """Of one path through one image, by the closed form."""
        raise TypeError(f"{type(self).__name__} has no multiply_adds")
