"""What the values of a swept key are drawn from: Hydra's choices, globs, ranges and intervals.

key=a,b,c  choice(a,b,c)  glob(*)  range(2,8)     one of the values, each as likely as the others
interval(0.1,0.5)                                 uniform
int(interval(2,8))                                whole numbers, both ends included
tag(log,interval(1e-4,1e-1))                      uniform in the logarithm
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from attn_cli.errors import Refused


@dataclass(frozen=True)
class Interval:
    low: float
    high: float
    log: bool
    whole: bool  # only whole numbers

    def draw(self, generator: random.Random) -> float:
        if self.whole and self.log:  # each number has its share of the logarithm, from 1/2 below to 1/2 above
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return min(max(round(math.exp(generator.uniform(low, high))), self.low), self.high)
        if self.whole:
            return generator.randint(int(self.low), int(self.high))
        if self.log:
            return math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return generator.uniform(self.low, self.high)


Values = Interval | tuple[str, ...]  # the latter as they are written after key=


def fixed(override: Override) -> str:
    """An override that is the same in every job, as it was written."""
    assert override.input_line is not None
    return override.input_line


def values(override: Override) -> Values:
    """What a swept key takes its values from; raises Refused for an interval that makes no sense."""
    if not override.is_interval_sweep():
        found = tuple(override.sweep_string_iterator())
        if override.is_range_sweep():  # 0.1 + 0.2 is 0.30000000000000004
            found = tuple(str(float(f"{float(word):.12g}")) if "." in word else word for word in found)
        if not found:
            raise Refused(f"{override.input_line} has no values.")
        return found
    interval = override.value()
    assert isinstance(interval, IntervalSweep) and interval.start is not None and interval.end is not None
    low, high, log = interval.start, interval.end, "log" in interval.tags
    if unknown := sorted(interval.tags - {"log"}):
        raise Refused(f"{override.input_line}: the only tag is log, not {unknown[0]}.")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise Refused(f"{override.input_line}: an interval goes from a number to a larger one.")
    if log and low <= 0:
        raise Refused(f"{override.input_line}: a logarithmic interval begins above 0.")
    return Interval(low, high, log, whole=isinstance(low, int) and isinstance(high, int))


def listed(override: Override) -> tuple[str, ...]:
    """All values of a key in a grid; raises Refused for an interval, which has no end of them."""
    found = values(override)
    if isinstance(found, Interval):
        raise Refused(
            f"{override.input_line} cannot be listed: add hydra/sweeper=random or hydra/sweeper=optuna, or name values."
        )
    return found


def ordered(override: Override) -> tuple[float, float, float] | None:
    """(lowest, highest, step) of a range that is not shuffled; None for other overrides."""
    swept = override.value()
    if not isinstance(swept, RangeSweep) or swept.shuffle:
        return None
    numbers = sorted(swept.range())
    return (numbers[0], numbers[-1], abs(swept.step)) if numbers else None


def written(value: float) -> str:
    """A drawn number as a word; six digits say enough."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def draw(swept: Sequence[tuple[str, Values]], seed: int, number: int) -> list[str]:
    """The overrides of job `number` of a random search, a pure function of (key, seed, number)."""
    words = []
    for key, choices in swept:
        generator = random.Random(f"{seed} {number} {key}")
        if isinstance(choices, Interval):
            low, high, drawn = choices.low, choices.high, choices.draw(generator)
            value = written(drawn)
            if not low <= float(value) <= high:  # rounding has gone beyond an end
                value = str(min(max(drawn, low), high))
        else:
            value = generator.choice(choices)
        words.append(f"{key}={value}")
    return words
