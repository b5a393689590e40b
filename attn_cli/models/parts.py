"""The multiply-adds of a model, part by part and by closed form: what `attn cost` and `attn bench` count with.

1. A multiply-add is one product and one sum of a matrix product or a convolution, which is two floating-point
   operations. Biases, activations, pooling, sampling and what an LSTM does element by element count nothing.
2. In training a layer costs three times as much: once more for the gradient of its weights, once more for that of its
   input. `spared` is what of this is not made: no gradient goes on to pixels, locations or a first state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A network of a model, or a product that it makes."""

    name: str
    adds: int  # multiply-adds of one call, forward
    calls: float = 1  # along one path through an image
    spared: float = 0  # multiply-adds of the backward pass that are not made, along one path
    shared: bool = False  # worked out once an image, however many paths there are
    training_only: bool = False


def multiply_adds(parts: Sequence[Part], training: bool = False, samples: int = 1) -> int:
    """Of one image along `samples` paths: forward; or forward and backward of a training step."""
    total = 0.0
    for part in parts:
        along = part.adds * part.calls
        if training:
            along = 3 * along - part.spared
        elif part.training_only:
            along = 0
        total += along if part.shared else samples * along
    return round(total)
