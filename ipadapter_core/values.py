"""What inputs hold that other nodes may feed: numbers that are numbers, tensors that are tensors."""

from __future__ import annotations

import numbers
from typing import Any

from torch import Tensor, isfinite

from .errors import IPAdapterError

MOST = 10_000.0  # no weight or setting is larger in earnest, and what is much larger makes infinite pixels


def check_number(value: Any, name: str, low: float = -MOST, high: float = MOST) -> None:
    """Raises IPAdapterError for anything but a finite number (a NumPy one too) from `low` to `high`."""
    given = value
    if not isinstance(value, numbers.Real) or not low <= given <= high:  # NaN is in no range
        raise IPAdapterError(f"{name} must be a number from {low:g} to {high:g}, and this is {brief(value)}.")


def check_whole(value: Any, name: str, low: int = 0, high: int = int(MOST)) -> None:
    """Raises IPAdapterError for anything but a whole number from `low` to `high`."""
    given = value
    if not isinstance(value, numbers.Integral) or not low <= given <= high:
        raise IPAdapterError(f"{name} must be a whole number from {low} to {high}, and this is {brief(value)}.")


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raises IPAdapterError for what is none of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise IPAdapterError(f"There is no {name} '{brief(value)}'. Choose one of: {', '.join(choices)}.")


def check_embeds(value: Any, name: str) -> Tensor:
    """The tensor [n, ...] of an EMBEDS input. Raises IPAdapterError for other values and for none at all."""
    if not isinstance(value, Tensor) or value.ndim not in (2, 3) or not value.numel() or not value.is_floating_point():
        what = f"a tensor of shape {list(value.shape)} ({value.dtype})" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise IPAdapterError(f"The {name} input holds no encoded picture but {what}. Connect an IPAdapter Encoder.")
    if not isfinite(value).all():
        raise IPAdapterError(f"The {name} input has values that are not numbers (NaN or infinite). Encode the picture again.")
    return value


def brief(value: Any) -> str:
    """A value in a few characters, fit to be shown."""
    try:
        text = str(value)
    except ValueError:  # a whole number with thousands of digits
        text = type(value).__name__
    return "".join(char if char.isprintable() else "?" for char in text[:40])
