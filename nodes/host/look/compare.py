"""Likeness of pictures to references, by an image encoder or by the face recogniser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.files.encoders import PROJECTED
from ....ipadapter_core.look.likeness import cosines
from ..faces.recogniser import choose, detect
from ..load.adapter import from_pipeline
from ..pictures.encoder import encode

COMPARED = ("pictures", "faces")


def table(compare: str, pictures: Tensor, references: Tensor, ipadapter: Any, clip_vision: Any, insightface: Any) -> list[list[float]]:
    """A row for each picture [n, h, w, 3], a figure for each reference [m, h, w, 3]; NaN for a picture without a face.

    Raises IPAdapterError without what is compared with, for a reference without a face, and where no picture has one.
    """
    if compare == "faces":
        analyser = from_pipeline(ipadapter, "insightface") if insightface is None else insightface
        if analyser is None:
            raise IPAdapterError(
                "To compare faces the face recogniser is needed: connect IPAdapter InsightFace Loader, or the ipadapter output of a loader "
                "with a FaceID adapter."
            )
        return _faces(pictures, references, analyser)
    encoder = from_pipeline(ipadapter, "clipvision") if clip_vision is None else clip_vision
    if encoder is None:
        raise IPAdapterError(
            "To compare pictures an image encoder is needed: connect Load CLIP Vision, or the ipadapter output of Image Prompt Loader."
        )
    return cosines(encode(encoder, pictures, PROJECTED), encode(encoder, references, PROJECTED)).tolist()


def _faces(pictures: Tensor, references: Tensor, analyser: Any) -> list[list[float]]:
    known = torch.stack([_face(one, analyser, number, len(references)) for number, one in enumerate(references, 1)])
    rows, missing = [], None
    for number, picture in enumerate(pictures, 1):
        try:
            rows.append(cosines(_face(picture, analyser, number, len(pictures))[None], known)[0].tolist())
        except IPAdapterError as error:
            missing = error
            rows.append([float("nan")] * len(known))
    if missing is not None and all(value != value for row in rows for value in row):
        raise missing
    return rows


def _face(picture: Tensor, analyser: Any, number: int, total: int) -> Tensor:
    """The embedding [512] of a picture's largest face. Raises IPAdapterError where there is none."""
    (face,) = choose(detect(picture, analyser, number, total), "largest")
    return face.embedding
