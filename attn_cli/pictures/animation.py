"""The glimpses of one image as an animated GIF: where the sensor is, what it delivers, what the model then believes.

Legend: M samples, B images, N glimpses, K classes, C channels, k scales, g glimpse width in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from attn_cli.files import write_atomically
from attn_cli.pictures import drawing
from attn_cli.pictures.drawing import FAINT, FRAME, INK, PAGE, RIGHT, SENSOR, WRONG, Colour, compose_glimpse

if TYPE_CHECKING:
    from torch import Tensor

    from attn_cli.models.trace import Trace

GLIMPSE_MS, FRAME_MS, LAST_MS = 700, 250, 2800  # how long a glimpse, a frame of a video and the last one are shown

SIDE = 280  # the image with its margin, nearly, in pixels of the page
GLIMPSE_SIDE = 192
GAP = drawing.REACH + 2
HEADING = 22
BAR, BAR_ROOM, SHARE_ROOM, NAME_ROOM = 20, 150, 58, 130  # a bar's pitch and length; its text, its name at most
MOST_BARS = 12
OUTSIDE = (226, 228, 232)  # behind sensor boxes that reach out of the image
EMPTY = (243, 244, 247)  # a bar's unfilled part


def glimpse_animation(
    image: Tensor,
    trace: Trace,
    index: int,
    label: Any,
    class_names: Sequence[str],
    path: Path | str,
) -> Path:
    """One frame per glimpse of the first path through `image` (C, H, W) uint8, which is image `index` of the recorded
    trace; or of the video (N, C, H, W), whose frames change with the glimpses.

    Each frame shows the image with the sensor boxes and the path so far (green while the prediction is right, red while
    it is wrong), the composed glimpse, and the probabilities after it with the truth marked. Beyond 12 classes: those
    that ever came first, then the likeliest, and always the truth. With sequences `label` is a row (S,), the truth is
    that of the target that is being read, the glimpses end where the reader does, and the title says what was read.
    Writes a GIF that loops and returns its path.
    Errors: `ValueError` if the trace was not recorded.
    """
    scene, locations = _scene(image, trace, index, label, class_names)
    pace = FRAME_MS if image.dim() == 4 else GLIMPSE_MS
    return _write_gif(scene.frames(locations), _palette([scene]), image.shape[-3] == 1, path, pace)


def readers_animation(
    image: Tensor,
    readers: Mapping[str, tuple[Trace, Any]],
    index: int,
    class_names: Sequence[str],
    path: Path | str,
) -> Path:
    """Several readers of one image side by side, each as `glimpse_animation` draws it; `readers` has by heading the
    recorded trace and the label in that reader's order. Who ends first waits for the others.
    """
    scenes = [_scene(image, trace, index, label, class_names) for trace, label in readers.values()]
    films = [scene.frames(locations) for scene, locations in scenes]
    pages = []
    for t in range(max(map(len, films))):
        pages.append(
            drawing.side_by_side({name: film[min(t, len(film) - 1)] for name, film in zip(readers, films, strict=True)})
        )
    return _write_gif(pages, _palette([scene for scene, _ in scenes]), image.shape[0] == 1, path, GLIMPSE_MS)


def _scene(
    image: Tensor, trace: Trace, index: int, label: Any, class_names: Sequence[str]
) -> tuple[_Scene, np.ndarray]:
    """What is drawn of one reader, and the locations (N, 2) of the glimpses that it used."""
    fields = drawing.recorded(trace, "locations", "patches", "boxes", "step_logits")
    locations, patches, boxes, logits = (values[0, index] for values in fields)
    answer = drawing.answer(drawing.array(trace.logits)[0, index], label, drawing.used(trace, index))
    pace, truths, titles, names = len(locations), [*answer.truth], [""] * len(locations), list(class_names)
    if trace.logits.dim() == 4:
        end = logits.shape[-1] - 1
        pace, names = len(locations) // trace.logits.shape[2], [*names[:end], "end"]
        truths += [end] * (answer.glimpses // pace)
        titles = [", read " + " ".join(names[k] for k in answer.said[: (t + 1) // pace]) for t in range(len(locations))]
    locations, patches, boxes, logits = (v[: answer.glimpses] for v in (locations, patches, boxes, logits))
    per_glimpse = [truths[t // pace] for t in range(answer.glimpses)]
    chances = drawing.probabilities(logits)
    sigmas = None if trace.sigmas is None else drawing.array(trace.sigmas)[0, index]
    everywhere = trace.masks is not None
    scene = _Scene.of(drawing.array(image), patches, boxes, chances, per_glimpse, titles, names, sigmas, everywhere)
    return scene, locations


def _write_gif(frames: list[Image.Image], palette: list[Colour], grey: bool, path: Path | str, pace: int) -> Path:
    indexed = [_to_palette(frame, palette, grey) for frame in frames]
    durations = [pace] * (len(frames) - 1) + [LAST_MS]
    buffer = io.BytesIO()
    indexed[0].save(buffer, "GIF", save_all=True, append_images=indexed[1:], duration=durations, loop=0, optimize=False)
    return write_atomically(path, buffer.getvalue())


@dataclass(frozen=True)
class _Scene:
    """Where everything goes; the same for all frames."""

    images: list[Image.Image]  # the image alone, or the frames, never larger than it is or is shown
    pictures: list[Image.Image]  # each of them enlarged, with its margin
    height: int
    width: int
    margin: int  # in pixels of the image
    zoom: float
    patches: np.ndarray  # (N, k, C, g, g)
    boxes: np.ndarray  # (N, k, 4)
    chances: np.ndarray  # (N, K)
    truths: list[int]  # of each glimpse
    titles: list[str]  # what follows the number of the glimpse
    classes: list[int]  # those with a bar
    names: list[str]
    glimpse_zoom: float
    glimpse_side: int
    name_room: int
    sigmas: np.ndarray | None  # (N,) of Gaussian grids, in pixels of the image
    everywhere: bool  # masks look everywhere: no box, no path

    @staticmethod
    def of(
        pixels: np.ndarray,
        patches: np.ndarray,
        boxes: np.ndarray,
        chances: np.ndarray,
        truths: list[int],
        titles: list[str],
        class_names: Sequence[str],
        sigmas: np.ndarray | None,
        everywhere: bool,
    ) -> _Scene:
        still = pixels[None] if pixels.ndim == 3 else pixels
        images = [drawing.to_image(frame.transpose(1, 2, 0)) for frame in still]
        width, height = images[0].size
        overhang = max(0, -int(boxes[..., :2].min()), int((boxes[..., 2:] - (width, height)).max()))
        margin = min(overhang + 1, max(height, width) // 4) if overhang else 0
        zoom = drawing.zoom_to(height + 2 * margin, width + 2 * margin, SIDE)
        border = round(margin * zoom)
        enlarged = [drawing.enlarge(image, zoom) for image in images]
        pictures = [drawing.bordered(image, border, OUTSIDE) for image in enlarged]

        whole = max(compose_glimpse(patches[0]).shape[:2])
        glimpse_zoom = GLIMPSE_SIDE / whole if whole > GLIMPSE_SIDE else GLIMPSE_SIDE // whole
        classes = _classes_to_show(chances, truths)
        face = drawing.font(13, bold=True)
        names = [drawing.shorten(drawing.class_name(class_names, k), face, NAME_ROOM) for k in classes]
        return _Scene(
            images=min(images, enlarged, key=lambda candidates: candidates[0].width),
            pictures=pictures,
            height=height,
            width=width,
            margin=margin,
            zoom=zoom,
            patches=patches,
            boxes=boxes,
            chances=chances,
            truths=truths,
            titles=titles,
            classes=classes,
            names=names,
            glimpse_zoom=glimpse_zoom,
            glimpse_side=max(1, round(whole * glimpse_zoom)),
            name_room=round(max(face.getlength(name) for name in names)),
            sigmas=sigmas,
            everywhere=everywhere,
        )

    @property
    def glimpse_x(self) -> int:
        return GAP + self.pictures[0].width + GAP + 4

    @property
    def bars_x(self) -> int:
        """Where names end and bars begin."""
        return self.glimpse_x + self.glimpse_side + 2 * GAP + 10 + self.name_room

    def background(self) -> Image.Image:
        """All that does not change."""
        width = self.bars_x + 8 + BAR_ROOM + SHARE_ROOM
        height = 2 * HEADING + max(self.pictures[0].height, self.glimpse_side, BAR * len(self.classes)) + GAP
        page = Image.new("RGB", (width, height), PAGE)
        draw = ImageDraw.Draw(page)
        for x, text in (
            (GAP, "image and sensor"),
            (self.glimpse_x, "glimpse"),
            (self.bars_x + 8, "probability (▶ truth)"),
        ):
            draw.text((x, HEADING + HEADING / 2 - 2), text, FAINT, drawing.font(12), anchor="lm")
        return page

    def frames(self, locations: np.ndarray) -> list[Image.Image]:
        """One page per glimpse; locations (N, 2)."""
        still, frames = self.background(), []
        for t in range(len(locations)):
            frame = still.copy()
            self.draw(frame, t, locations)
            frames.append(frame)
        return frames

    def draw(self, page: Image.Image, t: int, locations: np.ndarray) -> None:
        """Frame t (from 0)."""
        guess = int(self.chances[t].argmax())
        truth = self.truths[t]
        colour = RIGHT if guess == truth else WRONG
        draw = ImageDraw.Draw(page)
        title = f"Glimpse {t + 1} of {len(locations)}{self.titles[t]}"
        draw.text((GAP, HEADING / 2 + 3), title, INK, drawing.font(14, bold=True), anchor="lm")

        top = 2 * HEADING
        picture = self.pictures[min(t, len(self.pictures) - 1)].copy()
        for scale in () if self.everywhere else reversed(range(self.boxes.shape[1])):
            edges = (self.boxes[t, scale] + self.margin) * self.zoom
            width = 2 if self.sigmas is None else drawing.thickness(self.sigmas[t], self.zoom)
            drawing.draw_region(picture, edges, SENSOR[scale % len(SENSOR)], width)
        drawing.place(page, picture, GAP, top)
        if not self.everywhere:
            places = drawing.to_pixels(locations[: t + 1], self.height, self.width)
            drawing.draw_path(page, (places + self.margin) * self.zoom + (GAP, top), colour)

        seen = drawing.to_image(compose_glimpse(self.patches[t]))
        drawing.place(page, drawing.enlarge(seen, self.glimpse_zoom), self.glimpse_x, top)

        for row, (k, name) in enumerate(zip(self.classes, self.names, strict=True)):
            self._bar(draw, top + row * BAR, name, float(self.chances[t, k]), k == guess, k == truth)

    def _bar(self, draw: ImageDraw.ImageDraw, y: int, name: str, chance: float, guessed: bool, true: bool) -> None:
        """The truth has a bold name, a triangle and an outline of full length; the prediction has a coloured bar."""
        x, middle = self.bars_x, y + BAR / 2 - 1
        draw.text((x, middle), name, INK if true else FAINT, drawing.font(13, bold=true), anchor="rm")
        fill = (RIGHT if true else WRONG) if guessed else FRAME
        draw.rectangle((x + 8, y + 2, x + 8 + BAR_ROOM, y + BAR - 5), fill=EMPTY, outline=INK if true else None)
        length = round(BAR_ROOM * np.nan_to_num(chance))
        if length:
            draw.rectangle((x + 8, y + 2, x + 8 + length, y + BAR - 5), fill=fill, outline=INK if true else None)
        share = drawing.percent(chance)
        draw.text(
            (x + 8 + BAR_ROOM + 5, middle), share, INK if true or guessed else FAINT, drawing.font(12), anchor="lm"
        )
        if true:
            tip = x - self.name_room - 6
            draw.polygon([(tip - 9, middle - 5), (tip - 9, middle + 5), (tip - 2, middle)], fill=INK)


def _palette(scenes: Sequence[_Scene]) -> list[Colour]:
    """One for all frames, so that nothing flickers: the exact colours of the page and the marks, and those that serve
    the pixels of images and glimpses best.
    """
    fixed = [PAGE, INK, FAINT, FRAME, OUTSIDE, EMPTY, RIGHT, WRONG, *SENSOR]
    fixed += [(v, v, v) for v in range(0, 256, 17)]  # edges of letters
    parts = []
    for scene in scenes:
        parts += [*scene.images, *(drawing.to_image(compose_glimpse(patches)) for patches in scene.patches)]
    content = Image.new("RGB", (sum(part.width for part in parts), max(part.height for part in parts)))
    for i, part in enumerate(parts):
        content.paste(part, (sum(before.width for before in parts[:i]), 0))
    free = 256 - len(fixed)
    fitted = content.quantize(free, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).getpalette() or []
    return [*fixed, *zip(*[iter(fitted[: 3 * free])] * 3, strict=True)]  # type: ignore[list-item]


def _to_palette(frame: Image.Image, palette: list[Colour], grey: bool) -> Image.Image:
    """The frame in palette colours; dithered unless grey, where it would only add noise."""
    colours = Image.new("P", (1, 1))
    colours.putpalette([v for colour in palette for v in colour])
    indexed = frame.quantize(palette=colours, dither=Image.Dither.NONE if grey else Image.Dither.FLOYDSTEINBERG)
    # Pillow looks colours up coarsely, which turns white grey: a colour that is in the palette is set exactly.
    weights = (1 << 16, 1 << 8, 1)
    codes = np.asarray(frame).astype(np.int32) @ np.asarray(weights, np.int32)
    indices = np.array(indexed)
    for i, colour in reversed(list(enumerate(palette))):
        indices[codes == np.dot(colour, weights)] = i
    exact = Image.frombytes("P", frame.size, indices.tobytes())
    exact.putpalette(colours.getpalette() or [])
    return exact


def _classes_to_show(chances: np.ndarray, truths: Sequence[int]) -> list[int]:
    """All classes, or of more than 12 those that matter in any frame, in their own order."""
    count = chances.shape[1]
    if count <= MOST_BARS:
        return list(range(count))
    likeliest = np.argsort(-chances.max(0), kind="stable")
    first = dict.fromkeys([*truths, *reversed(chances.argmax(1).tolist()), *likeliest.tolist()])
    return sorted(list(first)[:MOST_BARS])
