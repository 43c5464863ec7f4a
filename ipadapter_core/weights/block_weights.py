"""Weights over the blocks of a transformer model by names that mean something, and by number; and the presets that every base has."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..adapter.layers import CURVES, layer_weights, layers
from ..errors import IPAdapterError
from ..values import brief, check_number

# name: share of the weight at place i of n, in the order of execution
_SPREADS: dict[str, Callable[[int, int], float]] = {
    "first half": lambda i, n: float(2 * i < n),
    "second half": lambda i, n: float(2 * i >= n),
    "ramp up": lambda i, n: (i + 1) / n,
    "ramp down": lambda i, n: 1 - i / n,
}
SPREADS = tuple(_SPREADS)
_STREAMS = ("double", "single")
BLOCK_PRESETS = ("everything", *SPREADS, *_STREAMS, *CURVES)
_PLACE = re.compile(r"(double|single)?\s*(\d+)(?:\s*-\s*(\d+))?")
_OF_UNETS = re.compile(r"down|mid|up|\d+/\d+")
_HOW = "Write a preset, then changes with commas, such as first half, or everything, double 0-3: 0.5, single 37: 0."


def block_shares(base: str, given: Any) -> dict[int, float]:
    """The share of the weight at each block, block -> share, of text: a preset, then changes. Raises IPAdapterError for other names."""
    if not isinstance(given, str) or given.strip().startswith("{"):
        raise IPAdapterError(
            f"The layers of {base.split()[0]} are written as text, and this is {brief(given)}: "
            f"a scale dictionary names a UNet's blocks. {_HOW}"
        )
    parts = [part.strip() for part in re.split(r"[,\n]", given) if part.strip()]
    shares = _preset(base, parts.pop(0) if parts and ":" not in parts[0] else "everything")
    for part in parts:
        name, share = named_number(part, _HOW)
        shares |= dict.fromkeys(_named(base, name), share)
    return {t: share for t, share in shares.items() if share}


def spread(base: str, name: str) -> dict[int, float]:
    """t -> share of the weight of one of SPREADS, over the layers of any base."""
    ts = sorted({layer.t for layer in layers(base)})
    return {t: share for t in ts if (share := _SPREADS[name](t, len(ts)))}


def _preset(base: str, name: str) -> dict[int, float]:
    kind = " ".join(name.lower().split())
    if kind in SPREADS:
        return spread(base, kind)
    if kind in _STREAMS:
        return {block.t: 1.0 for block in layers(base) if block.name == kind}
    if kind in BLOCK_PRESETS:
        return layer_weights(base, "linear" if kind == "everything" else kind, 1.0)
    raise IPAdapterError(
        f"There is no preset '{brief(kind)}' for {base.split()[0]}, of whose blocks nobody knows which ones are style or layout. "
        f"The presets are: {', '.join(BLOCK_PRESETS)}. {_HOW}"
    )


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
    if key in _STREAMS:
        found = [block.t for block in blocks if block.name == key]
    elif match := _PLACE.fullmatch(key):
        stream, first, last = match[1], int(match[2]), int(match[3] or match[2])
        found = [block.t for block in blocks if stream in (None, block.name) and first <= (block.id if stream else block.t) <= last]
    else:
        why = " Down, middle and up are blocks of UNets, and so are the sliders of Image Prompt." if _OF_UNETS.match(key) else ""
        raise IPAdapterError(
            f"There are no blocks named '{brief(name.strip())}' in {base.split()[0]}: it has {_blocks_of(base)}.{why} {_HOW}"
        )
    if not found:
        raise IPAdapterError(f"{base.split()[0]} has no block '{brief(key)}' that this adapter acts in: it has {_blocks_of(base)}.")
    return found


def _blocks_of(base: str) -> str:
    """The names of a base's blocks, for people to read."""
    counts = {stream: sum(block.name == stream for block in layers(base)) for stream in _STREAMS}
    return " and ".join(f"{stream} 0 to {count - 1}" for stream, count in counts.items() if count)
