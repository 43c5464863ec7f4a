"""Plots hold what they are given: values are read back off the pixels."""

import itertools

import numpy as np
import pytest
import torch
from PIL import ImageDraw

from ipadapter_core.look.plot import BACKGROUND, COLOURS, HEIGHT, WIDTH, Panel, Series, encoder_view, plot, seen_squares, seen_view, span_of
from ipadapter_core.pictures.fit import fit
from ipadapter_core.pictures.preprocess import CLIP_MEAN
from support import lab

LABELS = [str(i) for i in range(8)]
VALUES = [0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]


def pixels(image) -> np.ndarray:
    return (255 * image[0]).round().numpy().astype(int)


def of_colour(image, colour, below=50) -> np.ndarray:
    """Where a picture [h, w, 3] has a colour, away from the legend at the top."""
    near = np.abs(image - np.array(colour)).max(-1) < 40
    near[:below] = False
    return near


def heights(image, colour, count=8) -> list[float]:
    """The heights of the bars of a colour, as shares of the highest."""
    found = of_colour(image, colour)
    left, right = 56, WIDTH - 16
    columns = [round(left + (i + 0.5) * (right - left) / count) for i in range(count)]
    tall = np.array([found[:, column].sum() for column in columns])
    return (tall / tall.max()).tolist()


def test_bars_are_as_high_as_their_values():
    """Half a pixel of antialiasing at either end of a bar of 160 pixels: 1 %."""
    image = pixels(plot([Panel("title", LABELS, [Series("one", VALUES)], "bars")]))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(np.array(heights(image, COLOURS[0])) - VALUES).max() < 0.02


def test_values_below_zero_go_down():
    image = pixels(plot([Panel("title", ["a", "b"], [Series("one", [1.0, -1.0])], "bars")]))
    found = of_colour(image, COLOURS[0])
    up, down = found[:, : WIDTH // 2], found[:, WIDTH // 2 :]
    assert np.nonzero(up)[0].mean() < np.nonzero(down)[0].mean() - 50


@pytest.mark.parametrize("kind", ["line", "steps"])
def test_curves_go_through_their_values(kind):
    """The middle of the line at each place; 3 pixels wide, joints widen it by one."""
    image = pixels(plot([Panel("title", LABELS, [Series("one", VALUES)], kind)]))
    found = of_colour(image, COLOURS[0])
    top, bottom = 56, HEIGHT - 40
    for i, value in enumerate(VALUES):
        column = round(56 + (i + 0.5) * (WIDTH - 72) / 8)
        rows = np.nonzero(found[:, column])[0]
        assert abs(rows.mean() - (bottom - value * (bottom - top))) < 3, (i, value)


def test_steps_are_held_until_the_next_place():
    """Just before the next place begins, the value is still the last one; a line is on its way there."""
    rows = {}
    for kind in ("line", "steps"):
        found = of_colour(pixels(plot([Panel("title", ["a", "b"], [Series("one", [0.2, 0.8])], kind)])), COLOURS[0])
        rows[kind] = np.nonzero(found[:, 56 + round(0.45 * (WIDTH - 72))])[0].mean()
    bottom, tall = HEIGHT - 40, HEIGHT - 96
    assert abs(rows["steps"] - (bottom - 0.2 * tall)) < 2
    assert abs(rows["line"] - (bottom - 0.44 * tall)) < 2  # 0.2 + 0.6 (0.45 - 0.25) / 0.5


def test_words_stand_where_they_belong(monkeypatch):
    """Labels below their places, values beside their heights, names beside their colours, in the size of the finished picture."""
    words = {}
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, xy, text, **kw: words.update({text: (xy[0] / 2, xy[1] / 2)}))
    names = ["first", "a name that is far too long to be written beside three other names of the kind"]
    plot([Panel("the title", LABELS, [Series(name, [-1.0, *VALUES[1:-1], 3.0]) for name in names], "bars")])
    pitch = (WIDTH - 72) / 8
    for i, label in enumerate(LABELS):
        if label not in ("0", "3"):  # which are values, too
            assert words[label][0] == pytest.approx(56 + (i + 0.5) * pitch)
    bottom, tall = HEIGHT - 40, HEIGHT - 96
    for value, text in ((-1.0, "-1"), (1.5, "1.5")):
        assert words[text][1] == pytest.approx(bottom - (value + 1) / 4 * tall)
    assert words["the title"] == (56, 10)
    assert words["first"][0] == 56 + 15
    (short,) = (text for text in words if text.endswith("..."))
    assert names[1].startswith(short.removesuffix("...")) and words[short][0] == pytest.approx(56 + (WIDTH - 72) / 2 + 15)


@pytest.mark.parametrize("values", [[-0.05, 1.0], [-100.0, 123456.0], [0.0, 1e-3]])
def test_values_beside_the_plot_do_not_cover_each_other(values, monkeypatch):
    places = []
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, xy, text, **kw: kw["anchor"] == "rm" and places.append((xy, text, kw["font"]))
    )
    plot([Panel("title", ["a", "b"], [Series("one", values)], "bars")])
    heights = sorted(xy[1] / 2 for xy, _, _ in places)
    assert len(heights) >= 2 and min(b - a for a, b in itertools.pairwise(heights)) > 14
    assert all(xy[0] - font.getlength(text) > 0 for xy, text, font in places)


def test_equal_curves_are_both_seen():
    image = pixels(plot([Panel("title", LABELS, [Series("one", VALUES), Series("two", VALUES)], "line")]))
    assert of_colour(image, COLOURS[0]).sum() > 500 and of_colour(image, COLOURS[1]).sum() > 500


def test_series_have_colours_of_their_own_and_panels_lie_below_each_other():
    panel = Panel("title", LABELS, [Series("one", VALUES), Series("two", VALUES[::-1])], "bars")
    image = pixels(plot([panel, panel]))
    assert image.shape == (2 * HEIGHT, WIDTH, 3)
    for half in (image[:HEIGHT], image[HEIGHT:]):
        assert of_colour(half, COLOURS[0]).sum() > 500 and of_colour(half, COLOURS[1]).sum() > 500
    assert (image[0, 0] == BACKGROUND).all()


@pytest.mark.parametrize(("values", "span"), [([0.2], (0.0, 1.0)), ([-0.5, 3.0], (-0.5, 3.0)), ([0.0], (0.0, 1.0))])
def test_the_axis_holds_zero_one_and_every_value(values, span):
    assert span_of([Series("one", values)]) == span


def test_one_value_and_very_many_can_be_drawn():
    for count in (1, 3000):
        image = pixels(plot([Panel("title", [str(i) for i in range(count)], [Series("one", [1.0] * count)], "line")]))
        assert of_colour(image, COLOURS[0]).any()


def test_masked_parts_are_seen_as_the_encoders_mean_colour():
    image = lab.images(1, 56, 56)
    mask = torch.zeros(1, 56, 56)
    mask[:, :, :28] = 1
    seen = seen_squares(fit(image, "stretch", 1, 56, mask))
    assert torch.allclose(seen[:, :, :20], fit(image, "stretch", 1, 56).squares[:, :, :20], atol=1e-6)
    assert (seen[:, :, 36:] - torch.tensor(CLIP_MEAN)).abs().max() < 0.01


@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (200, 200), (10, 640)])
@pytest.mark.parametrize("how", ["center crop", "pad", "stretch", "tiles"])
def test_the_view_shows_the_picture_and_its_squares(how, shape):
    image = lab.images(1, *shape)
    fitted = fit(image, how, 1, 56)
    view = encoder_view(image[0], fitted, fitted.squares, 200)
    assert view.shape[:2] == (1, 200) and view.shape[3] == 3
    assert 0 <= view.min() and view.max() <= 1
    assert view.shape[2] <= 1024 + 16 + 200 + 200


def test_the_view_has_each_thing_in_its_place():
    """A black picture, half as wide as high, padded: bars, picture and outline on the left; the squares, each of a colour, on the right."""
    image = torch.zeros(1, 200, 100, 3)
    fitted = fit(image, "pad", 1, 56)
    view = 255 * encoder_view(image[0], fitted, fitted.squares, 200)[0]
    outline, bar, inside = view[1, 100], view[100, 20], view[100, 100]
    assert [tuple(pixel.round().int().tolist()) for pixel in (outline, bar, inside)] == [COLOURS[0], BACKGROUND, (0, 0, 0)]
    image = torch.zeros(1, 100, 200, 3)
    fitted = fit(image, "tiles", 2, 56)
    shades = torch.arange(8).view(8, 1, 1, 1).expand(8, 56, 56, 3) / 8
    view = encoder_view(image[0], fitted, shades, 90)[0]
    grid = view[:, 180 + 16 :]  # 3 x 3 cells of 30 pixels, the last one empty
    for i in range(8):
        assert (grid[i // 3 * 30 + 15, i % 3 * 30 + 15] - i / 8).abs().max() < 1 / 255
    assert (255 * grid[75, 75]).round().int().tolist() == list(BACKGROUND)


def test_what_is_left_out_is_dark_in_the_view():
    image = torch.ones(1, 100, 300, 3)
    fitted = fit(image, "center crop", 1, 56)
    view = encoder_view(image[0], fitted, fitted.squares, 100)[0]
    assert (view[50, 50] - 1 / 3).abs().max() < 0.01  # left of the square
    assert (view[50, 150] - 1).abs().max() < 0.01  # inside


@pytest.mark.parametrize(
    "how, columns", [("center crop", (1, 2)), ("stretch", (0, 1, 2, 3)), ("pad", (0, 1, 2, 3)), ("tiles", (0, 1, 2, 3))]
)
def test_what_is_seen_of_a_picture_twice_as_wide_as_high(how, columns):
    """Four stripes of a grey each: of each stripe that is seen, the grey is in the place that the fit gives it."""
    greys = torch.tensor([0.2, 0.4, 0.6, 0.8])
    image = greys.repeat_interleave(100).view(1, 1, 400, 1).expand(1, 200, 400, 3)
    (view,) = seen_view(image, how, 1, None, 4)
    wide = 448 if how == "tiles" else 224  # two squares beside each other, or one
    assert view.shape == (224, wide, 3)
    seen = [view[112, int((i + 0.5) * wide / len(columns))].mean().item() for i in range(len(columns))]
    assert seen == pytest.approx(greys[list(columns)].tolist(), abs=1 / 255)
    bars = (view[10, 112] - torch.tensor(CLIP_MEAN)).abs().max() < 1 / 255
    assert bars == (how == "pad")


def test_each_picture_of_a_batch_is_seen_with_its_own_mask():
    image, mask = torch.ones(6, 64, 64, 3), torch.zeros(6, 64, 64)
    mask[1] = 1
    views = seen_view(image, "center crop", 1, mask, 4)
    assert views.shape == (4, 224, 224, 3)
    assert [bool(view[112, 112].mean() > 0.99) for view in views] == [False, True, False, False]
