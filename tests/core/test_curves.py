"""Curves over the steps, against NumPy's and SciPy's own interpolation."""

import random

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.weights.curves import curve_of

POINTS = [(0.1, 1.0), (0.25, 0.2), (0.3, 0.2), (0.55, -0.7), (0.8, 1.4), (0.95, 1.3)]
GRID = [step / 500 for step in range(501)]


class CurveInput:
    """What newer cores put on a CURVE wire."""

    points = ((0.0, 0.5), (1.0, 1.0))

    def interp(self, x):
        return 0.5 + 0.5 * x * x


@pytest.mark.parametrize(
    "value",
    [
        ", ".join(f"{x}:{y}" for x, y in POINTS), "\n".join(f" {x} : {y} " for x, y in POINTS), POINTS, [list(pair) for pair in POINTS],
        {"points": POINTS, "interpolation": "linear"},
    ],
    ids=["text", "lines", "pairs", "lists", "raw"],
)  # fmt: skip
def test_straight_lines(value):
    curve = curve_of(value)
    assert [curve.at(x) for x in GRID] == pytest.approx(np.interp(GRID, *zip(*POINTS, strict=True)), abs=1e-15)


@pytest.mark.parametrize("count", [2, 3, 4, 9])
@pytest.mark.parametrize("seed", range(5))
def test_monotone_cubic_is_pchip(count, seed):
    draw = random.Random(seed)
    xs = sorted(draw.sample([step / 40 for step in range(41)], count))
    ys = [draw.choice([-1.0, 0.0, 0.5, draw.uniform(-2, 2)]) for _ in xs]
    curve, want = curve_of({"points": list(zip(xs, ys, strict=True))}), PchipInterpolator(xs, ys)
    for x in GRID:
        assert curve.at(x) == pytest.approx(float(want(min(max(x, xs[0]), xs[-1]))), abs=1e-12)


def test_numbers_are_spread_evenly():
    curve = curve_of([1.0, 0.0, 0.5])
    assert [curve.at(x) for x in (0, 0.25, 0.5, 0.75, 1)] == [1.0, 0.5, 0.0, 0.25, 0.5]
    assert [curve_of(value).at(0.3) for value in (0.7, [0.7], np.array([0.7]), "0.5:0.7")] == [0.7] * 4


def test_even_is_1_throughout():
    assert curve_of([1.0, 1.0, 1.0]).even and curve_of({"points": [[0, 1], [1, 1]]}).even
    assert not curve_of([1.0, 0.99]).even and not curve_of(0.7).even


def test_cores_object_evaluates_itself():
    curve = curve_of(CurveInput())
    assert [curve.at(x) for x in (0, 0.5, 1)] == [0.5, 0.625, 1.0]


@pytest.mark.parametrize("value", [None, "", " \n "])
def test_nothing_is_no_curve(value):
    assert curve_of(value) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "without points"),
        (",", "without points"),
        ({"points": []}, "without points"),
        ("0:1, 0:2", "must increase in x, and 0 follows 0"),
        ([(0.5, 1), (0.2, 1)], "must increase in x, and 0.2 follows 0.5"),
        ("0:1, 2:0", "from 0 to 1, and this is 2.0"),
        ("0:nan", "must be a number"),
        ("0:1:2", "cannot be read: '0:1:2'"),
        ("half", "cannot be read: 'half'"),
        ([(0, 1), 3], r"no \[x, y\] pair: 3"),
        ([("a", 1)], "must be a number"),
        ({"points": 3}, "no list"),
        ({"points": POINTS, "interpolation": "spline"}, "no interpolation 'spline'"),
        (object(), "no curve but a object"),
        ({"x": 1}, "no curve but a dict"),
    ],
    ids=str,
)
def test_what_is_no_curve_gives_a_sentence(value, words):
    with pytest.raises(IPAdapterError, match=words):
        curve_of(value)
