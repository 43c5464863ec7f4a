"""Pictures through ComfyUI's CLIP vision models, with the features kept by content."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ....ipadapter_core.adapter.pooling import pooled
from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.files.encoders import HIDDEN, POOLED, PROJECTED, Encoder, name_of
from ....ipadapter_core.pictures.fit import FITS, boxes_of, fit, interpolate_positions, per_picture, pool
from ....ipadapter_core.pictures.images import rgb
from ....ipadapter_core.pictures.preprocess import CLIP_MEAN, SIZE, around_middle, clip_pixels
from ....ipadapter_core.pictures.tiles import join_tiled, merge_tile_features, split_tiles
from ....ipadapter_core.values import check_choice, check_whole
from ..cache import ByteCache, digest, digests, number_of
from .pooling import pooling_head

log = logging.getLogger(__name__)

_FEATURES: ByteCache[Tensor] = ByteCache(512 << 20)
_BATCH = 16  # pictures encoded at a time where the user names no number


def widths(clip_vision: Any) -> dict[str, int]:
    """Feature name -> width of a ComfyUI CLIP vision model; empty for one of another make."""
    model = getattr(clip_vision, "model", None)
    vision, projection = getattr(model, "vision_model", None), getattr(model, "visual_projection", None)
    found = {}
    if vision is not None:
        found[HIDDEN] = vision.embeddings.patch_embedding.weight.shape[0]
        found[PROJECTED] = getattr(projection, "out_features", found[HIDDEN])
        found[POOLED] = found[HIDDEN]
    return found


def wrong_encoder(needed: Encoder, width: int, adapter_name: str) -> IPAdapterError:
    name = name_of(needed.feature, width) or name_of(HIDDEN, width) or "another model"
    return IPAdapterError(
        f"{adapter_name} needs the image encoder {needed.name} ({needed.width} wide), "
        f"the connected image encoder is {name} ({width} wide). "
        f"Load {needed.file} with Load CLIP Vision, or use the IPAdapter Unified Loader, which finds it."
    )


def check_encoder(needed: Encoder, clip_vision: Any, adapter_name: str) -> None:
    """Raises IPAdapterError where the encoder gives features of another width than the adapter takes; logs another picture size."""
    width = widths(clip_vision).get(needed.feature)
    if width is not None and width != needed.width:
        raise wrong_encoder(needed, width, adapter_name)
    size = getattr(clip_vision, "image_size", needed.size)
    if needed.file and size != needed.size:
        log.warning("%s was made with pictures of %d pixels, the connected encoder takes %d.", adapter_name, needed.size, size)


def encode(
    clip_vision: Any, images: Tensor, feature: str, batch_size: int = 0, mask: Tensor | None = None, pixels: int = 0
) -> Tensor:
    """Pictures [n, h, w, 3], as rgb() gives them, -> features [n, ...] in fp32, each encoded once while it is remembered.

    Centre-cropped to the encoder's size, or to `pixels` where that is not 0. mask [m, H, W] is multiplied onto the normalised
    pixels: one for each picture, or the first for all.
    """
    own = getattr(clip_vision, "image_size", 0)
    pixels = pixels or own
    masks = None if mask is None else per_picture(mask, len(images)).to(images.device)
    number = number_of(clip_vision)
    keys = [(number, feature, pixels, *seen) for seen in zip(digests(images), _seen_through(mask, len(images)), strict=True)]
    found = {key: features for key in keys if (features := _FEATURES.get(key)) is not None}
    missing = {key: i for i, key in enumerate(keys) if key not in found}
    size = batch_size or (max(1, _BATCH * own**2 // pixels**2) if 0 < own < pixels else _BATCH)
    todo = list(missing.items())
    progress = comfy.utils.ProgressBar(len(todo)) if len(todo) > size else None
    for start in range(0, len(todo), size):
        comfy.model_management.throw_exception_if_processing_interrupted()
        some = todo[start : start + size]
        places = [i for _, i in some]
        features = _run(clip_vision, images[places], feature, None if masks is None else masks[places], pixels)
        for (key, _), one in zip(some, features, strict=True):
            found[key] = one.detach().to("cpu", torch.float32, copy=True)
            if number is not None:
                _FEATURES.put(key, found[key], found[key].nbytes)
        if progress:
            progress.update(len(some))
    return torch.stack([found[key] for key in keys]).to(comfy.model_management.intermediate_device())


def _seen_through(mask: Tensor | None, count: int) -> list[bytes]:
    """Fingerprints of the masks of `count` pictures."""
    if mask is None:
        return [b""] * count
    return digests(mask) if len(mask) == count else [digest(mask[0])] * count


def encode_black(clip_vision: Any, feature: str, pixels: int = 0) -> Tensor:
    """Features [1, ...] of a black picture: the negative side where none is given."""
    size = clip_vision.image_size
    return encode(clip_vision, torch.zeros(1, size, size, 3), feature, pixels=pixels)


def seen_as(clip_vision: Any, pixels: int = 0) -> tuple[int, Sequence[float]]:
    """(pixels on a side, mean colour) of a picture as the encoder sees it; CLIP's where there is no encoder or it does not tell."""
    return pixels or getattr(clip_vision, "image_size", SIZE), getattr(clip_vision, "image_mean", CLIP_MEAN)


def encode_fitted(
    clip_vision: Any, images: Tensor, feature: str, how: str, tiles: int, pixels: int = 0, mask: Tensor | None = None
) -> Tensor:
    """Features [n, ...] of pictures made square by one of FITS; those of a picture's tiles are averaged. pixels: as for encode."""
    check_choice(how, "way to fit a picture", FITS)
    check_whole(tiles, "tiles", 1, 64)
    check_whole(pixels, "size", 0, 4096)
    images = rgb(images)
    size, mean = seen_as(clip_vision, pixels)
    height, width = images.shape[1:3]
    at_once = max(1, _BATCH // len(boxes_of(how, height, width, tiles)))  # the tiles of many pictures together would be large
    masks = None if mask is None else per_picture(mask, len(images))
    progress = comfy.utils.ProgressBar(len(images)) if len(images) > at_once else None
    features = []
    for start in range(0, len(images), at_once):
        part = slice(start, start + at_once)
        fitted = fit(images[part], how, tiles, size, None if masks is None else masks[part], mean)
        squares = encode(clip_vision, fitted.squares, feature, mask=fitted.masks, pixels=pixels)
        features.append(pool(squares, len(fitted.boxes), fitted.masks))
        if progress:
            progress.update(len(images[part]))
    return torch.cat(features)


def _run(clip_vision: Any, images: Tensor, feature: str, mask: Tensor | None, size: int) -> Tensor:
    if feature == POOLED:  # ComfyUI's image_embeds of SigLIP are the normed tokens of its last layer
        return pooled(pooling_head(clip_vision), _run(clip_vision, images, PROJECTED, mask, size))
    own_size = size == getattr(clip_vision, "image_size", 0)
    if mask is None and own_size:
        return clip_vision.encode_image(around_middle(images, size) if size else images)[feature]
    if getattr(clip_vision, "model", None) is None:
        raise IPAdapterError(
            "The connected image encoder comes from another pack and sees whole pictures at its own size only: disconnect the mask and set "
            "size to 0, or connect Load CLIP Vision instead."
        )
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    pixels = clip_pixels(images, size, clip_vision.image_mean, clip_vision.image_std, mask)
    replaced = {} if own_size else _positions(clip_vision.model, size)
    arguments = {"pixel_values": pixels.to(clip_vision.load_device), "intermediate_output": -2}
    out = torch.func.functional_call(clip_vision.model, replaced, (), arguments)
    return out[1 if feature == HIDDEN else 2].to(comfy.model_management.intermediate_device())


_POSITIONS = "vision_model.embeddings.position_embedding.weight"


def _positions(model: Any, size: int) -> dict[str, Tensor]:
    """The position embeddings for pictures of another size, by the name of the parameter whose place they take for one call."""
    if not hasattr(model, "vision_model"):
        raise IPAdapterError("This image encoder has no position table that could be interpolated: set size to 0, its own size.")
    patch = model.vision_model.embeddings.patch_embedding.weight.shape[-1]
    if size % patch:
        low, high = size // patch * patch, (size // patch + 1) * patch  # low may be 0, the encoder's own size
        raise IPAdapterError(
            f"This image encoder reads patches of {patch} pixels, and {size} is not a multiple of that: set size to {low} or {high}."
        )
    return {_POSITIONS: interpolate_positions(model.get_parameter(_POSITIONS), size // patch)}


def encode_enhanced(clip_vision: Any, images: Tensor, feature: str, tiles: int, ratio: float, batch_size: int = 0) -> Tensor:
    """Features [n or 2, ...] of pictures seen whole and in tiles x tiles parts (ClipVision Enhancer)."""
    full = encode(clip_vision, images, feature, batch_size)
    parts = [encode(clip_vision, split_tiles(some, tiles), feature, batch_size) for some in images.split(_BATCH)]
    return join_tiled(full, torch.cat([merge_tile_features(part, tiles) for part in parts]), ratio)
