"""What the labels of two digits are called, as one class of the pair or of the sum, or one by one. Imports no torch."""

from __future__ import annotations

import numpy as np


def class_table(label: str) -> np.ndarray:
    """int64 (10, 10): the class of two digits, in either order."""
    first, second = np.meshgrid(np.arange(10), np.arange(10), indexing="ij")
    if label == "sum":
        return first + second
    low, high = np.minimum(first, second), np.maximum(first, second)
    return low * (21 - low) // 2 + high - low  # the pairs before low low, then those before low high


def length(label: str) -> int:
    """How many digits the label of a scene names one by one; 0 where it is one class."""
    return 2 if label == "sequence" else 0


def class_names(label: str) -> tuple[str, ...]:
    """ "0 0", "0 1" … "9 9", or "0" … "18", or of the digits in a sequence "0" … "9"."""
    if label == "sequence":
        return tuple(str(digit) for digit in range(10))
    if label == "sum":
        return tuple(str(total) for total in range(19))
    return tuple(f"{low} {high}" for low in range(10) for high in range(low, 10))
