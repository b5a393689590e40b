"""Figure 3 of RAM (Mnih et al. 2014, arXiv 1406.6247): where a model looked, and what it saw there.

Legend: M samples, B images, N glimpses, K classes, C channels, k scales, g glimpse width in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from attn_cli.files import write_atomically
from attn_cli.pictures import drawing
from attn_cli.pictures.drawing import FAINT, INK, PAGE, RIGHT, SENSOR, WRONG, compose_glimpse

if TYPE_CHECKING:
    from torch import Tensor

    from attn_cli.models.trace import Trace

__all__ = ["compose_glimpse", "glimpse_path_figure"]

SIDE = 176  # what the longer side of an image is enlarged to, nearly, in pixels of the page
GAP = drawing.REACH + 1  # between panels: room for a circle at the border of the image
HEADING = 20  # height of a line of text
CAPTION = HEADING + 7  # above a row, out of the way of a circle at the border
END = -1  # stands for the terminal class
NARROWEST = 330  # a page with one glimpse still needs room for its caption


def glimpse_path_figure(
    images: Tensor,
    trace: Trace,
    labels: Tensor | Sequence[Any],
    class_names: Sequence[str],
    path: Path | str,
) -> Path:
    """One row per image: the image with the first path over it (green: right, red: wrong), then its N glimpses.

    images (B, C, H, W) uint8, labels (B,) or of sequences (B, S), trace recorded, all of the same B images. Of a
    sequence the glimpses up to the end that was read are drawn, and on the last one of each target what was read
    there. Where a model chooses the size of what it looks at the regions are drawn, too, of Gaussian grids as thick as
    the filters are wide; of masks no path. Writes a PNG and returns its path.
    Errors: `ValueError` if the trace was not recorded or is of other images.
    """
    return _write_png(_page(images, trace, labels, class_names), path)


def readers_figure(
    images: Tensor,
    readers: Mapping[str, tuple[Trace, Any]],
    class_names: Sequence[str],
    path: Path | str,
) -> Path:
    """Several readers of the same images side by side, each as `glimpse_path_figure` draws it; `readers` has by heading
    the recorded trace and the labels in that reader's order.
    """
    pages = {name: _page(images, *reader, class_names) for name, reader in readers.items()}
    return _write_png(drawing.side_by_side(pages), path)


def _write_png(page: Image.Image, path: Path | str) -> Path:
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return write_atomically(path, buffer.getvalue())


def _page(images: Tensor, trace: Trace, labels: Tensor | Sequence[Any], class_names: Sequence[str]) -> Image.Image:
    pixels, truths = drawing.array(images), drawing.array(labels)
    locations, patches = (values[0] for values in drawing.recorded(trace, "locations", "patches"))
    logits = drawing.array(trace.logits)[0]
    if not len(pixels) == len(truths) == len(locations) or not len(pixels):
        raise ValueError(
            f"{len(pixels)} images, {len(truths)} labels and the paths of {len(locations)} images do not match."
        )

    count, _, height, width = pixels.shape
    answers = [drawing.answer(logits[b], truths[b], drawing.used(trace, b)) for b in range(count)]
    glimpses = max(answer.glimpses for answer in answers)
    pace = patches.shape[1] // (logits.shape[1] if logits.ndim == 3 else 1)  # glimpses for one target
    zoom = drawing.zoom_to(height, width, SIDE)
    first = drawing.enlarge(drawing.to_image(pixels[0].transpose(1, 2, 0)), zoom).size
    side = min(max(first), SIDE + 24)
    whole = max(compose_glimpse(patches[0, 0]).shape[:2])
    glimpse_zoom = side / whole if whole > side else side // whole  # a whole number wherever it can be
    glimpse_side = max(1, round(whole * glimpse_zoom))

    regions = _sized(trace)
    column = [GAP, *(GAP + first[0] + GAP + 2 + t * (glimpse_side + 8) for t in range(glimpses))]
    page_width = max(NARROWEST, column[-1] + glimpse_side + GAP)
    tallest = max(first[1], glimpse_side)
    pitch = CAPTION + tallest + GAP
    top = HEADING + 3
    page = Image.new("RGB", (page_width, top + count * pitch + HEADING + 2), PAGE)
    draw = ImageDraw.Draw(page)

    small = drawing.font(12)
    for t in range(-1, glimpses):
        middle = column[t + 1] + (glimpse_side if t >= 0 else first[0]) / 2
        text = "image" if t < 0 else f"glimpse {t + 1}" if glimpse_side > 64 else str(t + 1)
        draw.text((middle, 6), text, FAINT, small, anchor="mt")

    for b, answer in enumerate(answers):
        caption_y = top + b * pitch
        caption(draw, caption_y, page_width, answer, class_names)
        y = caption_y + CAPTION
        picture = drawing.enlarge(drawing.to_image(pixels[b].transpose(1, 2, 0)), zoom)
        if regions:
            boxes = drawing.recorded(trace, "boxes")[0][0, b]
            for t in range(answer.glimpses):
                line = 2 if trace.sigmas is None else drawing.thickness(trace.sigmas[0, b, t].item(), zoom)
                drawing.draw_region(picture, boxes[t, 0] * zoom, SENSOR[t % len(SENSOR)], line)
        drawing.place(page, picture, column[0], y)
        for t in range(answer.glimpses):
            seen = drawing.to_image(compose_glimpse(patches[b, t]))
            drawing.place(page, drawing.enlarge(seen, glimpse_zoom), column[t + 1], y)
            if logits.ndim == 3 and (t + 1) % pace == 0:
                s = t // pace
                said, truth = ([*labels, END][: s + 1][s:] for labels in (answer.said, answer.truth))
                text = "end" if said == [END] else drawing.class_name(class_names, said[0])
                _stamp(draw, column[t + 1], y, text, said == truth)
        places = drawing.to_pixels(locations[b, : answer.glimpses], height, width) * zoom + (column[0], y)
        if trace.masks is None:  # which look everywhere
            drawing.draw_path(page, places, RIGHT if answer.right else WRONG)
    _legend(page, draw, page.height - HEADING)
    return page


def _sized(trace: Trace) -> bool:
    """Whether the size of the regions was chosen: it tells something, and they are drawn."""
    if trace.sigmas is not None or trace.magnifications is not None:
        return True
    boxes = drawing.recorded(trace, "boxes")[0]
    sides = boxes[..., 2:] - boxes[..., :2]  # (M, B, N, k, 2) of a retina of pixels always the same
    sides = sides.reshape(-1, *sides.shape[-2:])
    return bool((sides.max(0) - sides.min(0)).max() > 0.5)


def _stamp(draw: ImageDraw.ImageDraw, x: int, y: int, said: str, right: bool) -> None:
    """What was read, in the corner of a glimpse."""
    face = drawing.font(13, bold=True)
    width = round(face.getlength(said)) + 8
    draw.rectangle((x, y, x + width, y + HEADING - 3), fill=RIGHT if right else WRONG)
    draw.text((x + width / 2, y + HEADING / 2 - 1), said, PAGE, face, anchor="mm")


def caption(
    draw: ImageDraw.ImageDraw, y: int, page_width: int, answer: drawing.Answer, class_names: Sequence[str]
) -> None:
    """ "✓ truth 7, predicted 7 (99.1 %)"; long names are cut, the probability never."""
    plain, bold = drawing.font(13), drawing.font(13, bold=True)
    mark = "✓ " if answer.right else "✗ "
    names = [
        " ".join(drawing.class_name(class_names, label) for label in labels) or "nothing"
        for labels in (answer.truth, answer.said)
    ]
    sentence = f"truth {{}}, predicted {{}} ({drawing.percent(answer.chance)})"
    start = GAP + bold.getlength(mark)
    room = page_width - GAP - start - plain.getlength(sentence.format("", ""))
    wanted = [plain.getlength(name) for name in names]
    if sum(wanted) > room:  # a short name leaves its share to the other
        limits = [max(room / 2, room - wanted[1]), max(room / 2, room - wanted[0])]
        names = [drawing.shorten(name, plain, limit) for name, limit in zip(names, limits, strict=True)]
    middle = y + HEADING / 2 - 2
    draw.text((GAP, middle), mark, RIGHT if answer.right else WRONG, bold, anchor="lm")
    draw.text((start, middle), sentence.format(*names), INK, plain, anchor="lm")


def _legend(page: Image.Image, draw: ImageDraw.ImageDraw, y: int) -> None:
    face = drawing.font(11)
    middle = y + HEADING // 2 - 1
    x = GAP
    for text, colour in (("first glimpse", None), ("last glimpse", None), ("right", RIGHT), ("wrong", WRONG)):
        if colour:
            draw.line((x, middle, x + 16, middle), colour, drawing.LINE)
        elif text.startswith("first"):
            draw.ellipse((x + 3, middle - 5, x + 13, middle + 5), fill=FAINT)
        else:
            draw.ellipse((x + 2, middle - 6, x + 14, middle + 6), outline=FAINT, width=2)
        draw.text((x + 20, middle), text, FAINT, face, anchor="lm")
        x += 20 + round(face.getlength(text)) + 12
