"""What the glimpse pictures share: pixels from tensors, enlarging, text and the path over an image.

Pillow draws here, so that a known place of a picture has a known colour and an animation needs no plotting library.

Legend: N glimpses, C channels, k scales, g glimpse width in pixels, H × W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
RIGHT: Colour = (40, 200, 80)
WRONG: Colour = (240, 60, 50)
INK: Colour = (30, 34, 40)
FAINT: Colour = (110, 116, 125)
FRAME: Colour = (190, 194, 200)
PAGE: Colour = (255, 255, 255)
SENSOR: tuple[Colour, ...] = ((255, 196, 0), (255, 145, 0), (235, 95, 200), (120, 130, 255))  # finest patch first

LINE = 3  # width of the path in pixels of the page
DISC = 5  # radius of the filled circle
RING = 9  # outer radius of the open circle: the disc fits inside, so both show where they coincide
REACH = RING + 2  # how far a mark extends from its place, with its dark edge
_FINER = 4  # marks are drawn this much larger and scaled down, which smooths their edges


def array(values: Any) -> np.ndarray:
    """A tensor (any device and precision, with or without a gradient) or an array as a NumPy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.float()  # NumPy has no bfloat16
        return values.numpy()
    return np.asarray(values)


def recorded(trace: Any, *fields: str) -> list[np.ndarray]:
    """Fields of a trace as arrays. Errors: `ValueError` if the rollout did not record one."""
    for field in fields:
        if getattr(trace, field) is None:
            raise ValueError(f"The trace has no {field}: run the rollout with record=True.")
    return [array(getattr(trace, field)) for field in fields]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def compose_glimpse(patches: Any) -> np.ndarray:
    """One glimpse at its true resolution: patches (k, C, g, g), finest first → (G, G, C) with G = g·2^(k−1). Those of a
    model that sees the whole image are as high and as wide as that.

    Patch j covers g·2^j pixels around the common centre; it is enlarged to that (nearest neighbour) and the finer ones
    lie over it, so that the centre shows full resolution. Values and their type are kept. RAM, figure 3.
    """
    patches = array(patches)
    scales, channels, *size = patches.shape
    composed = np.empty((*(side * 2 ** (scales - 1) for side in size), channels), patches.dtype)
    for scale in reversed(range(scales)):
        enlarged = patches[scale].repeat(2**scale, axis=1).repeat(2**scale, axis=2).transpose(1, 2, 0)
        top, left = (whole // 2 - part // 2 for whole, part in zip(composed.shape, enlarged.shape[:2], strict=False))
        composed[top : top + enlarged.shape[0], left : left + enlarged.shape[1]] = enlarged
    return composed


@dataclass(frozen=True)
class Answer:
    """What a path through one image said, and what it should have: lists of labels, one long for a single label."""

    said: list[int]
    truth: list[int]
    chance: float  # probability of all that was said
    glimpses: int  # that were used; with sequences those up to the end that was said

    @property
    def right(self) -> bool:
        return self.said == self.truth


def answer(logits: np.ndarray, truth: Any, glimpses: int) -> Answer:
    """From logits (K,) and an integer, or of a sequence (S, K + 1) and labels (S,) with the terminal class and -1."""
    chances = probabilities(logits)
    best = chances.argmax(-1)
    if logits.ndim == 1:
        return Answer([int(best)], [int(truth)], float(chances[best]), glimpses)
    targets, end = logits.shape[0], logits.shape[1] - 1
    answers = best.tolist()
    used = answers.index(end) + 1 if end in answers else targets
    said = [label for label in answers[:used] if label != end]
    chance = float(chances.max(-1)[:used].prod())
    return Answer(said, [int(label) for label in truth if 0 <= label != end], chance, used * glimpses // targets)


def used(trace: Any, index: int) -> int:
    """Glimpses of the first path until its answer: all of them, or what a model that stops by itself used."""
    return trace.locations.shape[2] if trace.glimpses is None else int(trace.glimpses[0, index])


def to_image(pixels: np.ndarray) -> Image.Image:
    """(H, W, C) of grey or RGB, uint8 or floats in [0, 1], as an RGB image."""
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"Pictures need pixels (H, W, 1) or (H, W, 3), not {pixels.shape}.")
    if pixels.dtype != np.uint8:
        pixels = np.round(np.nan_to_num(pixels).clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))


def zoom_to(height: int, width: int, side: int) -> float:
    """The factor that brings the longer side near `side`: a whole number, so that all pixels stay equal squares.

    Below 1 for images that are larger than 1.5 times `side`.
    """
    longest = max(height, width)
    return side / longest if longest > 1.5 * side else float(max(1, round(side / longest)))


def enlarge(image: Image.Image, zoom: float) -> Image.Image:
    """Nearest neighbour when enlarging, averages when shrinking."""
    size = max(1, round(image.width * zoom)), max(1, round(image.height * zoom))
    return image.resize(size, Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.BOX)


def bordered(image: Image.Image, border: int, colour: Colour) -> Image.Image:
    """With room around it for what of the sensor reaches out of it."""
    picture = Image.new("RGB", (image.width + 2 * border, image.height + 2 * border), colour)
    picture.paste(image, (border, border))
    return picture


def place(page: Image.Image, image: Image.Image, x: int, y: int) -> None:
    """Put an image on the page, in a thin frame."""
    page.paste(image, (x, y))
    ImageDraw.Draw(page).rectangle((x - 1, y - 1, x + image.width, y + image.height), outline=FRAME)


def to_pixels(locations_N2: np.ndarray, height: int, width: int) -> np.ndarray:
    """Locations (x, y) in [-1, 1] → places in pixels of the image; its edges are at 0 and its width or height. What
    lies outside is put at the edge, or a page could grow without end.
    """
    return (np.asarray(locations_N2, float).clip(-1, 1) + 1) / 2 * (width, height)


def draw_region(picture: Image.Image, box_4: np.ndarray, colour: Colour, width: int = 2) -> None:
    """The outline of x0, y0, x1, y1 in pixels of the picture, x1 and y1 exclusive."""
    x0, y0, x1, y1 = (round(float(v)) for v in box_4)
    ImageDraw.Draw(picture).rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=width)


def thickness(sigma: float, zoom: float) -> int:
    """Of the outline of a grid of Gaussian filters: their standard deviation, in pixels of the page, within bounds."""
    return int(np.clip(round(float(sigma) * zoom), 1, 8))


def draw_path(page: Image.Image, places_N2: np.ndarray, colour: Colour) -> None:
    """Straight lines through the places; filled circle at the first, open circle at the last. A dark edge keeps the
    path visible on any image. The area that the marks need is smoothed on its own: pages can be long.
    """
    places = np.asarray(places_N2, float)
    left, top = (int(v) for v in np.floor(places.min(0) - REACH))
    right, bottom = (int(v) for v in np.ceil(places.max(0) + REACH))
    layer = Image.new("RGBA", ((right - left) * _FINER, (bottom - top) * _FINER))
    draw = ImageDraw.Draw(layer)
    points = [(float(x), float(y)) for x, y in (places - (left, top)) * _FINER]

    def disc(point: tuple[float, float], radius: float, fill: tuple[int, int, int, int]) -> None:
        x, y, r = *point, radius * _FINER
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    edge, paint, nothing = (0, 0, 0, 170), (*colour, 255), (0, 0, 0, 0)
    for width, fill in ((LINE + 2, edge), (LINE, paint)):
        if len(points) > 1:
            draw.line(points, fill=fill, width=width * _FINER)
        for point in points:  # round joints
            disc(point, width / 2, fill)
    for radius, fill in ((RING + 1, edge), (RING, paint), (RING - 3, edge), (RING - 4, nothing)):
        disc(points[-1], radius, fill)
    disc(points[0], DISC + 1, edge)
    disc(points[0], DISC, paint)
    small = layer.resize((right - left, bottom - top), Image.Resampling.BOX)
    page.paste(small, (left, top), small)


def side_by_side(pages: Mapping[str, Image.Image]) -> Image.Image:
    """Pages from left to right, each under its name."""
    heading = 26
    width, height = sum(page.width for page in pages.values()), max(page.height for page in pages.values())
    whole, x = Image.new("RGB", (width, heading + height), PAGE), 0
    for name, page in pages.items():
        ImageDraw.Draw(whole).text((x + page.width / 2, heading / 2), name, INK, font(15, bold=True), anchor="mm")
        whole.paste(page, (x, heading))
        x += page.width
    return whole


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def shorten(text: str, face: ImageFont.FreeTypeFont, room: float) -> str:
    """The text, cut with an ellipsis to fit `room` pixels."""
    text = " ".join(text.split())
    if face.getlength(text) <= room:
        return text
    while text and face.getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"


def class_name(names: Sequence[str], index: int) -> str:
    return str(names[index]) if 0 <= index < len(names) else str(index)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
