"""95 % intervals of error rates. Imports no torch."""

from __future__ import annotations

import math

Z = 1.959964  # 95 % of a normal distribution lie within ± Z standard deviations


def wilson(errors: float, count: int) -> tuple[float, float]:
    """95 % interval of an error rate in % (Wilson 1927) from a number of errors among `count` images."""
    if count == 0:
        return 0.0, 100.0
    z, p = Z, errors / count
    centre = p + z * z / (2 * count)
    spread = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 100 / (1 + z * z / count)
    return max(0.0, (centre - spread) * scale), min(100.0, (centre + spread) * scale)
