"""Which adapter key belongs to which UNet block, and how strong the image is in each of them.

Key numbers follow diffusers' order of attention processors: down blocks, up blocks, middle block; each transformer
block takes two, the odd one is its cross-attention (checkpoints published in h94/IP-Adapter).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import IPAdapterError

Weight = float | tuple[float, ...]  # one for all latents, or one for each

# (name, id, transformer depth) in key order; the middle block comes last in the keys though not in the UNet
_BLOCKS: dict[str, tuple[tuple[str, int, int], ...]] = {
    "SD1.5": (
        *(("input", i, 1) for i in (1, 2, 4, 5, 7, 8)),
        *(("output", i, 1) for i in range(3, 12)),
        ("middle", 0, 1),
    ),
    "SDXL": (
        ("input", 4, 2), ("input", 5, 2), ("input", 7, 10), ("input", 8, 10),
        ("output", 0, 10), ("output", 1, 10), ("output", 2, 10), ("output", 3, 2), ("output", 4, 2), ("output", 5, 2),
        ("middle", 0, 10),
    ),
}  # fmt: skip
_LEVELS = {"SD1.5": 4, "SDXL": 3}
STREAMS = ("double", "single")  # of blocks, in a transformer
# (stream, blocks) of the transformers; XLabs' adapters for Flux act in its double blocks alone
_TRANSFORMERS = {"Flux": (("double", 19), ("single", 38)), "Flux double": (("double", 19),), "SD3.5": (("double", 38),)}


@dataclass(frozen=True)
class Layer:
    """One cross-attention: its number in the adapter's keys, its block in the UNet, and `t`, the place of its
    SpatialTransformer in the UNet's order of execution (ComfyUI's transformer_index). depth: how many cross-attentions
    that SpatialTransformer has, `index` being this one's place among them. level: how often the latent is halved there.

    Of a transformer model: block `id` of the stream `name`, "double" or "single", whose tokens are patches of 2 x 2."""

    key: int
    name: str
    id: int
    index: int
    t: int
    depth: int
    level: int


@lru_cache
def layers(base: str) -> tuple[Layer, ...]:
    """Every cross-attention of "SD1.5" (16) or "SDXL" (70) in key order; the middle block's are the last.

    Or every block of "Flux" (57), of its double blocks alone ("Flux double", 19) or of "SD3.5" (38).
    """
    if is_transformer(base):
        blocks = [(name, id) for name, count in _TRANSFORMERS[base] for id in range(count)]
        return tuple(Layer(i, name, id, 0, i, 1, 1) for i, (name, id) in enumerate(blocks))
    blocks = _BLOCKS[base]
    execution = sorted(blocks, key=lambda block: ("input", "middle", "output").index(block[0]))
    order = [(block, index) for block in blocks for index in range(block[2])]
    return tuple(
        Layer(2 * i + 1, name, id, index, execution.index((name, id, depth)), depth, _level(base, name, id))
        for i, ((name, id, depth), index) in enumerate(order)
    )


def is_transformer(base: str) -> bool:
    return base in _TRANSFORMERS


def _level(base: str, name: str, id: int) -> int:
    """Each level has three input and three output blocks; the middle block is at the last one."""
    last = _LEVELS[base] - 1
    return {"input": id // 3, "middle": last, "output": last - id // 3}[name]


def key_order(base: str) -> tuple[tuple[str, int, int], ...]:
    """(block name, block id, transformer block index) of every transformer block, in the order of the adapter's keys."""
    return tuple((layer.name, layer.id, layer.index) for layer in layers(base))


WEIGHT_TYPES = (
    "linear", "ease in", "ease out", "ease in-out", "reverse in-out", "weak input", "weak output", "weak middle", "strong middle",
    "style transfer", "composition", "strong style transfer", "style and composition", "style transfer precise", "composition precise",
)  # fmt: skip
CURVES = WEIGHT_TYPES[:5]  # those that know nothing of a UNet's blocks
STRONG_STYLE_AND_COMPOSITION = "strong style and composition"  # what expand_style of the style and composition nodes means

_COMPOSITION = {"SD1.5": {4: 0.25, 5: 1.0}, "SDXL": {3: 1.0}}  # t -> share of the composition weight
_STYLE = {"SD1.5": (*range(4), *range(9, 16)), "SDXL": (6,)}
_STRONG_STYLE = {"SD1.5": (*range(4), *range(6, 16)), "SDXL": (*range(3), *range(4, 11))}
_FAINT = {"SD1.5": (6, 7, 8), "SDXL": (0, 1, 2, 4, 5, 7, 8, 9, 10)}  # a tenth of the boost in "composition precise"


def composition_ts(base: str) -> frozenset[int]:
    """The transformers that hold the layout of a picture (InstantStyle, arXiv 2404.02733)."""
    _check_curve(base, "composition")
    return frozenset(_COMPOSITION[base])


def swapped_ts(base: str, weight_type: str) -> frozenset[int]:
    """Where a precise type takes the image away: cond gets zero tokens there, uncond the positive ones."""
    if weight_type == "style transfer precise":
        return composition_ts(base)
    if weight_type == "composition precise":
        return frozenset(layer.t for layer in layers(base)) - composition_ts(base)
    return frozenset()


def layer_weights(
    base: str,
    weight_type: str,
    weight: float,
    *,
    weight_composition: float = 1.0,
    boost: float | None = None,
) -> dict[int, float]:
    """Weight for each `t`; a `t` that is missing has no image attention.

    `boost` is the other side's weight of the precise types (style_boost, composition_boost; `weight` where None).
    Curves and sets as ComfyUI_IPAdapter_plus has them.
    """
    _check_curve(base, weight_type)
    names = {layer.t: layer.name for layer in layers(base)}
    span = len(names)

    def curve(share):
        return {t: weight * (0.05 + 0.95 * share(t)) for t in names}

    def per_block(weak: Sequence[str]):
        return {t: weight * (0.2 if name in weak else 1.0) for t, name in names.items()}

    def composed(style: Iterable[int], style_weight: float, composition_weight: float):
        return dict.fromkeys(style, style_weight) | {t: composition_weight * s for t, s in _COMPOSITION[base].items()}

    boost = weight if boost is None else boost
    match weight_type:
        case "linear":
            return dict.fromkeys(names, weight)
        case "ease in":
            return curve(lambda t: 1 - t / span)
        case "ease out":
            return curve(lambda t: t / span)
        case "ease in-out":
            return curve(lambda t: 1 - abs(t - span / 2) / (span / 2))
        case "reverse in-out":
            return curve(lambda t: abs(t - span / 2) / (span / 2))
        case "weak input" | "weak output" | "weak middle":
            return per_block((weight_type.removeprefix("weak "),))
        case "strong middle":
            return per_block(("input", "output"))
        case "style transfer":
            return dict.fromkeys(_STYLE[base], weight)
        case "strong style transfer":
            return dict.fromkeys(_STRONG_STYLE[base], weight)
        case "composition":
            return composed((), 0.0, weight)
        case "style and composition":
            return composed(_STYLE[base], weight, weight_composition)
        case "strong style and composition":
            return dict.fromkeys(_STRONG_STYLE[base], weight) | dict.fromkeys(_COMPOSITION[base], weight_composition)
        case "style transfer precise":
            return composed(_STYLE[base], weight, boost)
        case "composition precise":
            return composed(_STYLE[base], boost, weight) | dict.fromkeys(_FAINT[base], 0.1 * boost)
    raise IPAdapterError(f"There is no weight type '{weight_type}'. The weight types are: {', '.join(WEIGHT_TYPES)}.")


def _check_curve(base: str, weight_type: str) -> None:
    """Raises IPAdapterError for a weight type of a UNet's blocks on a transformer."""
    if is_transformer(base) and weight_type in WEIGHT_TYPES and weight_type not in CURVES:
        raise IPAdapterError(
            f"'{weight_type}' is made of blocks that UNets have, and {base.split()[0]} is a transformer, of whose blocks nobody knows "
            f"which ones are style or layout. Use one of: {', '.join(CURVES)}; or write the weight of each block into layer_weights."
        )


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError
    return number


def custom_weights(base: str, text: str, weight: float) -> dict[int, float]:
    """Weights by hand: "t:w, t:w" (commas or new lines), each times `weight`; other layers get no image attention.

    Raises IPAdapterError for a part that is no "number:number" or a `t` the base has not.
    """
    last = max(layer.t for layer in layers(base))
    out: dict[int, float] = {}
    for part in re.split(r"[,\n]", text):
        if not part.strip():
            continue
        try:
            t, w = part.split(":")
            out[int(t)] = _finite(float(w)) * weight
        except ValueError:
            raise IPAdapterError(
                f"layer_weights has a part that cannot be read: '{part.strip()}'. "
                "Write layer:weight pairs with commas, such as 3:1.0, 6:0.5."
            ) from None
        if not 0 <= int(t) <= last:
            raise IPAdapterError(f"layer_weights names layer {int(t)}, but {base} has layers 0 to {last}.")
    return out
