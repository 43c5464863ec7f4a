"""Weights over the blocks of a transformer model by names that mean something, and by number."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..adapter.layers import layers
from ..errors import IPAdapterError
from ..values import brief, check_number

# name: share of the weight of block i of n, of a stream
_PRESETS: dict[str, Callable[[int, int, str], float]] = {
    "everything": lambda i, n, stream: 1.0,
    "first half": lambda i, n, stream: float(2 * i < n),
    "second half": lambda i, n, stream: float(2 * i >= n),
    "ramp up": lambda i, n, stream: (i + 1) / n,
    "ramp down": lambda i, n, stream: 1 - i / n,
    "double": lambda i, n, stream: float(stream == "double"),
    "single": lambda i, n, stream: float(stream == "single"),
}
BLOCK_PRESETS = tuple(_PRESETS)
_PLACE = re.compile(r"(double|single)?\s*(\d+)(?:\s*-\s*(\d+))?")
_HOW = "Write a preset, then changes with commas, such as first half, or everything, double 0-3: 0.5, single 37: 0."


def block_shares(base: str, given: Any) -> dict[int, float]:
    """The share of the weight at each block, block -> share, of text: a preset, then changes. Raises IPAdapterError for other names."""
    if not isinstance(given, str) or given.strip().startswith("{"):
        raise IPAdapterError(
            f"The layers of {base.split()[0]} are written as text, and this is {brief(given)}: "
            f"a scale dictionary names a UNet's blocks. {_HOW}"
        )
    parts = [part.strip() for part in re.split(r"[,\n]", given) if part.strip()]
    preset = " ".join((parts.pop(0) if parts and ":" not in parts[0] else "everything").lower().split())
    if preset not in _PRESETS:
        raise IPAdapterError(
            f"There is no preset '{brief(preset)}' for {base.split()[0]}, of whose blocks nobody knows which ones are style or layout. "
            f"The presets are: {', '.join(_PRESETS)}. {_HOW}"
        )
    blocks = layers(base)
    shares = {block.t: _PRESETS[preset](block.t, len(blocks), block.name) for block in blocks}
    for part in parts:
        name, share = named_number(part, _HOW)
        shares |= dict.fromkeys(_named(base, name), share)
    return {t: share for t, share in shares.items() if share}


def named_number(part: str, how: str) -> tuple[str, float]:
    """The name and the number of "name: number". Raises IPAdapterError, with `how` to write them, where they cannot be read."""
    name, colon, number = part.rpartition(":")
    try:
        found = float(number) if colon else None
    except ValueError:
        found = None
    if found is None:
        raise IPAdapterError(f"The layers have a part that cannot be read: '{brief(part)}'. {how}")
    check_number(found, f"The number of '{brief(name.strip())}'")
    return name, found


def _named(base: str, name: str) -> list[int]:
    """The blocks of a name: "double", "single 3", "double 0-3", or "40" counted over all."""
    key = " ".join(name.lower().split())
    blocks = layers(base)
    if key in ("double", "single"):
        found = [block.t for block in blocks if block.name == key]
    elif match := _PLACE.fullmatch(key):
        stream, first, last = match[1], int(match[2]), int(match[3] or match[2])
        found = [block.t for block in blocks if stream in (None, block.name) and first <= (block.id if stream else block.t) <= last]
    else:
        raise IPAdapterError(f"There are no blocks named '{brief(name.strip())}'. {_HOW}")
    if not found:
        counts = {stream: sum(block.name == stream for block in blocks) for stream in ("double", "single")}
        has = " and ".join(f"{stream} 0 to {count - 1}" for stream, count in counts.items() if count)
        raise IPAdapterError(f"{base.split()[0]} has no block '{brief(key)}' that this adapter acts in: it has {has}.")
    return found
