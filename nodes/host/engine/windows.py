"""The part of the sampling in which an adapter acts, and how its weight runs over it."""

from __future__ import annotations

import math
import weakref
from bisect import bisect_left
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from ....ipadapter_core.weights.curves import Curve

_STEPS = 999  # of the table of shares: those of a model_sampling's own table, between which core goes straight in log(sigma)
_sigmas: MutableMapping[Any, dict[float, float]] = weakref.WeakKeyDictionary()  # {model_sampling: {share: sigma}}
_tables: MutableMapping[Any, list[float]] = weakref.WeakKeyDictionary()  # {model_sampling: -log(sigma) at each of the shares}


@dataclass(frozen=True)
class Window:
    """From `start` to `end`, shares of the sampling (0 to 1), with a weight by `curve` where there is one.

    sampling: the model_sampling at the time of applying, for calls that do not say theirs.
    """

    start: float
    end: float
    sampling: Any
    curve: Curve | None = None

    def __post_init__(self) -> None:
        self.settle(self.sampling)

    def settle(self, sampling: Any) -> None:
        """Read both ends off the model_sampling before it is asked in a model call, where reading would wait for the device."""
        for share in (self.start, self.end):
            sigma_at(sampling, share)
        if self.curve is not None:
            _table(sampling)

    def is_open(self, sigma: float, sampling: Any = None) -> bool:
        """Open while sigma(end) <= sigma <= sigma(start), by the model_sampling of the call."""
        sampling = self.sampling if sampling is None else sampling
        return sigma_at(sampling, self.end) <= sigma <= sigma_at(sampling, self.start)

    def strength(self, sigma: float, sampling: Any = None) -> float:
        """What the weight is multiplied with at sigma: 0 where the window is not open, else the curve's y, or 1."""
        if not self.is_open(sigma, sampling):
            return 0.0
        return 1.0 if self.curve is None else self.curve.at(share_at(self.sampling if sampling is None else sampling, sigma))


def sigma_at(sampling: Any, share: float) -> float:
    """percent_to_sigma of a model_sampling, kept: it reads a table on the device."""
    known = _sigmas.setdefault(sampling, {})
    if share not in known:
        known[share] = float(sampling.percent_to_sigma(share))
    return known[share]


def share_at(sampling: Any, sigma: float) -> float:
    """The share of the sampling at which percent_to_sigma gives sigma; 0 above the largest and 1 below the smallest."""
    table = _table(sampling)
    wanted = -math.log(sigma) if sigma > 0 else math.inf
    after = bisect_left(table, wanted)
    if after in (0, len(table)):
        return min(after, 1.0)
    low, high = table[after - 1], table[after]
    return (after - 1 + (wanted - low) / (high - low)) / _STEPS


def _table(sampling: Any) -> list[float]:
    """-log(sigma), which rises with the share; the ends are read just inside, where core gives the largest and the smallest sigma."""
    if sampling not in _tables:
        inside = (min(max(step / _STEPS, 1e-9), 1 - 1e-9) for step in range(_STEPS + 1))
        _tables[sampling] = [-math.log(float(sampling.percent_to_sigma(share))) for share in inside]
    return _tables[sampling]
