"""Plots hold what they are given: values are read back off the pixels."""

import numpy as np
import pytest
import torch

from ipadapter_core.fit import fit
from ipadapter_core.plot import BACKGROUND, COLOURS, HEIGHT, WIDTH, Panel, Series, encoder_view, plot, seen_squares, span_of
from ipadapter_core.preprocess import CLIP_MEAN
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


def test_what_is_left_out_is_dark_in_the_view():
    image = torch.ones(1, 100, 300, 3)
    fitted = fit(image, "center crop", 1, 56)
    view = encoder_view(image[0], fitted, fitted.squares, 100)[0]
    assert (view[50, 50] - 1 / 3).abs().max() < 0.01  # left of the square
    assert (view[50, 150] - 1).abs().max() < 0.01  # inside
