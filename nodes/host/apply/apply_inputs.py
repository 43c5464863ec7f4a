"""The keywords of an apply node, and what they mean."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ....ipadapter_core.adapter.embeds import COMBINE_METHODS
from ....ipadapter_core.adapter.layers import STRONG_STYLE_AND_COMPOSITION
from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.values import check_choice, check_number, check_whole
from .settings import Settings

log = logging.getLogger(__name__)

REGION_KEYS = ("image", "attn_mask", "weight", "weight_type", "start_at", "end_at")  # the lists of IPADAPTER_PARAMS


@dataclass(frozen=True)
class ApplyInputs:
    """The keywords of apply_ipadapter, with their defaults."""

    start_at: float = 0.0
    end_at: float = 1.0
    weight: float | list[float] = 1.0
    weight_style: float | list[float] = 1.0
    weight_composition: float | list[float] = 1.0
    expand_style: bool = False
    weight_type: str = "linear"
    combine_embeds: str = "concat"
    weight_faceidv2: float | list[float] | None = None
    image: Tensor | None = None
    image_style: Tensor | None = None
    image_composition: Tensor | None = None
    image_negative: Tensor | None = None
    clip_vision: Any = None
    attn_mask: Tensor | None = None
    insightface: Any = None
    embeds_scaling: str = "V only"
    layer_weights: str | None = None
    ipadapter_params: dict[str, list] | None = None
    encode_batch_size: int = 0
    style_boost: float | list[float] | None = None
    composition_boost: float | list[float] | None = None
    enhance_tiles: int = 1
    enhance_ratio: float = 1.0
    weight_kolors: float = 1.0

    def __post_init__(self) -> None:
        check_choice(self.combine_embeds, "way to combine embeds", COMBINE_METHODS)
        check_whole(self.encode_batch_size, "encode_batch_size")
        check_whole(self.enhance_tiles, "enhance_tiles", 1, 64)
        check_number(self.enhance_ratio, "enhance_ratio")
        check_number(self.weight_kolors, "weight_kolors")


def regions_of(inputs: ApplyInputs) -> list[ApplyInputs]:
    """One inputs for each region that has a picture."""
    params = inputs.ipadapter_params
    if not is_params(params):
        raise IPAdapterError("There are no regions in ipadapter_params: connect an IPAdapter Regional Conditioning node.")
    regions = zip(*(params[key] for key in REGION_KEYS), strict=True)
    each = [replace(inputs, ipadapter_params=None, **dict(zip(REGION_KEYS, region, strict=True))) for region in regions]
    return [one for one in each if one.image is not None]


def is_params(value: Any) -> TypeGuard[Mapping[str, list]]:
    """Whether a value is IPADAPTER_PARAMS: lists of the same length for all REGION_KEYS."""
    lists: list[Any] = [value.get(key) for key in REGION_KEYS] if isinstance(value, Mapping) else [None]
    return all(isinstance(one, list) for one in lists) and len({len(one) for one in lists}) == 1


def styled(inputs: ApplyInputs) -> ApplyInputs:
    """The style and composition nodes' inputs as the common ones."""
    if inputs.image_style is None:
        return inputs
    return replace(
        inputs,
        image=inputs.image_style,
        image_composition=inputs.image_style if inputs.image_composition is None else inputs.image_composition,
        weight=inputs.weight_style,
        weight_type=STRONG_STYLE_AND_COMPOSITION if inputs.expand_style else "style and composition",
    )


def settings_of(inputs: ApplyInputs, per_latent: bool = False) -> Settings:
    return Settings(
        weight=inputs.weight,
        weight_type=inputs.weight_type,
        start_at=inputs.start_at,
        end_at=inputs.end_at,
        embeds_scaling=inputs.embeds_scaling,
        mask=check_mask(inputs.attn_mask),
        weight_composition=inputs.weight_composition,
        style_boost=inputs.style_boost,
        composition_boost=inputs.composition_boost,
        layer_weights=inputs.layer_weights,
        per_latent=per_latent,
    )


def check_mask(mask: Tensor | None, name: str = "attn_mask") -> Tensor | None:
    """[n, H, W] of the MASK input `name`. Raises IPAdapterError for values that are no mask."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.is_complex():
        raise IPAdapterError(f"The {name} is not a mask but a {type(mask).__name__}: connect a MASK output.")
    mask = mask if mask.is_floating_point() else mask.float()
    batch: Tensor = mask.unsqueeze(0) if mask.ndim == 2 else mask
    if batch.ndim != 3 or 0 in batch.shape:
        raise IPAdapterError(f"The {name} has the shape {tuple(mask.shape)}: a mask of [count, height, width] is needed.")
    if not torch.isfinite(batch).all():
        raise IPAdapterError(f"The {name} has values that are not numbers (NaN or infinite): recreate it.")
    if not batch.any():
        log.warning("The %s is black everywhere: the reference has no effect.", name)
    return batch
