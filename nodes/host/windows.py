"""The part of the sampling in which an adapter acts."""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

_sigmas: MutableMapping[Any, dict[float, float]] = weakref.WeakKeyDictionary()  # {model_sampling: {share: sigma}}


@dataclass(frozen=True)
class Window:
    """From `start` to `end`, shares of the sampling (0 to 1).

    sampling: the model_sampling at the time of applying, for calls that do not say theirs.
    """

    start: float
    end: float
    sampling: Any

    def __post_init__(self) -> None:
        self.settle(self.sampling)

    def settle(self, sampling: Any) -> None:
        """Read both ends off the model_sampling before it is asked in a model call, where reading would wait for the device."""
        for share in (self.start, self.end):
            sigma_at(sampling, share)

    def is_open(self, sigma: float, sampling: Any = None) -> bool:
        """Open while sigma(end) <= sigma <= sigma(start), by the model_sampling of the call."""
        sampling = self.sampling if sampling is None else sampling
        return sigma_at(sampling, self.end) <= sigma <= sigma_at(sampling, self.start)


def sigma_at(sampling: Any, share: float) -> float:
    """percent_to_sigma of a model_sampling, kept: it reads a table on the device."""
    known = _sigmas.setdefault(sampling, {})
    if share not in known:
        known[share] = float(sampling.percent_to_sigma(share))
    return known[share]
