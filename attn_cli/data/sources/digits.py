"""The embedded set: digits rendered from the fonts that matplotlib ships, so that nothing is downloaded.

28×28, white on black with an exactly black background (so that scenes show no frame around a digit). Varied in font,
size, width, slant, rotation, stroke thickness, position, brightness and noise on the ink; a pure function of SEED for
given versions of Pillow, FreeType and matplotlib, which `origin` records.

Glyphs are rendered once per font, digit and thickness at about twice the final resolution; an image is one affine
transform of a glyph, averaged over 2×2 pixels. All arithmetic after the transform is on integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, features
from PIL import __version__ as pillow_version

from attn_cli.data.keys import draws
from attn_cli.data.prepared import Prepared

SIDE = 28
COUNTS = {"train": 10_000, "validation": 2_000, "test": 2_000}
SEED = 1
# The sha256 of the arrays, rendered with the versions named: elsewhere it may differ by rounding.
RENDERED_WITH = "Pillow 13.0.0, FreeType 2.14.3, matplotlib 3.11.2"
RECORDED_SHA256 = "652fc3248d8b6ccdb9b6b5c7ec70850b7b4c38aa49fce8104091aadece3aaddc"

# Text fonts with lining digits. Left out: sizes of brackets (STIXSiz*, STIXNonUni), symbols (cmsy10, cmex10), cmmi10
# (old-style digits, smaller and lowered), fonts without digits and the box font LastResort.
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmb10",
    "cmr10",
    "cmss10",
    "cmti10",
    "cmtt10",
)
OVER = 2  # glyphs and transforms at this multiple of the final resolution
GLYPH = 40  # height of a glyph in those pixels
THICKNESS = (-1, 0, 1, 2)  # stroke widened by so many of those pixels on each side


def build() -> Prepared:
    """All splits; takes a few seconds."""
    glyphs = list(_glyphs())
    images, labels = {}, {}
    for split, count in COUNTS.items():
        images[split], labels[split] = _render(glyphs, count, split)
    return Prepared("digits", f"rendered with {versions()}, seed {SEED}", tuple("0123456789"), images, labels)


def versions() -> str:
    import matplotlib

    return f"Pillow {pillow_version}, FreeType {features.version('freetype2')}, matplotlib {matplotlib.__version__}"


def _glyphs() -> Iterator[Image.Image]:
    """8-bit masks, cropped to the ink, for every font, digit and thickness, in that order."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in FONTS:
        # The basic layout does not depend on whether Pillow was built with Raqm.
        path = str(folder / f"{name}.ttf")
        trial = ImageFont.truetype(path, 100, layout_engine=ImageFont.Layout.BASIC).getbbox("0")
        size = round(100 * GLYPH / (trial[3] - trial[1]))
        font = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
        for digit in "0123456789":
            canvas = Image.new("L", (3 * GLYPH, 3 * GLYPH))
            ImageDraw.Draw(canvas).text((GLYPH, GLYPH // 2), digit, font=font, fill=255)
            for thickness in THICKNESS:
                thick = canvas
                if thickness < 0:
                    # Thinned by half a pixel's worth: a hairline would vanish under a full erosion.
                    thick = Image.blend(canvas, canvas.filter(ImageFilter.MinFilter(3)), 0.6)
                elif thickness:
                    thick = canvas.filter(ImageFilter.MaxFilter(2 * thickness + 1))
                yield thick.crop(canvas.getbbox() if thickness <= 0 else thick.getbbox())


def _render(glyphs: list[Image.Image], count: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, 28, 28) and labels uint8 (count,); classes in turn, so that every split is balanced."""
    labels = (np.arange(count) % 10).astype(np.uint8)
    numbers = draws((count, 10), "digits", SEED, split)
    fonts = (numbers[:, 0] * len(FONTS)) >> 31
    thickness = (numbers[:, 1] * len(THICKNESS)) >> 31
    unit = numbers[:, 2:] / 2**31  # [0, 1)
    height = (18 + 4 * unit[:, 0]) * OVER  # of the upright glyph, in pixels of the transform
    stretch = 0.85 + 0.4 * unit[:, 1]  # of the width
    slant = 0.4 * (unit[:, 2] - 0.5)
    angle = math.radians(16) * (unit[:, 3] - 0.5)
    shift = OVER * 4 * (unit[:, 4:6] - 0.5)  # ±2 pixels of the image
    side = SIDE * OVER
    large = np.empty((count, side, side), np.uint8)
    for i in range(count):
        glyph = glyphs[(fonts[i] * 10 + labels[i]) * len(THICKNESS) + thickness[i]]
        scale = GLYPH / height[i]
        cos, sin = math.cos(angle[i]), math.sin(angle[i])
        # Pixel (X, Y) of the image reads the glyph at A (X − cX, Y − cY) + its centre.
        a, b = scale / stretch[i] * (cos + slant[i] * sin), scale / stretch[i] * (sin - slant[i] * cos)
        d, e = -scale * sin, scale * cos
        x, y = side / 2 + shift[i, 0], side / 2 + shift[i, 1]
        matrix = (a, b, glyph.width / 2 - a * x - b * y, d, e, glyph.height / 2 - d * x - e * y)
        large[i] = glyph.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    ink = large.reshape(count, SIDE, OVER, SIDE, OVER).sum((2, 4), dtype=np.int64) // OVER**2
    bright = 160 + (96 * (numbers[:, 8] >> 23) >> 8)  # 160 to 255
    noise = _noise(ink.shape, split) * ((numbers[:, 9] * 3) >> 31)[:, None, None]
    grey = (ink * bright[:, None, None] // 255) * (256 + noise) // 256
    return np.clip(grey, 0, 255).astype(np.uint8), labels


def _noise(shape: tuple[int, ...], split: str) -> np.ndarray:
    """Integers with mean 0 and standard deviation 21 (of 256), nearly normal: a sum of uniform bytes' halves."""
    words = draws(shape, "digits noise", SEED, split)
    bytes_ = sum((words >> (8 * k)) & 0xFF for k in range(3))  # 31 random bits hold three whole bytes
    return (np.asarray(bytes_) - 382) // 6
