"""Games as pictures: one animation a game, with the retina drawn on every frame, and a sheet of many games.

Legend: M samples, B games, N frames that are seen and acted upon, k scales, C channels, g glimpse width in pixels.
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
from attn_cli.pictures.drawing import FAINT, INK, PAGE, RIGHT, SENSOR, WRONG, Colour, compose_glimpse

if TYPE_CHECKING:
    from attn_cli.models.trace import Trace

FRAME_MS, LAST_MS = 120, 1500  # how long a frame and the last screen are shown
SIDE = 240  # the screen, nearly, in pixels of the page
HEADING = 24  # height of a line of text
GAP = drawing.REACH + 1
COLUMNS = 4  # games in a row of the sheet
OUTSIDE: Colour = (90, 96, 106)  # behind the part of the retina that reaches out of the screen


def game_animation(trace: Trace, index: int, actions: Sequence[str], path: Path | str) -> Path:
    """Game `index` of the recorded trace, frame by frame: the screen with the patches of the retina, finest yellow,
    what the retina delivers, and the probabilities of the `actions`, the one that was taken marked. The last page is
    the screen on which the game ended. Writes a GIF that loops and returns its path.
    Errors: `ValueError` if the trace was not recorded or is of no game.
    """
    fields = drawing.recorded(trace, "screens", "patches", "boxes", "step_logits", "actions", "rewards")
    screens, patches, boxes, logits, taken, rewards = (values[0, index] for values in fields)
    chances = drawing.probabilities(logits)
    height, width = screens.shape[-2:]
    zoom = drawing.zoom_to(height, width, SIDE)
    margin = max(0, -int(boxes[..., :2].min()), int((boxes[..., 2:] - (width, height)).max()))  # pixels of the screen
    seen_side = compose_glimpse(patches[0]).shape[0]
    seen_zoom = SIDE // seen_side
    pages = []
    for t, screen in enumerate(screens):
        last = t == len(taken)
        shown = drawing.enlarge(drawing.to_image(screen.transpose(1, 2, 0)), zoom)
        picture = drawing.bordered(shown, round(margin * zoom), OUTSIDE)
        glimpse = Image.new("RGB", (seen_side * seen_zoom,) * 2, PAGE)
        if not last:
            for scale in reversed(range(boxes.shape[1])):
                edges = (boxes[t, scale] + margin) * zoom
                drawing.draw_region(picture, edges, SENSOR[scale % len(SENSOR)])
            glimpse = drawing.enlarge(drawing.to_image(compose_glimpse(patches[t])), seen_zoom)
        across = picture.width + glimpse.width + 3 * GAP
        page = Image.new("RGB", (across, picture.height + 2 * HEADING + GAP), PAGE)
        draw = ImageDraw.Draw(page)
        end, colour = ("caught", RIGHT) if rewards > 0.5 else ("missed", WRONG)
        title = end if last else f"frame {t + 1} of {len(taken)}"
        draw.text((GAP, HEADING / 2), title, colour if last else INK, drawing.font(14, bold=True), anchor="lm")
        drawing.place(page, picture, GAP, HEADING)
        if not last:
            drawing.place(page, glimpse, picture.width + 2 * GAP, HEADING)
        y = HEADING + picture.height + GAP + HEADING / 2
        for a, name in enumerate(actions if not last else ()):
            x, chosen = GAP + a * (across - 2 * GAP) / len(actions), a == taken[t]
            text = f"{'▶ ' if chosen else ''}{name} {drawing.percent(float(chances[t, a]))}"
            draw.text((x, y), text, INK if chosen else FAINT, drawing.font(12, bold=chosen), anchor="lm")
        pages.append(page.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE))
    durations = [FRAME_MS] * (len(pages) - 1) + [LAST_MS]
    buffer = io.BytesIO()
    pages[0].save(buffer, "GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0, optimize=False)
    return write_atomically(path, buffer.getvalue())


def games_figure(trace: Trace, path: Path | str) -> Path:
    """All games of a recorded trace on one sheet: every place where something was lit, and the path of the gaze, green
    where the ball was caught, red where it was missed. Writes a PNG and returns its path.
    Errors: `ValueError` if the trace was not recorded or is of no game.
    """
    fields = drawing.recorded(trace, "screens", "locations", "rewards")
    screens, locations, rewards = (values[0] for values in fields)
    height, width = screens.shape[-2:]
    zoom = drawing.zoom_to(height, width, SIDE)
    columns = min(COLUMNS, len(screens))
    across, down = round(width * zoom) + 2 * GAP, round(height * zoom) + 2 * GAP + HEADING
    page = Image.new("RGB", (columns * across, -(-len(screens) // columns) * down), PAGE)
    draw = ImageDraw.Draw(page)
    for b, reward in enumerate(rewards):
        x, y = (b % columns) * across + GAP, b // columns * down
        said, colour = ("caught", RIGHT) if reward > 0.5 else ("missed", WRONG)
        draw.text((x, y + HEADING / 2 + 2), said, colour, drawing.font(13, bold=True), anchor="lm")
        trail = screens[b].astype(np.float32)
        trail = np.maximum(trail[-1], 0.6 * trail.max(0))  # the last screen, over all before it
        picture = drawing.enlarge(drawing.to_image(trail.transpose(1, 2, 0) / 255), zoom)
        drawing.place(page, picture, x, y + HEADING + GAP // 2)
        places = drawing.to_pixels(locations[b], height, width) * zoom
        drawing.draw_path(page, places + (x, y + HEADING + GAP // 2), colour)
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return write_atomically(path, buffer.getvalue())
