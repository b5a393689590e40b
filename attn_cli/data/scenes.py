"""Scenes from digits: placing and clutter for a whole batch at once, on the device where the digits are.

Mnih et al. 2014, section 4.1: a digit at a random place of a larger blank image, then 8×8 sub-patches of other
random digits added at random places. Decisions where the text is silent:

1. Every position at which the digit, or the piece, lies wholly inside the image is equally likely.
2. A piece is cut from any position of any *other image* of the same split (its class may be the same).
3. Pieces are added and the sum is clamped at 255, as in the generator that the authors published
   (google-deepmind/mnist-cluttered); the result does not depend on the order of the pieces.

The batch of random numbers is worked out on the CPU with NumPy (a few kB); pixels are moved on the device.

Legend: B batch, P pieces, n digits in the pool, h, w digit height and width, H, W scene height and width,
p side of a piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from attn_cli.data.keys import below
from attn_cli.data.warps import warped
from attn_cli.devices import send

CHUNK = 1000  # scenes made at a time when a whole split is made; part of the definition of the fixed scenes


@dataclass(frozen=True)
class Geometry:
    """What a scene looks like, in pixels. Without `translate` the digit sits in the middle (rounded up and left)."""

    height: int
    width: int
    pieces: int
    piece_size: int
    translate: bool


@dataclass(frozen=True)
class Layout:
    """Everything random in B scenes, int64 on the CPU, in pixels from the top left corner."""

    y: np.ndarray  # (B,) top row of the digit
    x: np.ndarray  # (B,)
    source: np.ndarray  # (B, P) which digit of the pool a piece is cut from
    source_y: np.ndarray  # (B, P) top row of the piece in that digit
    source_x: np.ndarray  # (B, P)
    piece_y: np.ndarray  # (B, P) top row of the piece in the scene
    piece_x: np.ndarray  # (B, P)


def layout(geometry: Geometry, pool: tuple[int, int, int], own: np.ndarray, *parts: int | str) -> Layout:
    """Where everything goes in B scenes, a pure function of its arguments.

    `pool` is (n, h, w); `own` int64 (B,) says which digit of the pool each scene shows; `parts` key the random numbers.
    """
    n, h, w = pool
    pieces, count = geometry.pieces, len(own)
    others = max(n - 1, 1)  # a pool of one digit has no other: its clutter comes from itself
    bounds = [geometry.height - h + 1, geometry.width - w + 1, *piece_bounds(geometry, (others, h, w))]
    values = below(np.array(bounds), (count, len(bounds)), *parts)
    y, x = values[:, 0], values[:, 1]
    if not geometry.translate:
        y, x = np.full_like(y, (geometry.height - h) // 2), np.full_like(x, (geometry.width - w) // 2)
    source, source_y, source_x, piece_y, piece_x = values[:, 2:].reshape(count, 5, pieces).swapaxes(0, 1)
    if n > 1:
        source = source + (source >= own[:, None])  # skips the scene's own digit
    return Layout(y, x, source, source_y, source_x, piece_y, piece_x)


def piece_bounds(geometry: Geometry, pool: tuple[int, int, int]) -> list[int]:
    """How many values there are for source, source_y, source_x, piece_y and piece_x of each piece: 5 P numbers."""
    n, h, w = pool
    p = geometry.piece_size
    bounds = (n, h - p + 1, w - p + 1, geometry.height - p + 1, geometry.width - p + 1)
    return [bound for bound in bounds for _ in range(geometry.pieces)]


def render(geometry: Geometry, digits: Tensor, shown: Tensor, where: Layout) -> Tensor:
    """uint8 (B, H, W) on the device of the pool `digits` (n, h, w); `shown` uint8 (B, h, w) are the scenes' own digits.

    No loop over images.
    """
    scenes = place(geometry, shown, where.y, where.x)
    return clutter(geometry, scenes, digits, where) if geometry.pieces else scenes


def place(geometry: Geometry, shown: Tensor, y: np.ndarray, x: np.ndarray) -> Tensor:
    """Each digit (B, h, w) at its place, y and x int64 (B,), on a blank scene; or at several, (B, T), each on its own.

    A digit that is written with the scene's row pitch W is moved by (y, x) when its flat memory is shifted by
    y W + x: no pixel wraps, as x + w ≤ W, or those that do are black. So a scene is one contiguous run of H W bytes out
    of a zero-padded buffer, and `index_select` on the overlapping view of all runs copies whole runs instead of
    indexing pixels.
    """
    b, h, w = shown.shape
    size = geometry.height * geometry.width
    reach = int((y * geometry.width + x).max(initial=0))  # the longest shift
    buffer = shown.new_zeros(b, reach + size)
    buffer[:, reach : reach + h * geometry.width].unflatten(1, (h, geometry.width))[:, :, :w] = shown
    runs = buffer.view(-1).as_strided((buffer.numel() - size + 1, size), (1, 1))
    own = np.arange(b).reshape(b, *[1] * (y.ndim - 1))
    start = send(own * (reach + size) + reach - (y * geometry.width + x), shown.device)
    return runs.index_select(0, start.view(-1)).view(*y.shape, geometry.height, geometry.width)


def clutter(geometry: Geometry, scenes: Tensor, digits: Tensor, where: Layout) -> Tensor:
    """The pieces added to scenes (B, H, W) in place, with the sum clamped at 255."""
    n, h, w = digits.shape
    b, height, width = scenes.shape
    p, pieces = geometry.piece_size, geometry.pieces
    cut = (where.source * h + where.source_y) * w + where.source_x
    corner = where.piece_y * width + where.piece_x
    cut_PB, corner_PB = send(np.stack([cut.T, corner.T]), scenes.device)
    # A piece lies within a contiguous run of the flat pool: copied as such, then read with the digit's row pitch.
    span = (p - 1) * w + p
    runs = digits.view(-1).as_strided((n * h * w - span + 1, span), (1, 1)).index_select(0, cut_PB.reshape(-1))
    cut_PBpp = runs.as_strided((pieces, b, p, p), (b * span, span, w, 1)).reshape(pieces, b, p * p)
    steps = torch.arange(p, device=scenes.device)
    inside = (steps[:, None] * width + steps).view(-1)
    flat = scenes.view(b, -1)
    for k in range(pieces):  # a piece at a time, over all scenes: within one there are no collisions
        index = corner_PB[k, :, None] + inside
        before = flat.gather(1, index)
        flat.scatter_(1, index, before + torch.minimum(cut_PBpp[k], 255 - before))
    return scenes


def scenes(
    geometry: Geometry, digits: Tensor, own: Tensor, own_cpu: np.ndarray, warp: float, *parts: int | str
) -> Tensor:
    """uint8 (B, H, W) on the device of the pool `digits`, a pure function of its arguments.

    `own` int64 (B,) on that device, and the same numbers on the CPU: everything random is worked out there (a few kB),
    so every device sees the same scenes. `warp` as in `warps`.
    """
    shown = warped(digits.index_select(0, own), warp, *parts, "warp")
    if not geometry.translate and not geometry.pieces and shown.shape[1:] == (geometry.height, geometry.width):
        return shown
    n, h, w = digits.shape
    return render(geometry, digits, shown, layout(geometry, (n, h, w), own_cpu, *parts))


def fixed_scenes(geometry: Geometry, digits: Tensor, *parts: int | str) -> Tensor:
    """uint8 (n, H, W): one scene per digit of the pool, in order, made in chunks of a fixed size."""
    n, h, w = digits.shape
    out = digits.new_empty(n, geometry.height, geometry.width)
    for start in range(0, n, CHUNK):
        own = np.arange(start, min(start + CHUNK, n))
        where = layout(geometry, (n, h, w), own, *parts, start)
        out[start : start + len(own)] = render(geometry, digits, digits[start : start + len(own)], where)
    return out


def fixed_layout(geometry: Geometry, pool: tuple[int, ...], *parts: int | str) -> Layout:
    """Where everything of all `fixed_scenes` goes, for a pool of that shape (n, h, w)."""
    n, h, w = pool
    starts = range(0, n, CHUNK)
    found = [layout(geometry, (n, h, w), np.arange(s, min(s + CHUNK, n)), *parts, s) for s in starts]
    return Layout(*(np.concatenate([getattr(where, field.name) for where in found]) for field in fields(Layout)))


def fixed_boxes(geometry: Geometry, pool: tuple[int, ...], *parts: int | str) -> Tensor:
    """int64 (n, 4): where the digits of `fixed_scenes` lie, for a pool of that shape (n, h, w)."""
    where, (_, h, w) = fixed_layout(geometry, pool, *parts), pool
    return torch.from_numpy(np.stack([where.x, where.y, where.x + w, where.y + h], 1))


def misfit(geometry: Geometry, digit: Sequence[int]) -> str | None:
    """Which configured size cannot work with digits of (h, w) pixels, in words; None if all fit."""
    h, w = digit
    if geometry.height < h or geometry.width < w:
        return (
            f"data.height × data.width is {geometry.height}×{geometry.width}, smaller than the {h}×{w} digits: "
            f"set data.height to at least {h} and data.width to at least {w}"
        )
    if geometry.pieces and geometry.piece_size > min(h, w):
        return f"data.piece_size={geometry.piece_size} is larger than the {h}×{w} digits that pieces are cut from"
    return None
