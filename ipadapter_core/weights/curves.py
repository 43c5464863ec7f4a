"""A weight over the steps of a sampling: y over x, the share of the sampling from 0 to 1."""

from __future__ import annotations

import numbers
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import IPAdapterError
from ..values import brief, check_number

HOW = "Write x:y pairs with commas, such as 0:1, 0.4:0.6, 1:0."
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """points: at least one, x increasing within 0..1; the first y holds before them, the last one after them. between: x -> y from the
    first point to the last."""

    points: Points
    between: Callable[[float], float]

    @property
    def even(self) -> bool:
        """1 throughout, which changes nothing."""
        return all(y == 1 for _, y in self.points)

    def at(self, x: float) -> float:
        (first, low), (last, high) = self.points[0], self.points[-1]
        return low if x <= first else high if x >= last else self.between(x)


def linear(points: Points) -> Callable[[float], float]:
    """Straight lines from point to point."""
    places = [x for x, _ in points]

    def between(x: float) -> float:
        (x0, y0), (x1, y1) = _around(points, places, x)
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

    return between


def monotone_cubic(points: Points) -> Callable[[float], float]:
    """Cubic between the points, never beyond their y (Fritsch and Carlson 1980, with the slopes of Fritsch and Butland 1984: PCHIP)."""
    if len(points) < 3:
        return linear(points)
    places = [x for x, _ in points]
    slopes = _slopes(points)

    def between(x: float) -> float:
        (x0, y0), (x1, y1) = _around(points, places, x)
        at = bisect_right(places, x) - 1
        h, s = x1 - x0, (x - x0) / (x1 - x0)
        return (
            y0 * (1 + 2 * s) * (1 - s) ** 2
            + h * slopes[at] * s * (1 - s) ** 2
            + y1 * s * s * (3 - 2 * s)
            + h * slopes[at + 1] * s * s * (s - 1)
        )

    return between


def _around(points: Points, places: list[float], x: float) -> tuple[tuple[float, float], tuple[float, float]]:
    after = bisect_right(places, x)
    return points[after - 1], points[after]


def _slopes(points: Points) -> list[float]:
    """At three points or more: the weighted harmonic mean of the slopes beside a point, 0 at a turn; at the ends by three points."""
    steps = [x1 - x0 for (x0, _), (x1, _) in pairwise(points)]
    rises = [(y1 - y0) / h for ((_, y0), (_, y1)), h in zip(pairwise(points), steps, strict=True)]
    inner = []
    for (h0, d0), (h1, d1) in pairwise(zip(steps, rises, strict=True)):
        w0, w1 = 2 * h1 + h0, h1 + 2 * h0
        inner.append(0.0 if d0 * d1 <= 0 else (w0 + w1) / (w0 / d0 + w1 / d1))
    return [_end(*steps[:2], *rises[:2]), *inner, _end(*steps[:-3:-1], *rises[:-3:-1])]


def _end(h0: float, h1: float, d0: float, d1: float) -> float:
    slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
    if slope * d0 <= 0:
        return 0.0
    return 3 * d0 if d0 * d1 <= 0 and abs(slope) > 3 * abs(d0) else slope


KINDS = {"linear": linear, "monotone_cubic": monotone_cubic}


def curve_of(value: Any) -> Curve | None:
    """The curve of text ("0:1, 0.4:0.6, 1:0"), of numbers that are spread evenly, of [x, y] pairs, of core's raw CURVE
    {"points": pairs, "interpolation": one of KINDS} and of its object with `points` and `interp`; None for nothing and for blank text.

    Raises IPAdapterError for a curve that is empty, not increasing in x, beyond 0..1, or no curve at all.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        return _made(_pairs_of_text(value), "linear")
    if isinstance(value, Mapping) and "points" in value:
        return _made(value["points"], value.get("interpolation", "monotone_cubic"))
    if callable(interp := getattr(value, "interp", None)):
        return Curve(_checked(list(getattr(value, "points"))), lambda x: float(interp(x)))  # type: ignore[arg-type]  # noqa: B009
    if isinstance(value, numbers.Real):
        value = [value]
    listed: Any = getattr(value, "tolist", lambda: value)()
    if isinstance(listed, list | tuple):
        if listed and all(isinstance(one, numbers.Real) for one in listed):
            last = max(len(listed) - 1, 1)
            listed = [(place / last, one) for place, one in enumerate(listed)]
        return _made(listed, "linear")
    raise IPAdapterError(f"weight_over_steps is no curve but a {type(value).__name__}. {HOW}")


def _pairs_of_text(text: str) -> list[tuple[float, float]]:
    pairs = []
    for part in text.replace("\n", ",").split(","):
        if not part.strip():
            continue
        try:
            x, y = part.split(":")
            pairs.append((float(x), float(y)))
        except ValueError:
            raise IPAdapterError(f"weight_over_steps has a part that cannot be read: '{brief(part.strip())}'. {HOW}") from None
    return pairs


def _made(pairs: Any, kind: Any) -> Curve:
    if not isinstance(kind, str) or kind not in KINDS:
        raise IPAdapterError(f"There is no interpolation '{brief(kind)}' of a curve. Choose one of: {', '.join(KINDS)}.")
    points = _checked(pairs)
    return Curve(points, KINDS[kind](points))


def _checked(pairs: Any) -> Points:
    if not isinstance(pairs, list | tuple):
        raise IPAdapterError(f"The points of weight_over_steps are no list of [x, y] pairs but a {type(pairs).__name__}. {HOW}")
    if not pairs:
        raise IPAdapterError(f"weight_over_steps is a curve without points. {HOW}")
    points = []
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise IPAdapterError(f"weight_over_steps has a point that is no [x, y] pair: {brief(pair)}. {HOW}")
        x, y = pair
        check_number(x, "The x of a point of weight_over_steps", 0, 1)
        check_number(y, "The y of a point of weight_over_steps")
        points.append((float(x), float(y)))
    for (x0, _), (x1, _) in pairwise(points):
        if x1 <= x0:
            raise IPAdapterError(
                f"weight_over_steps must increase in x, and {x1:g} follows {x0:g}: put its points in order, each at another x."
            )
    return tuple(points)
