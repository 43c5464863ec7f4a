"""What an apply node is given, as the features that the adapter's projection takes."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.pictures.images import rgb
from ..load.adapter import Adapter
from ..pictures.encoder import check_encoder, encode, encode_black, encode_enhanced, encode_fitted
from .apply_inputs import ApplyInputs
from .face_features import from_pictures
from .settings import weights_of

log = logging.getLogger(__name__)

Features = tuple[Tensor, ...]  # what a projection takes, each [n, ...]: encoder features, face embeddings, or faces and features


def features_of(adapter: Adapter, inputs: ApplyInputs, image: Tensor) -> tuple[Features, Tensor]:
    """(what the adapter's projection takes of pictures [n, h, w, 3], the faces that were cut out or the pictures themselves)."""
    if adapter.info.face:
        if inputs.insightface is None:
            refuse_faces(adapter)
        ids, crops = from_pictures(adapter, image, inputs.insightface)
        return face_side(adapter, inputs, ids, crops), crops
    if inputs.enhance_tiles > 1:
        clip_vision = needed_encoder(adapter, inputs.clip_vision)
        feature = adapter.info.encoder.feature  # type: ignore[union-attr]
        return (encode_enhanced(clip_vision, image, feature, inputs.enhance_tiles, inputs.enhance_ratio, inputs.encode_batch_size),), image
    return (encode_for(adapter, inputs.clip_vision, image, inputs.encode_batch_size),), image


def face_side(adapter: Adapter, inputs: ApplyInputs, ids: Tensor, crops: Tensor) -> Features:
    """Identities alone, or with the encoded crops for the families that look at the face too."""
    if adapter.info.encoder is None:
        return (ids,)
    return ids, encode_for(adapter, inputs.clip_vision, crops, inputs.encode_batch_size)


def negative_side(adapter: Adapter, inputs: ApplyInputs, positive: Features) -> Features:
    """The negative picture's features, or zeros (identities too) and the black picture's where there is none."""
    nobody = (torch.zeros_like(positive[0][:1]),) if adapter.info.face else ()
    if adapter.info.encoder is None:
        if inputs.image_negative is not None:
            log.warning("%s reads faces only: image_negative has no effect.", adapter.name)
        return nobody
    if inputs.image_negative is not None:
        picture = rgb(inputs.image_negative, "image_negative")
        return (*nobody, encode_for(adapter, inputs.clip_vision, picture, inputs.encode_batch_size))
    return (*nobody, negative_features(adapter, inputs.clip_vision, positive[-1][:1]))


def negative_features(adapter: Adapter, clip_vision: Any, positive: Tensor, pixels: int = 0) -> Tensor:
    """The negative side where no negative picture is given: zeros, or the black picture where zeros were not trained with.

    pixels: the size at which the positive side was encoded, 0 for the encoder's own.
    """
    needed = adapter.info.encoder
    if needed is None or adapter.info.nothing == "zeros":
        return torch.zeros_like(positive)
    if clip_vision is None:
        raise IPAdapterError(
            f"{adapter.name} needs an image encoder for its negative side: connect Load CLIP Vision with {needed.file}, or a neg_embed."
        )
    check_encoder(needed, clip_vision, adapter.name)
    return encode_black(clip_vision, needed.feature, pixels)


def face_options(adapter: Adapter, inputs: ApplyInputs) -> dict[str, Any]:
    """FaceID plus: the shortcut of v2 and how much the look of the face counts beside it."""
    if adapter.info.projection != "faceid_plus":
        return {}
    shortcut = adapter.info.family != "faceid-plus"
    weight, factor = (inputs.weight, 2.0) if inputs.weight_faceidv2 is None else (inputs.weight_faceidv2, 1.0)
    listed = weights_of(weight)
    if shortcut and len(listed) > 1:
        log.warning("weight_faceidv2 is one for all latents: the first weight of the list is used.")
    return {"shortcut": shortcut, "scale": factor * listed[0]}


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
    if not adapter.info.stretched and max(height, width) > 1.1 * min(height, width):
        log.info("The reference is %dx%d: the encoder sees the square in its middle only.", width, height)
    feature = adapter.info.encoder.feature  # type: ignore[union-attr]
    if adapter.info.stretched:
        return encode_fitted(encoder, image, feature, "stretch", 1, mask=mask)
    return encode(encoder, image, feature, batch_size, mask)
