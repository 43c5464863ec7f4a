"""Weights over the layers of a UNet by names that mean something, and diffusers' scale dictionaries.

Blocks are numbered as in diffusers: SD1.5 has down 0 to 2, middle, up 1 to 3; SDXL has down 1 and 2, middle, up 0 and 1. Their layers
are counted from 0: "up 0.1" is layer 1 of up block 0, {"up": {"block_0": [0, 1, 0]}} in diffusers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from ..adapter.layers import WEIGHT_TYPES, Layer, is_transformer, layer_weights, layers
from ..errors import IPAdapterError
from ..values import brief, check_number
from .block_weights import SPREADS, block_shares, named_number, spread

GROUPS = {"everything": "linear", "style": "style transfer", "layout": "composition"}  # name -> weight type
PRESETS = (*GROUPS, *SPREADS, *(kind for kind in WEIGHT_TYPES if "precise" not in kind))
Shares = dict[int, float]  # t -> share of the weight; a `t` that is missing is off

_HOW = "Write a preset or name:number pairs with commas, such as style, or up 1: 0.5, down 2: 0."
_WRITE = 'Write it as {"up": {"block_0": [0, 1, 0]}}.'
_UPDOWN = {"input": "down", "output": "up"}
_PLACE = re.compile(r"(down|up|middle|mid)?\s*(?:1/(\d+)|(\d+)(?:\.(\d+))?)?")


def shares_of(base: str, given: Any) -> Shares:
    """The share of the weight at each layer: of text (a preset, then changes), or of diffusers' scale dictionary, as such or as text.

    Raises IPAdapterError for names and blocks that the base has not, and for what cannot be read.
    """
    if is_transformer(base):
        return block_shares(base, given)
    if isinstance(given, Mapping):
        return scales_of(base, given)
    if not isinstance(given, str):
        raise IPAdapterError(f"The layers must be text, and this is {brief(given)}. {_HOW}")
    if given.strip().startswith("{"):
        try:
            return scales_of(base, ast.literal_eval(given.strip()))
        except (SyntaxError, TypeError, MemoryError, RecursionError):
            raise IPAdapterError(f"The layers hold a scale dictionary that cannot be read: {brief(given.strip())}. {_WRITE}") from None
        except ValueError as error:
            if isinstance(error, IPAdapterError):
                raise
            raise IPAdapterError(f"The layers hold a scale dictionary with more than names and numbers: {brief(given.strip())}.") from None
    parts = [part.strip() for part in re.split(r"[,\n]", given) if part.strip()]
    preset = parts.pop(0) if parts and ":" not in parts[0] else "everything"
    shares = _preset(base, preset)
    for part in parts:
        name, weight = named_number(part, _HOW)
        shares |= {t: weight * share for t, share in _named(base, name).items()}
    return shares


def scales_of(base: str, scales: Any) -> Shares:
    """diffusers' scale dictionary: {"down" | "mid" | "up": number or {"block_0": number or a number for each layer}}; the rest is off.

    As set_ip_adapter_scale of diffusers reads it. Raises IPAdapterError for blocks that the base has not and lists of another length.
    """
    if not isinstance(scales, Mapping):
        raise IPAdapterError(f"The scales of the layers are no dictionary but {brief(scales)}. {_WRITE}")
    blocks: dict[str, dict[str, list[int]]] = {"down": {}, "mid": {}, "up": {}}
    for layer in layers(base):
        side, block, _ = place_of(layer)
        listed = blocks["mid" if side == "middle" else side].setdefault(f"block_{block}", [])
        if layer.t not in listed:
            listed.append(layer.t)
    shares: Shares = {}
    for side, given in scales.items():
        if side not in blocks:
            raise IPAdapterError(f"A scale dictionary has down, mid and up, and this one has '{brief(side)}'.")
        found = blocks[side]
        if not isinstance(given, Mapping):
            given = dict.fromkeys(found, given)
        elif side == "mid":
            raise IPAdapterError(f"The scale of mid must be a number, and this is {brief(dict(given))}.")
        for block, values in given.items():
            if block not in found:
                raise IPAdapterError(
                    f"{base} has no {side} '{brief(block)}' with an attention to the picture. Its {side} blocks are: {', '.join(found)}."
                )
            ts = found[block]
            listed: list[Any] = list(values) if isinstance(values, list | tuple) else [values]
            listed = listed * len(ts) if len(listed) == 1 else listed
            if len(listed) != len(ts):
                raise IPAdapterError(
                    f"{side} {block} of {base} has {len(ts)} layers, and the scale dictionary has {len(listed)} numbers for it."
                )
            for t, value in zip(ts, listed, strict=True):
                check_number(value, f"The scale of {side} {block}")
                shares[t] = float(value)
    return shares


def place_of(layer: Layer) -> tuple[str, int, int]:
    """("down", "middle" or "up", number of the block, number of the layer in it), as diffusers counts them."""
    if layer.name == "middle":
        return "middle", 0, 0
    return _UPDOWN[layer.name], layer.id // 3, layer.id % 3 - (layer.name == "input")


def blocks_of(base: str) -> str:
    """The names of a base's blocks, for people to read."""
    found: dict[str, list[str]] = {"down": [], "middle": [], "up": []}
    for layer in layers(base):
        side, block, _ = place_of(layer)
        if str(block) not in found[side]:
            found[side].append(str(block))
    return f"down {', '.join(found['down'])}, middle, up {', '.join(found['up'])}"


def _preset(base: str, name: str) -> Shares:
    kind = " ".join(name.lower().split())
    if kind in SPREADS:
        return spread(base, kind)
    if kind in PRESETS:
        return layer_weights(base, GROUPS.get(kind, kind), 1.0)
    raise IPAdapterError(f"There is no preset '{brief(name)}' of layers. The presets are: {', '.join(PRESETS)}. {_HOW}")


def _named(base: str, name: str) -> Shares:
    """The layers of a name: a group, or blocks by side, number, layer and resolution ("down", "up 1", "up 1.0", "1/4", "down 1/4")."""
    key = " ".join(name.lower().split())
    if key in GROUPS:
        return _preset(base, key)
    match = _PLACE.fullmatch(key)
    if match is None or not key:
        raise IPAdapterError(
            f"There are no layers named '{brief(name.strip())}': {base} has {blocks_of(base)}, and the groups {', '.join(GROUPS)}."
        )
    side, scale, block, index = match.groups()
    side = "middle" if side == "mid" else side
    found = {}
    for layer in layers(base):
        at = place_of(layer)
        fits = (side in (None, at[0]), scale in (None, str(2**layer.level)), block in (None, str(at[1])), index in (None, str(at[2])))
        if all(fits) and (side or not block):
            found[layer.t] = 1.0
    if not found:
        raise IPAdapterError(f"{base} has no block '{brief(key)}' with an attention to the picture: it has {blocks_of(base)}.")
    return found
