"""Videos as strips: frame by frame where a model looked, and what it saw there.

Legend: M samples, B videos, N frames and glimpses, C channels, k scales, g glimpse width in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from attn_cli.files import write_atomically
from attn_cli.pictures import drawing
from attn_cli.pictures.drawing import FAINT, PAGE, RIGHT, SENSOR, WRONG, compose_glimpse
from attn_cli.pictures.paths import CAPTION, GAP, HEADING, NARROWEST, caption

if TYPE_CHECKING:
    from torch import Tensor

    from attn_cli.models.trace import Trace

MOST = 10  # frames of a video that are drawn, from the first to the last
SIDE = 120  # a frame, nearly, in pixels of the page
BETWEEN = 8  # frames


def strips_figure(videos: Tensor, trace: Trace, labels: Tensor, class_names: Sequence[str], path: Path | str) -> Path:
    """One strip per video: at most ten of the frames that the first path used, evenly spread, with the patches of the
    retina or the region of the grid, finest yellow, and the centre of the gaze, green where the answer is right, red
    where it is wrong; under each frame the glimpse.

    videos (B, N, C, H, W) uint8, labels (B,), trace recorded, all of the same B videos. Writes a PNG and returns its
    path.
    Errors: `ValueError` if the trace was not recorded.
    """
    fields = drawing.recorded(trace, "locations", "patches", "boxes", "logits")
    locations, patches, boxes, logits = (values[0] for values in fields)
    pixels, truths = drawing.array(videos), drawing.array(labels)
    answers = [drawing.answer(logits[b], truths[b], drawing.used(trace, b)) for b in range(len(pixels))]
    count, (height, width) = min(MOST, max(answer.glimpses for answer in answers)), pixels.shape[-2:]
    zoom = drawing.zoom_to(height, width, SIDE)
    across, down = round(width * zoom), round(height * zoom)
    seen_zoom = across / max(compose_glimpse(patches[0, 0]).shape[:2])
    pitch = CAPTION + HEADING + down + BETWEEN + across + GAP
    page_width = max(NARROWEST, 2 * GAP + count * (across + BETWEEN) - BETWEEN)
    page = Image.new("RGB", (page_width, len(pixels) * pitch), PAGE)
    draw = ImageDraw.Draw(page)
    for b, answer in enumerate(answers):
        top = b * pitch
        caption(draw, top + 3, page.width, answer, class_names)
        shown = np.linspace(0, answer.glimpses - 1, min(count, answer.glimpses)).round().astype(int)
        for column, t in enumerate(shown.tolist()):
            x, y = GAP + column * (across + BETWEEN), top + CAPTION + HEADING
            draw.text((x + across / 2, y - HEADING / 2), f"frame {t + 1}", FAINT, drawing.font(11), anchor="mm")
            picture = drawing.enlarge(drawing.to_image(pixels[b, t].transpose(1, 2, 0)), zoom)
            for scale in reversed(range(boxes.shape[2])):
                drawing.draw_region(picture, boxes[b, t, scale] * zoom, SENSOR[scale % len(SENSOR)])
            centre = drawing.to_pixels(locations[b, t : t + 1], height, width) * zoom
            drawing.draw_path(picture, centre, RIGHT if answer.right else WRONG)
            drawing.place(page, picture, x, y)
            glimpse = drawing.to_image(compose_glimpse(patches[b, t]))
            drawing.place(page, drawing.enlarge(glimpse, seen_zoom), x, y + down + BETWEEN)
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return write_atomically(path, buffer.getvalue())
