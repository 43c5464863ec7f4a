"""What ComfyUI's model is: a UNet or a transformer, and of which base."""

from __future__ import annotations

from typing import Any, NamedTuple

import comfy.model_base
from comfy.ldm.flux.model import Flux

from ....ipadapter_core.errors import IPAdapterError
from .unet import EXIST, cross_attentions, unet_base


class Shape(NamedTuple):
    """Heads and width of every block of a transformer."""

    heads: int
    width: int


def base_of(model: Any) -> str:
    """ "SD1.5", "SDXL", "Flux", "Chroma" or "SD3.5" of a ModelPatcher. Raises IPAdapterError that names any other model."""
    found = cross_attentions(model)
    if found:
        return unet_base(found)
    inner, name = model.model.diffusion_model, type(model.model).__name__
    if isinstance(inner, Flux) and not getattr(inner.params, "global_modulation", False):
        return _flux(inner, "Flux")
    if type(model.model) is getattr(comfy.model_base, "Chroma", None):
        return _flux(inner, "Chroma")
    if isinstance(model.model, comfy.model_base.SD3):
        count = len(inner.joint_blocks)
        if count == 38:
            return "SD3.5"
        raise IPAdapterError(
            f"The connected model is SD3 with {count} blocks (a medium one?), and the IP-Adapter that exists is for the 38 of SD3.5 Large: "
            "connect SD3.5 Large."
        )
    if isinstance(inner, Flux):
        raise IPAdapterError(f"The connected model is {name} (Flux.2), for which no IP-Adapter has been published. {EXIST}")
    raise IPAdapterError(f"The connected model is {name}, for which IP-Adapters are not supported. {EXIST}")


def transformer_shape(model: Any) -> Shape:
    """Of a model whose base is a transformer."""
    inner = model.model.diffusion_model
    return Shape(inner.num_heads, inner.hidden_size)


def _flux(inner: Any, base: str) -> str:
    double, single = len(inner.double_blocks), len(inner.single_blocks)
    if (double, single) != (19, 38):
        raise IPAdapterError(
            f"The connected model has {double} double and {single} single blocks where {base} has 19 and 38 (a pruned one?). "
            f"No IP-Adapter fits it: connect a full {base} model."
        )
    return base
