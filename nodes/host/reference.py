"""From an apply node's inputs to features, and on to a patched model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...ipadapter_core.errors import IPAdapterError
from ...ipadapter_core.faces import FaceEmbeds
from ...ipadapter_core.images import rgb
from ...ipadapter_core.layers import STRONG_STYLE_AND_COMPOSITION
from .adapter import Adapter, as_adapter
from .apply import Features, Settings, apply_features, check_model, negative_features, weights_of
from .encoder import check_encoder, encode, encode_enhanced
from .face_features import from_embeds, from_pictures

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
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


def from_pipeline(ipadapter: Any, part: str) -> Any:
    """ "clipvision" or "insightface" of the pipeline that a unified loader gives; None for a bare adapter."""
    if isinstance(ipadapter, dict) and part in ipadapter and ipadapter[part]:
        return ipadapter[part].get("model")
    return None


def apply_call(model: Any, ipadapter: Any, call: Call, per_latent: bool = False) -> tuple[Any, Tensor | None]:
    """(patched clone of the model, the picture of the face or the reference)."""
    adapter = as_adapter(ipadapter)
    check_model(model, adapter)
    clip_vision = call.clip_vision or from_pipeline(ipadapter, "clipvision")
    insightface = call.insightface or from_pipeline(ipadapter, "insightface")
    call = replace(call, clip_vision=clip_vision, insightface=insightface)
    regions = [call] if call.ipadapter_params is None else _regions(call)
    picture = None
    for region in regions:
        model, picture = _apply_one(model, adapter, _styled(region), per_latent)
    return (model if regions else model.clone()), picture


def _regions(call: Call) -> list[Call]:
    """One call for each region that has a picture."""
    names = ("image", "attn_mask", "weight", "weight_type", "start_at", "end_at")
    params = call.ipadapter_params or {}
    regions = zip(*(params[name] for name in names), strict=True)
    calls = [replace(call, ipadapter_params=None, **dict(zip(names, region, strict=True))) for region in regions]
    return [one for one in calls if one.image is not None]


def _styled(call: Call) -> Call:
    """The style and composition nodes' inputs as the common ones."""
    if call.image_style is None:
        return call
    return replace(
        call,
        image=call.image_style,
        image_composition=call.image_style if call.image_composition is None else call.image_composition,
        weight=call.weight_style,
        weight_type=STRONG_STYLE_AND_COMPOSITION if call.expand_style else "style and composition",
    )


def apply_faces(model: Any, ipadapter: Any, faces: FaceEmbeds, call: Call, middle: bool) -> Any:
    """A patched clone of the model, from faces that were read before; no face recogniser is needed."""
    adapter = as_adapter(ipadapter)
    check_model(model, adapter)
    if not adapter.info.face:
        raise IPAdapterError(
            f"{adapter.name} ({adapter.info.label}) has no need of faces: "
            "connect the picture itself to an IPAdapter or IPAdapter Advanced node."
        )
    call = replace(call, clip_vision=call.clip_vision or from_pipeline(ipadapter, "clipvision"))
    positive = _face_side(adapter, call, *from_embeds(adapter, faces))
    return _patched(model, adapter, call, positive, replace(_settings(call), middle=middle))


def _settings(call: Call, per_latent: bool = False) -> Settings:
    return Settings(
        weight=call.weight,
        weight_type=call.weight_type,
        start_at=call.start_at,
        end_at=call.end_at,
        embeds_scaling=call.embeds_scaling,
        mask=check_mask(call.attn_mask),
        weight_composition=call.weight_composition,
        style_boost=call.style_boost,
        composition_boost=call.composition_boost,
        layer_weights=call.layer_weights,
        per_latent=per_latent,
    )


def _apply_one(model: Any, adapter: Adapter, call: Call, per_latent: bool) -> tuple[Any, Tensor]:
    if call.image is None:
        raise IPAdapterError("There is no reference picture: connect one to the image input.")
    positive, picture = features_of(adapter, call, rgb(call.image))
    composition = None
    if call.image_composition is not None:
        composition, _ = features_of(adapter, call, rgb(call.image_composition))
    return _patched(model, adapter, call, positive, _settings(call, per_latent), composition), picture


def _patched(model: Any, adapter: Adapter, call: Call, positive: Features, settings: Settings, composition: Features | None = None) -> Any:
    return apply_features(
        model,
        adapter,
        positive,
        _negative_side(adapter, call, positive),
        settings,
        combine_embeds=call.combine_embeds,
        composition=composition,
        weight_kolors=call.weight_kolors,
        **_face_options(adapter, call),
    )


def features_of(adapter: Adapter, call: Call, image: Tensor) -> tuple[Features, Tensor]:
    """(what the adapter's projection takes of pictures [n, h, w, 3], the faces that were cut out or the pictures themselves)."""
    if adapter.info.face:
        if call.insightface is None:
            refuse_faces(adapter)
        ids, crops = from_pictures(adapter, image, call.insightface)
        return _face_side(adapter, call, ids, crops), crops
    if call.enhance_tiles > 1:
        clip_vision = needed_encoder(adapter, call.clip_vision)
        feature = adapter.info.encoder.feature  # type: ignore[union-attr]
        return (encode_enhanced(clip_vision, image, feature, call.enhance_tiles, call.enhance_ratio, call.encode_batch_size),), image
    return (encode_for(adapter, call.clip_vision, image, call.encode_batch_size),), image


def _face_side(adapter: Adapter, call: Call, ids: Tensor, crops: Tensor) -> Features:
    """Identities alone, or with the encoded crops for the families that look at the face too."""
    if adapter.info.encoder is None:
        return (ids,)
    return ids, encode_for(adapter, call.clip_vision, crops, call.encode_batch_size)


def _negative_side(adapter: Adapter, call: Call, positive: Features) -> Features:
    """The negative picture's features, or zeros (identities too) and the black picture's where there is none."""
    nobody = (torch.zeros_like(positive[0][:1]),) if adapter.info.face else ()
    if adapter.info.encoder is None:
        if call.image_negative is not None:
            log.warning("%s reads faces only: image_negative has no effect.", adapter.name)
        return nobody
    if call.image_negative is not None:
        return (*nobody, encode_for(adapter, call.clip_vision, call.image_negative, call.encode_batch_size))
    return (*nobody, negative_features(adapter, call.clip_vision, positive[-1][:1]))


def _face_options(adapter: Adapter, call: Call) -> dict[str, Any]:
    """FaceID plus: the shortcut of v2 and how much the look of the face counts beside it."""
    if adapter.info.projection != "faceid_plus":
        return {}
    weight, factor = (call.weight, 2.0) if call.weight_faceidv2 is None else (call.weight_faceidv2, 1.0)
    return {"shortcut": adapter.info.family != "faceid-plus", "scale": factor * weights_of(weight)[0]}


def refuse_faces(adapter: Adapter) -> None:
    """Raises IPAdapterError for an adapter whose pictures must go through a face recogniser, where there is none."""
    if adapter.info.face:
        raise IPAdapterError(
            f"{adapter.name} is a FaceID adapter: it needs a face recogniser. Use the IPAdapter FaceID node with "
            "an IPAdapter InsightFace Loader, or the IPAdapter Unified Loader FaceID."
        )


def needed_encoder(adapter: Adapter, clip_vision: Any) -> Any:
    """The encoder, once it is sure to be there and the one the adapter needs."""
    needed = adapter.info.encoder
    if needed is None:
        raise IPAdapterError(f"{adapter.name} does not read pictures through an image encoder.")
    if clip_vision is None:
        raise IPAdapterError(
            f"There is no image encoder: {adapter.name} needs {needed.name}. Connect Load CLIP Vision with {needed.file}, "
            "or use the IPAdapter Unified Loader."
        )
    check_encoder(needed, clip_vision, adapter.name)
    return clip_vision


def encode_for(adapter: Adapter, clip_vision: Any, image: Tensor, batch_size: int = 0, mask: Tensor | None = None) -> Tensor:
    """The features [n, ...] of pictures [n, h, w, c] that the adapter projects."""
    encoder = needed_encoder(adapter, clip_vision)
    height, width = image.shape[1:3]
    if max(height, width) > 1.1 * min(height, width):
        log.info("The reference is %dx%d: the encoder sees the square in its middle only.", width, height)
    return encode(encoder, image, adapter.info.encoder.feature, batch_size, mask)  # type: ignore[union-attr]


def check_mask(mask: Tensor | None, name: str = "attn_mask") -> Tensor | None:
    """[n, H, W] of the MASK input `name`. Raises IPAdapterError for values that are no mask."""
    if mask is None:
        return None
    batch: Tensor = mask.unsqueeze(0) if mask.ndim == 2 else mask
    if batch.ndim != 3 or 0 in batch.shape:
        raise IPAdapterError(f"The {name} has the shape {tuple(mask.shape)}: a mask of [count, height, width] is needed.")
    if not torch.isfinite(batch).all():
        raise IPAdapterError(f"The {name} has values that are not numbers (NaN or infinite): make it anew.")
    if not batch.any():
        log.warning("The %s is black everywhere: the reference has no effect.", name)
    return batch
