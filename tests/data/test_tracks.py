"""Videos of moving digits against a video-by-video, frame-by-frame oracle; what moves, what stands still, and how."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from attn_cli.config import schema
from attn_cli.data.batches import Tracks, open_data
from attn_cli.data.scenes import Geometry, Layout, layout
from attn_cli.data.splits import digest_of
from attn_cli.data.tracks import UNIT, Track, boxes, in_motion, positions, render
from attn_cli.errors import Refused
from tests.data.conftest import assert_batches_are_pure, small_digits

SMALL = schema.Tracks(name="moving_digits_track", source="digits", frames=7, speed=9.0, height=50, width=60, pieces=3)
GEOMETRY = Geometry(50, 60, 3, 8, True)


def walk(start: int, velocity: int, places: int, frames: int) -> list[int]:
    """Pixel by pixel's fraction: steps that turn round at the walls of [0, places) pixels."""
    at, heading, found = start * UNIT + UNIT // 2, 1 if velocity >= 0 else -1, []
    for _ in range(frames):
        found.append(at // UNIT)
        for _ in range(abs(velocity)):
            if not 0 <= at + heading < places * UNIT:
                heading = -heading  # the wall is between two positions: this one is left a step later
            else:
                at += heading
    return found


def oracle(geometry: Geometry, digits: np.ndarray, own: np.ndarray, track: Track, frames: int) -> np.ndarray:
    """One frame of one video at a time, in plain NumPy."""
    (h, w), p, where = digits.shape[1:], geometry.piece_size, track.first
    out = np.zeros((len(own), frames, geometry.height, geometry.width), np.uint8)
    for i, shown in enumerate(own):
        y = walk(int(where.y[i]), int(track.velocity[i, 0]), geometry.height - h + 1, frames)
        x = walk(int(where.x[i]), int(track.velocity[i, 1]), geometry.width - w + 1, frames)
        for t in range(frames):
            frame = np.zeros((geometry.height, geometry.width), int)
            frame[y[t] : y[t] + h, x[t] : x[t] + w] = digits[shown]
            for k in range(geometry.pieces):
                sy, sx = where.source_y[i, k], where.source_x[i, k]
                piece_y, piece_x = where.piece_y[i, k], where.piece_x[i, k]
                piece = digits[where.source[i, k], sy : sy + p, sx : sx + p]
                frame[piece_y : piece_y + p, piece_x : piece_x + p] += piece
            out[i, t] = frame.clip(max=255)
    return out


@pytest.mark.parametrize("geometry", [GEOMETRY, Geometry(50, 60, 0, 8, True), Geometry(28, 45, 4, 6, True)])
def test_equal_to_the_oracle(geometry: Geometry) -> None:
    digits = small_digits().images["train"]
    own = np.arange(30)
    track = in_motion(layout(geometry, digits.shape, own, "x"), 9.0, "x")
    made = render(geometry, torch.from_numpy(digits), torch.from_numpy(digits[own]), track, 7)
    assert made.dtype == torch.uint8
    np.testing.assert_array_equal(made.numpy(), oracle(geometry, digits, own, track, 7))


def test_a_digit_is_mirrored_at_the_walls() -> None:
    """Worked by hand: 10 pixels of room, that is 11 places, 4 pixels per frame to the right from the sixth."""
    nothing = np.zeros((1, 0), np.int64)
    track = Track(Layout(np.array([3]), np.array([5]), *[nothing] * 5), np.array([[-UNIT // 2, 4 * UNIT]]))
    y, x = positions(Geometry(28, 38, 0, 8, True), (20, 28), track, 6)
    assert x.tolist() == [[5, 9, 8, 4, 0, 3]]  # the wall is between two places: 13 is 8, -1 is 0
    assert y.tolist() == [[3, 3, 2, 2, 1, 1]]  # half a pixel per frame, up


def test_speeds_and_directions_are_spread() -> None:
    first = layout(Geometry(400, 400, 0, 8, True), (5, 28, 28), np.zeros(20_000, np.int64), "x")
    velocity = in_motion(first, 4.0, "x").velocity / UNIT
    speed, angle = np.linalg.norm(velocity, axis=1), np.arctan2(*velocity.T)
    assert speed.min() > 1.99 and speed.max() < 4.01
    assert speed.mean() == pytest.approx(3, abs=0.02) and speed.std() == pytest.approx(2 / 12**0.5, abs=0.02)
    assert np.histogram(angle, 8)[0].min() > 2300


def test_without_speed_every_frame_is_the_still_scene(digit_root: Path) -> None:
    """In the same step of training, and in the fixed splits: the static counterpart shows the same."""
    config = replace(SMALL, root=str(digit_root), speed=0.0)
    scenes = schema.Scenes("still", "digits", 50, 60, 3, translate=True, root=str(digit_root))
    moving, still = open_data(config), open_data(scenes)
    for videos, images in (
        (moving.train_batch(3, 1, 2, 16)[0], still.train_batch(3, 1, 2, 16)[0]),
        (moving.fixed("test")[0][:], still.fixed("test")[0][:]),
    ):
        assert torch.equal(videos, images[:, None].expand(-1, 7, -1, -1, -1))


def test_the_first_frame_does_not_depend_on_the_speed(digit_root: Path) -> None:
    config = replace(SMALL, root=str(digit_root))
    fast, slow = (open_data(replace(config, speed=speed)).fixed("test")[0][:] for speed in (9.0, 2.0))
    assert torch.equal(fast[:, 0], slow[:, 0]) and not torch.equal(fast[:, 6], slow[:, 6])


def test_boxes_are_where_the_digit_lies_in_every_frame() -> None:
    digits = torch.zeros(40, 28, 20, dtype=torch.uint8)
    digits[:, 0, 0] = digits[:, -1, -1] = 255
    geometry = Geometry(50, 60, 0, 8, True)
    track = in_motion(layout(geometry, (40, 28, 20), np.arange(40), "x"), 9.0, "x")
    for video, own in zip(
        render(geometry, digits, digits, track, 7), boxes(geometry, (28, 20), track, 7).tolist(), strict=True
    ):
        for frame, box in zip(video, own, strict=True):
            (y0, x0), (y1, x1) = frame.nonzero().tolist()
            assert box == [x0, y0, x1 + 1, y1 + 1]


def test_what_a_split_offers(digit_root: Path) -> None:
    data = open_data(replace(SMALL, root=str(digit_root)))
    assert isinstance(data, Tracks)
    assert (data.info.frames, data.info.channels, data.info.test) == (7, 1, 30)
    videos, labels = data.fixed("test")
    whole = videos[:]
    assert whole.shape == videos.shape == (30, 7, 1, 50, 60) and len(videos) == len(labels) == 30
    assert torch.equal(videos[5:9], whole[5:9]) and torch.equal(videos[torch.tensor([7, 2])], whole[[7, 2]])
    assert data.digest("test") == digest_of(whole, labels)
    assert data.boxes("test").shape == (30, 7, 4)
    images, classes = data.train_batch(0, 0, 0, 16)
    assert (images.shape, images.dtype, classes.shape) == ((16, 7, 1, 50, 60), torch.uint8, (16,))


def test_a_digest_is_that_of_all_bytes_whatever_their_number() -> None:
    """More than are hashed at a time."""
    images, labels = (torch.arange(2500) % 251).to(torch.uint8).view(2500, 1, 1, 1), torch.arange(2500)
    whole = b"uint8 (2500, 1, 1, 1) int64 (2500,)\n" + images.numpy().tobytes() + labels.numpy().tobytes()
    assert digest_of(images, labels) == hashlib.sha256(whole).hexdigest()


def test_batches_are_pure(digit_root: Path) -> None:
    config = replace(SMALL, root=str(digit_root))
    assert_batches_are_pure(open_data(config), open_data(config))


def test_fixed_videos_are_these_videos(digit_root: Path) -> None:
    """Everybody's validation and test videos depend on this: a change is a change of every measured number."""
    assert open_data(replace(SMALL, root=str(digit_root))).digest("test")[:16] == "db3f5b309fa6a570"


def test_frames_that_are_too_small_are_refused(digit_root: Path) -> None:
    with pytest.raises(Refused, match="piece_size=28 is larger"):
        Tracks(replace(SMALL, piece_size=28), small_digits((20, 28)))
