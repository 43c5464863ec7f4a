"""What a UNet of ComfyUI's is: its base, its cross-attentions; and any model's compute dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer

from ....ipadapter_core.adapter.layers import layers
from ....ipadapter_core.errors import IPAdapterError

EXIST = "IP-Adapters exist for SD1.5, SDXL, Kolors, Flux.1 and SD3.5 Large: connect one of those."
_BASE_OF_CONTEXT = {768: "SD1.5", 1024: "SD2", 1280: "the SDXL refiner", 2048: "SDXL"}


@dataclass(frozen=True)
class CrossAttention:
    name: str
    id: int
    index: int
    heads: int
    width: int
    context: int


def compute_dtype(model: Any) -> torch.dtype:
    """The dtype a BaseModel's layers calculate in, whatever its weights are stored as."""
    return getattr(model, "manual_cast_dtype", None) or model.get_dtype()


def cross_attentions(model: Any) -> list[CrossAttention]:
    """Every cross-attention of a ModelPatcher's UNet in order of execution; empty for models that are no UNet."""
    unet = model.model.diffusion_model
    if not hasattr(unet, "input_blocks") or not hasattr(unet, "middle_block"):
        return []
    places = [("input", i, block) for i, block in enumerate(unet.input_blocks)]
    places.append(("middle", 0, unet.middle_block))
    places += [("output", i, block) for i, block in enumerate(unet.output_blocks)]
    found = []
    for name, block_id, block in places:
        for module in block or ():
            if not isinstance(module, SpatialTransformer):
                continue
            for index, transformer in enumerate(module.transformer_blocks):
                attention = transformer.attn2
                if attention is not None:
                    width = attention.heads * attention.dim_head
                    found.append(CrossAttention(name, block_id, index, attention.heads, width, attention.to_k.in_features))
    return found


def unet_base(found: list[CrossAttention]) -> str:
    """ "SD1.5" or "SDXL" by a UNet's cross-attentions. Raises IPAdapterError that names any other UNet."""
    base = _BASE_OF_CONTEXT.get(found[0].context, f"a UNet with {found[0].context} wide text")
    count = len(layers(base)) if base in ("SD1.5", "SDXL") else None
    if count is None:
        raise IPAdapterError(f"The connected model is {base}. {EXIST}")
    if len(found) != count:
        raise IPAdapterError(
            f"The connected model has {len(found)} cross-attentions where {base} has {count} (a distilled one such as SSD-1B?). "
            f"No IP-Adapter fits it: connect a full {base} model."
        )
    return base
