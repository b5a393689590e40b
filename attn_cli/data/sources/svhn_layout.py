"""How real house numbers are laid out: a small summary of SVHN's annotations, which `attn_cli.data.layouts` draws from.

    python -m attn_cli.data.sources.svhn_layout ANNOTATIONS.h5 > attn_cli/data/svhn_layout.json

ANNOTATIONS.h5 has the boxes and labels of SVHN format 1 (Netzer et al. 2011) without pixels: group `train` with
`offset` int64 (N+1,), `box` int16 (D, 4) as xmin, ymin, xmax, ymax in original pixels and `label` uint8 (D,); the
digits of image i are rows offset[i] to offset[i+1], from left to right. The summary keeps counts and quantiles only.

Left out are numbers of more than 5 digits, and those that are not read from left to right: digits whose centres do not
follow each other to the right, or a line steeper than 1. In what is left the heights of a number's digits are equal in
99 % of the numbers, so there is one height a number. `measure` describes each quantity.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from attn_cli.data.hdf5 import open_hdf5

LONGEST = 5  # digits
KNOTS = 64  # quantiles kept of each quantity: those at (i + 0.5) / KNOTS
SOURCE = "Street View House Numbers, format 1, boxes and labels of the training split (Netzer et al. 2011)"


def measure(offset: np.ndarray, box: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """The summary of annotations as the module's head describes them; thousandths unless said otherwise."""
    count = np.diff(offset)
    x, y = (box[:, 0] + box[:, 2]) / 2, (box[:, 1] + box[:, 3]) / 2
    width, height = box[:, 2] - box[:, 0] + 0.0, box[:, 3] - box[:, 1] + 0.0
    number = np.repeat(np.arange(len(count)), count)  # of each digit
    place = np.arange(len(label)) - offset[number]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(number, values, len(count)) / np.maximum(count, 1)

    dx, dy = x - mean(x)[number], y - mean(y)[number]
    spread = mean(dx * dx)
    slope = np.divide(mean(dx * dy), spread, out=np.zeros_like(spread), where=spread > 0)
    follows = (number[1:] == number[:-1]) & (x[1:] <= x[:-1])
    backwards = np.bincount(number[1:][follows], minlength=len(count)) > 0
    kept = (count >= 1) & (count <= LONGEST) & ~backwards & (np.abs(slope) <= 1)
    shown, several = kept[number], (kept & (count > 1))[number]

    one = label == 1
    factor = width / mean(width)[number]
    typical = np.where(one, factor[several & one].mean(), factor[several & ~one].mean())
    aspect = mean(width) / mean(height) / mean(typical)
    factor = width / (aspect * mean(height))[number]
    pitch = (x[1:] - x[:-1]) / ((width[1:] + width[:-1]) / 2)
    neighbours = several[1:] & (number[1:] == number[:-1])
    offset_y = (dy - slope[number] * dx) / mean(height)[number]

    def by_length(values: np.ndarray, lengths: tuple[int, ...]) -> dict[str, list[int]]:
        """Per length; the last one stands for the longer ones, too, which are few."""
        longest = np.minimum(count, lengths[-1])
        return {str(k): _quantiles(values[kept & (longest == k)]) for k in lengths}

    return {
        "source": SOURCE,
        "numbers": int(kept.sum()),
        # how many numbers have 1 to 5 digits
        "lengths": np.bincount(count[kept], minlength=LONGEST + 1)[1:].tolist(),
        # how often each digit stands alone, leads a longer number, follows
        "single": np.bincount(label[shown & (count[number] == 1)], minlength=10).tolist(),
        "leading": np.bincount(label[several & (place == 0)], minlength=10).tolist(),
        "following": np.bincount(label[several & (place > 0)], minlength=10).tolist(),
        # width of a usual digit in heights, by length of the number
        "aspect": by_length(aspect, (1, 2, 3, 4)),
        # width of a digit in widths of a usual one: the digit 1, all others
        "width": {"one": _quantiles(factor[several & one]), "other": _quantiles(factor[several & ~one])},
        # from a digit's centre to the next one's in mean widths of the two: 1000 if the boxes touch
        "pitch": _quantiles(pitch[neighbours]),
        # rise of the line through the centres, y downwards, by length
        "slope": by_length(slope, (2, 3, 4)),
        # how far below that line a digit's centre lies in heights, in numbers of 3 digits and more
        "offset": _quantiles(offset_y[several & (count[number] > 2)]),
        # height of the digits in thousandths of an original pixel: how sharp the number can be
        "height": _quantiles(mean(height)[kept]),
    }


def _quantiles(values: np.ndarray) -> list[int]:
    at = (2 * np.arange(KNOTS) + 1) * len(values) // (2 * KNOTS)
    return np.rint(1000 * np.sort(values)[at]).astype(int).tolist()


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """offset, box and label of the training split."""
    with open_hdf5(path) as file:
        return file["train/offset"][()], file["train/box"][()].astype(np.int64), file["train/label"][()]


def to_text(summary: dict[str, Any]) -> str:
    """JSON with a list a line."""
    return json.dumps(summary, indent=1).replace(",\n   ", ", ").replace(",\n  ", ", ") + "\n"


if __name__ == "__main__":
    print(to_text(measure(*read(Path(sys.argv[1])))), end="")
