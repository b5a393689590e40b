"""Figure 3: known places of the picture have known colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from attn_cli.glimpses.retina import Retina
from attn_cli.pictures import drawing
from attn_cli.pictures.paths import compose_glimpse, glimpse_path_figure

NAMES = ("zero", "one", "two", "three")


def naive_glimpse(patches: np.ndarray) -> np.ndarray:
    """Pixel by pixel: the finest patch that covers it."""
    scales, channels, size, _ = patches.shape
    whole = size * 2 ** (scales - 1)
    out = np.zeros((whole, whole, channels))
    for y in range(whole):
        for x in range(whole):
            for scale in range(scales):
                left = (whole - size * 2**scale) // 2
                row, column = (y - left) // 2**scale, (x - left) // 2**scale
                if 0 <= row < size and 0 <= column < size:
                    for c in range(channels):
                        out[y, x, c] = patches[scale, c, row, column]
                    break
    return out


@pytest.mark.parametrize(("scales", "channels", "size"), [(1, 1, 8), (1, 3, 5), (2, 1, 4), (3, 3, 6), (4, 1, 2)])
def test_composed_glimpse_against_a_loop_over_pixels(scales: int, channels: int, size: int) -> None:
    patches = np.random.default_rng(scales).random((scales, channels, size, size)).astype(np.float32)
    composed = compose_glimpse(patches)
    assert composed.dtype == np.float32
    np.testing.assert_array_equal(composed, naive_glimpse(patches).astype(np.float32))


def test_composed_glimpse_of_the_real_retina_has_the_image_in_its_centre() -> None:
    image = torch.randint(0, 256, (1, 1, 40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    retina = Retina(4, 3, 1)
    where = torch.tensor([[0.2, -0.3]])
    composed = compose_glimpse(retina.look(retina.frame(image), where)[0])
    (x0, y0, x1, y1), _, (left, top, *_) = retina.boxes(where, 40, 30)[0].tolist()
    np.testing.assert_allclose(
        composed[y0 - top : y1 - top, x0 - left : x1 - left, 0], image[0, 0, y0:y1, x0:x1] / 255, atol=1e-6
    )
    np.testing.assert_allclose(
        composed[:4, :4, 0], image[0, 0, top : top + 4, left : left + 4].float().mean() / 255, atol=1e-5
    )


@pytest.mark.parametrize(("height", "width"), [(28, 28), (20, 44), (300, 500), (61, 17)])
def test_path_is_green_when_right_red_when_wrong(tmp_path, make_trace, blue, finder, height: int, width: int) -> None:
    path = [(-0.5, -0.6), (0.5, -0.6), (0.5, 0.4)]
    flipped = [(x, -y) for x, y in path]
    trace = make_trace([[path, flipped]], [1, 2], height=height, width=width)
    written = glimpse_path_figure(blue(2, height, width), trace, torch.tensor([1, 3]), NAMES, tmp_path / "p.png")
    assert written == tmp_path / "p.png"
    page = finder(np.asarray(Image.open(written)))
    panels = page.panels()
    assert len(panels) == 2
    for panel, colour, sign in zip(panels, ("green", "red"), (1, -1), strict=True):
        wide, high = panel[2] - panel[0], panel[3] - panel[1]
        assert wide / high == pytest.approx(width / height, rel=0.02)
        assert page.at(panel, -0.5, -0.6 * sign) == colour  # filled circle first
        assert page.at(panel, -0.5, -0.6 * sign, right=-3) == colour
        assert page.at(panel, 0.5, 0.4 * sign) == "blue"  # open circle last
        for right, down in ((1, 0), (-1, 0), (0, sign)):
            assert page.seen(panel, 0.5, 0.4 * sign, right, down) == ["blue", colour, "blue"]
        assert page.at(panel, 0.1, -0.6 * sign) == page.at(panel, 0.5, -0.05 * sign) == colour  # straight lines between
        assert page.at(panel, 0.0, -0.1 * sign) == "blue"  # and not from first to last
        assert page.at(panel, -0.5, 0.4 * sign) == page.at(panel, -0.9, -0.6 * sign) == "blue"


def test_one_glimpse_is_both_first_and_last(tmp_path, make_trace, blue, finder) -> None:
    trace = make_trace([[[(0.25, -0.25)]]], [0], scales=1)
    page = finder(np.asarray(Image.open(glimpse_path_figure(blue(1, 28, 28), trace, [0], NAMES, tmp_path / "p.png"))))
    (panel,) = page.panels()
    for right, down in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        seen = page.seen(panel, 0.25, -0.25, right, down)
        assert seen == ["green", "gap", "green", "blue"]  # a disc within a circle


def test_regions_of_soft_attention_have_outlines_as_thick_as_their_filters(tmp_path, make_trace, blue, finder) -> None:
    trace = make_trace([[[(0.0, 0.0), (0.0, 0.0)]]], [0], scales=1)
    trace.boxes = torch.tensor([[[[[7.0, 7, 21, 21]], [[-5, 14, 14, 40]]]]])  # the second reaches out of the image
    trace.sigmas = torch.tensor([[[0.5, 1.0]]])
    page = finder(np.asarray(Image.open(glimpse_path_figure(blue(1, 28, 28), trace, [0], NAMES, tmp_path / "p.png"))))
    ((x0, y0, x1, _),) = page.panels()
    zoom = (x1 - x0) / 28
    for column, row, glimpse, thick in ((7, 10, 0, round(0.5 * zoom)), (10, 14, 1, round(zoom))):
        along = (1, 0) if glimpse == 0 else (0, 1)  # across the left edge, across the top edge
        places = [
            (round(y0 + row * zoom) + along[1] * i, round(x0 + column * zoom) + along[0] * i) for i in range(-3, 12)
        ]
        hit = [tuple(page.pixels[place]) == drawing.SENSOR[glimpse] for place in places]
        assert hit == [False] * 3 + [True] * thick + [False] * (12 - thick)


def test_a_retina_of_a_chosen_scale_is_drawn_as_large_as_it_was(tmp_path, make_trace, blue, finder) -> None:
    """The finest patch of each glimpse; of a retina of whole pixels, whose size is always the same, there is none."""
    trace = make_trace([[[(0.0, 0.0), (0.0, 0.0)]]], [0], scales=2)
    trace.boxes = torch.tensor([[[[[8.5, 7, 19.5, 21], [3, 0, 25, 28]], [[10, 12, 18, 16], [6, 10, 22, 18]]]]])

    def outlines(name: str) -> list[tuple[int, int, int, int]]:
        path = glimpse_path_figure(blue(1, 28, 28), trace, [0], NAMES, tmp_path / name)
        page = finder(np.asarray(Image.open(path)))
        ((x0, y0, x1, _),) = page.panels()
        zoom, found = (x1 - x0) / 28, []
        for colour in drawing.SENSOR[:2]:
            rows, columns = np.nonzero((page.pixels[y0:, x0:x1] == colour).all(-1))
            edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else ()
            found.append(tuple(round(edge / zoom, 1) for edge in edges))
        return found

    assert outlines("chosen.png") == [(8.5, 7, 19.5, 21), (10, 12, 18, 16)]  # as a spatial transformer does
    boxes, trace.boxes = trace.boxes, trace.boxes[:, :, :1].repeat(1, 1, 2, 1, 1) + torch.tensor([[[[[0.0]], [[1.0]]]]])
    assert outlines("pixels.png") == [(), ()]
    trace.boxes = boxes
    trace.magnifications = torch.tensor([[[2.75, 2.0]]])
    assert outlines("scales.png") == [(8.5, 7, 19.5, 21), (10, 12, 18, 16)]


def test_masks_have_no_path(tmp_path, make_trace, blue, finder) -> None:
    trace = make_trace([[[(0.0, 0.0)]]], [0], scales=1)
    trace.masks = torch.ones(1, 1, 1, 28, 28)
    page = finder(np.asarray(Image.open(glimpse_path_figure(blue(1, 28, 28), trace, [0], NAMES, tmp_path / "p.png"))))
    ((x0, y0, x1, y1),) = page.panels()
    assert (abs(page.pixels[y0:y1, x0:x1] - (20, 40, 180)) <= 2).all()


@pytest.mark.parametrize(("height", "width"), [(20, 48), (33, 21)])
def test_glimpses_at_the_whole_of_oblong_images(tmp_path, make_trace, height: int, width: int) -> None:
    """As high and as wide as the image, and beside each other."""
    trace = make_trace([[[(0.0, 0.0)] * 2]], [0], scales=1, height=height, width=width)
    trace.masks = torch.ones(1, 1, 2, height, width)
    trace.patches = torch.ones(1, 1, 2, 1, 3, height, width) * torch.tensor([0.0, 0.5, 0.0])[:, None, None]
    images = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    page = np.asarray(Image.open(glimpse_path_figure(images, trace, [0], NAMES, tmp_path / "p.png"))).astype(int)
    green = (abs(page - (0, 127, 0)) <= 1).all(-1)
    columns, rows = np.flatnonzero(green.any(0)), np.flatnonzero(green.any(1))
    first, second = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    assert len(first) == len(second) == pytest.approx(len(rows) * width / height, abs=1)


@pytest.mark.parametrize("far", [1, 1e6])
def test_circles_at_the_border_are_whole(tmp_path, make_trace, blue, finder, far: float) -> None:
    """Those of glimpses outside the image, too, which are drawn at the border."""
    trace = make_trace([[[(far, -far), (-far, far)]]], [0])
    page = finder(np.asarray(Image.open(glimpse_path_figure(blue(1, 28, 28), trace, [1], NAMES, tmp_path / "p.png"))))
    (panel,) = page.panels()
    assert panel[0] >= drawing.RING + 1
    assert page.at(panel, 1, -1, right=drawing.DISC - 2) == page.at(panel, 1, -1, down=1 - drawing.DISC) == "red"
    assert page.at(panel, -1, 1, right=1 - drawing.RING) == page.at(panel, -1, 1, down=drawing.RING - 2) == "red"
    assert page.at(panel, -1, 1, right=-3, down=3) == "other"  # the page shows inside the open circle


@pytest.mark.parametrize("channels", [1, 3])
def test_glimpses_stand_beside_at_true_resolution(tmp_path, make_trace, channels: int) -> None:
    trace = make_trace([[[(0, 0)]]], [0], scales=3, size=2, channels=channels)
    steps = torch.arange(trace.patches.numel()) * (97 if channels == 3 else 17) % 200 + 25
    trace.patches = steps.view(trace.patches.shape) / 255
    expected = (naive_glimpse(trace.patches[0, 0, 0].numpy()) * 255).round().astype(np.uint8)
    expected = np.broadcast_to(expected, (8, 8, 3))
    image = torch.zeros(1, channels, 28, 28, dtype=torch.uint8)
    page = np.asarray(Image.open(glimpse_path_figure(image, trace, [0], NAMES, tmp_path / "p.png")))
    zoom = 168 // 8
    enlarged = expected.repeat(zoom, 0).repeat(zoom, 1)
    places = [
        (y, x)
        for y, x in np.argwhere((page == enlarged[0, 0]).all(-1))
        if page[y : y + 168, x : x + 168].shape == enlarged.shape and (page[y : y + 168, x : x + 168] == enlarged).all()
    ]
    assert len(places) == 1


def test_caption_tells_truth_prediction_and_probability_within_the_page(
    tmp_path, make_trace, blue, monkeypatch
) -> None:
    texts: list[tuple[str, float]] = []
    original = ImageDraw.ImageDraw.text

    def record(self, xy, text, fill=None, font=None, **more):
        texts.append((text, xy[0] + font.getlength(text)))
        return original(self, xy, text, fill, font, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    path = [[(0, 0)]] * 3
    names = ("an albatross with a remarkably long name", "cat", "another bird that hardly fits in any line")
    trace = make_trace([path], [1, 2, 1], classes=3, chance=0.734)
    picture = Image.open(glimpse_path_figure(blue(3, 28, 28), trace, [1, 0, 7], names, tmp_path / "p.png"))
    captions = [text for text, _ in texts if text.startswith("truth")]
    assert captions[0] == "truth cat, predicted cat (73.4 %)"
    assert (
        captions[1].startswith("truth an al")
        and "…, predicted another" in captions[1]
        and captions[1].endswith("… (73.4 %)")
    )
    assert captions[2] == "truth 7, predicted cat (73.4 %)"  # a label without a name
    assert [text for text, _ in texts if text.strip() in "✓✗"] == ["✓ ", "✗ ", "✗ "]
    assert max(end for text, end in texts if text.startswith("truth")) <= picture.width


def test_tensors_with_gradients_and_low_precision_are_read(tmp_path, make_trace, blue) -> None:
    trace = make_trace([[[(0, 0), (0.5, 0)]]], [0])
    plain = glimpse_path_figure(blue(1, 28, 28), trace, [0], NAMES, tmp_path / "a.png").read_bytes()
    trace.locations = trace.locations.bfloat16().requires_grad_()
    trace.patches = trace.patches.requires_grad_()
    assert glimpse_path_figure(blue(1, 28, 28), trace, [0], NAMES, tmp_path / "b.png").read_bytes() == plain


def test_a_trace_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, make_trace, blue) -> None:
    trace = make_trace([[[(0, 0)]]], [0])
    with pytest.raises(ValueError, match="2 images"):
        glimpse_path_figure(blue(2, 28, 28), trace, [0, 1], NAMES, tmp_path / "p.png")
    trace.patches = None
    with pytest.raises(ValueError, match="record=True"):
        glimpse_path_figure(blue(1, 28, 28), trace, [0], NAMES, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())
