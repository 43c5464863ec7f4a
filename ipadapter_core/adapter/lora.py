"""The LoRA that a FaceID file carries beside its K and V: which layer of the UNet each pair belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ..errors import IPAdapterError
from .layers import key_order

_KEY = re.compile(r"(\d+)\.to_(q|k|v|out)_lora\.(down|up)\.weight")


class LoraLayer(NamedTuple):
    """A pair whose product, up @ down, is added to one linear layer: down [r, in], up [out, r]."""

    block: str  # "input", "middle" or "output"
    id: int
    index: int  # of the transformer block inside it
    attention: str  # "attn1" or "attn2"
    linear: str  # "to_q", "to_k", "to_v" or "to_out.0"
    down: Tensor
    up: Tensor


def lora_layers(ip_adapter: Mapping[str, Tensor], base: str) -> tuple[LoraLayer, ...]:
    """The pairs `n.to_{q,k,v,out}_lora.{down,up}.weight` of a file's ip_adapter part for "SD1.5" or "SDXL"; none if it has none.

    Two numbers for each transformer block, in the order of the keys: even is attn1, odd attn2. There is no alpha, so the
    change of the weight is up @ down (tencent-ailab/IP-Adapter, LoRAIPAttnProcessor).
    Raises IPAdapterError where half of a pair is missing or a number is none of this base's.
    """
    pairs: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in ip_adapter.items():
        if match := _KEY.fullmatch(key):
            pairs.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
    blocks = key_order(base)
    layers = []
    for (number, name), pair in sorted(pairs.items()):
        if number >= 2 * len(blocks) or len(pair) < 2:
            raise IPAdapterError(
                f"The LoRA in this FaceID file does not fit {base} (layer {number}, to_{name}). "
                "The file may be damaged or made for another base model: download it again, or connect a model it was made for."
            )
        linear = "to_out.0" if name == "out" else f"to_{name}"
        layers.append(LoraLayer(*blocks[number // 2], f"attn{1 + number % 2}", linear, pair["down"], pair["up"]))
    return tuple(layers)
