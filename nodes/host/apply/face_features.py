"""Faces of pictures as features for the FaceID families."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....ipadapter_core.pictures.face_embeds import FaceEmbeds
from ..cache import ByteCache, digests, number_of
from ..faces.recogniser import Face, detect
from ..load.adapter import Adapter

CROP_SIZES = {"SD1.5": 224, "SDXL": 256, "Kolors": 336}  # as ComfyUI_IPAdapter_plus cuts them
_FOUND: ByteCache[tuple[Face, ...]] = ByteCache(64 << 20)


def first_faces(pictures: Tensor, analyser: Any, size: int) -> list[Face]:
    """The first face of each picture [n, h, w, 3], each picture looked at once while it is remembered."""
    number = number_of(analyser)
    first = []
    for place, (picture, content) in enumerate(zip(pictures, digests(pictures), strict=True)):
        faces = _FOUND.get((number, size, content))
        if faces is None:
            faces = detect(picture, analyser, 1 + place, len(pictures), size)
            if number is not None:
                _FOUND.put((number, size, content), faces, sum(face.crop.nbytes + 8192 for face in faces))
        first.append(faces[0])
    return first


def identities(adapter: Adapter, raw: Tensor, normed: Tensor) -> Tensor:
    """The embeddings [n, 512] as the adapter's projection takes them: raw [n, 1, 512] for portrait unnorm, else of length 1."""
    return raw.unsqueeze(1) if adapter.info.family == "portrait-unnorm" else normed


def from_pictures(adapter: Adapter, pictures: Tensor, analyser: Any) -> tuple[Tensor, Tensor]:
    """(identities, crops [n, s, s, 3]) of the first face of each picture."""
    faces = first_faces(pictures, analyser, CROP_SIZES[adapter.info.base])
    raw, normed, crops = (torch.stack([getattr(face, name) for face in faces]) for name in ("embedding", "normed", "crop"))
    return identities(adapter, raw, normed), crops


def from_embeds(adapter: Adapter, faces: FaceEmbeds) -> tuple[Tensor, Tensor]:
    """(identities, crops) of face embeddings; Kolors takes them as the network gave them, as it was trained."""
    normed = faces.embedding if adapter.info.base == "Kolors" else faces.normed
    return identities(adapter, faces.embedding, normed), faces.crop(CROP_SIZES[adapter.info.base])
