"""Layouts of house numbers: which digits a number has and where they lie, drawn from statistics of SVHN's annotations.

`svhn_layout.json` is a summary of the real annotations; attn_cli/data/sources/svhn_layout.py says what each quantity is
and recomputes it. Every quantity is drawn on its own, by its quantiles (so the most extreme 0.8 % on either side never
occur); digits follow each other to the right.

The crop is that of Goodfellow et al. 2014 (arXiv 1312.6082), which Ba et al. 2015 took over: the box around all digits,
30 % wider and higher, becomes 64×64 pixels whatever its shape, so digits are narrow in long numbers; 54×54 of them are
shown, at a random place in training, the middle else. A larger image shows more around the same box, which keeps its
size in pixels: 64×64 grows to (H + 10)×(W + 10).

All arithmetic is on integers, so a layout is the same on every machine. Legend: B numbers, D digits in all of them
together, L most digits of a number.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from attn_cli.data.keys import draws

LONGEST = 5  # L
CROP = 64  # pixels that the enlarged box around the digits becomes
MARGIN = 10  # pixels that the 64×64 (or larger) image is higher and wider than what is shown of it
CLOSEST = 900  # thousandths of touching: real boxes overlap more, but are drawn less tightly than ink
UNIT = 256  # of these a pixel


@dataclass(frozen=True)
class Numbers:
    """B numbers with D digits, int64 on the CPU; the digits of all numbers follow each other, from left to right."""

    count: np.ndarray  # (B,) digits of each number
    number: np.ndarray  # (D,) to which number a digit belongs, ascending
    place: np.ndarray  # (D,) which digit of its number it is, from 0
    digit: np.ndarray  # (D,) which digit of the pool it is
    box: np.ndarray  # (D, 4) top, bottom, left, right in the image, in units of 1/256 pixel; may reach outside
    middle: np.ndarray  # (B, 2) y and x of the middle of the box around all digits, in the same units
    pixel: np.ndarray  # (B, 2) height and width in the image of a pixel of the photograph it stands for, the same units


class Pool:
    """The digits of a split by class, so that one of a wanted class can be drawn."""

    def __init__(self, labels: np.ndarray):
        self.labels = labels.astype(np.int64)
        self.order = np.argsort(self.labels, kind="stable")
        self.counts = np.bincount(self.labels, minlength=10)
        self.starts = self.counts.cumsum() - self.counts

    def draw(self, wanted: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """int64 like `wanted`: digits of those classes; of any class where there is none. `numbers` are below 2^31."""
        counts = self.counts[wanted]
        start = np.where(counts > 0, self.starts[wanted], 0)
        return self.order[start + (numbers * np.where(counts > 0, counts, len(self.labels)) >> 31)]


@functools.cache
def _statistics() -> dict[str, np.ndarray]:
    """Cumulative counts, and quantiles (…, KNOTS), with a row per length from 0 to L where they depend on it."""
    found = json.loads(files("attn_cli.data").joinpath("svhn_layout.json").read_text(encoding="utf-8"))
    tables = {name: np.cumsum(found[name]) for name in ("lengths", "single", "leading", "following")}
    flat = [0] * len(found["pitch"])
    for name in ("aspect", "slope"):
        longest = max(map(int, found[name]))
        tables[name] = np.array([found[name].get(str(min(k, longest)), flat) for k in range(LONGEST + 1)])
    tables["width"] = np.array([found["width"]["other"], found["width"]["one"]])
    return tables | {name: np.array(found[name]) for name in ("pitch", "offset", "height")}


def mean_length() -> float:
    """Digits that a number has on average."""
    counts = np.diff(_statistics()["lengths"], prepend=0)
    return float(counts @ np.arange(1, LONGEST + 1) / counts.sum())


def draw(pool: Pool, size: tuple[int, int], random_crop: bool, count: int, *parts: int | str) -> Numbers:
    """`count` numbers in images of `size` pixels (height, width), a pure function of the arguments."""
    statistics = _statistics()
    numbers = draws((count, 6 + 5 * LONGEST), *parts)
    crop, (length, aspect, slope, height) = numbers[:, :2], numbers[:, 2:6].T
    digits = numbers[:, 6:].reshape(count, 5, LONGEST).swapaxes(0, 1)
    n = 1 + _choice(statistics["lengths"], length)

    wanted = _choice(statistics["following"], digits[0])
    alone, leading = (_choice(statistics[name], digits[0, :, 0]) for name in ("single", "leading"))
    wanted[:, 0] = np.where(n == 1, alone, leading)
    chosen = pool.draw(wanted, digits[1])

    # In thousandths of the digits' height, x from the centre of the first digit.
    one = (pool.labels[chosen] == 1).astype(np.int64)
    # The width of a single digit is in the aspect already, but for what is typical of its class.
    spread = np.where(n[:, None] > 1, digits[2], 1 << 30)
    width = _quantile(statistics["aspect"][n], aspect)[:, None] * _quantile(statistics["width"][one], spread) // 1000
    pitch = np.maximum(_quantile(statistics["pitch"], digits[3, :, 1:]), CLOSEST)
    x = np.zeros((count, LONGEST), np.int64)
    np.cumsum((width[:, 1:] + width[:, :-1]) * pitch // 2000, 1, out=x[:, 1:])
    y = _quantile(statistics["slope"][n], slope)[:, None] * x // 1000
    y += np.where(n[:, None] > 2, _quantile(statistics["offset"], digits[4]), 0)

    valid = np.arange(LONGEST) < n[:, None]
    origin = crop * (MARGIN + 1) >> 31 if random_crop else np.full_like(crop, MARGIN // 2)
    middle = (np.array(size) + MARGIN) * UNIT // 2 - origin * UNIT
    edges, spans = [], []
    for axis, (low, high) in enumerate(((2 * y - 1000, 2 * y + 1000), (2 * x - width, 2 * x + width))):
        first = np.where(valid, low, low[:, :1]).min(1, keepdims=True)
        last = np.where(valid, high, high[:, :1]).max(1, keepdims=True)
        spans.append((last - first)[:, 0])
        for edge in (low, high):
            # The box around all valid digits is 64 / 1.3 pixels about the middle.
            off = (2 * edge - first - last) * (10 * CROP * UNIT) // (13 * 2 * (last - first))
            edges.append((middle[:, axis : axis + 1] + off)[valid])
    # Edges are in 1/2000 of the digits' height, which is so many pixels of a photograph as was drawn.
    photograph = _quantile(statistics["height"], height)[:, None] * np.stack(spans, 1)
    pixel = 2000 * 1000 * (10 * CROP * UNIT) // (13 * photograph)
    number, place = np.nonzero(valid)
    return Numbers(n, number, place, chosen[valid], np.stack(edges, 1), middle, pixel)


def _choice(cumulative: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which class each number below 2^31 stands for, by cumulative counts."""
    return np.searchsorted(cumulative, numbers * cumulative[-1] >> 31, "right")


def _quantile(knots: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The values at `numbers` / 2^31 of the way from the first to the last knot; knots (KNOTS,) or (…, KNOTS)."""
    at = numbers * (knots.shape[-1] - 1)
    k = at >> 31
    if knots.ndim == 1:
        low, high = knots[k], knots[k + 1]
    else:
        low = np.take_along_axis(knots, k[..., None], -1)[..., 0]
        high = np.take_along_axis(knots, k[..., None] + 1, -1)[..., 0]
    return low + ((high - low) * (at & ((1 << 31) - 1)) >> 31)
