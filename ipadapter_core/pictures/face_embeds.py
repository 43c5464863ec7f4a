"""Faces as values: embeddings with the pictures they come from, to be averaged, joined, saved and used without the recogniser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import IPAdapterError
from ..files.family import ARCFACE
from .images import resize

CROP = 256  # the size the crops are kept in: the alignment for 256 holds the one for 224 whole, pixel by pixel
_CHOSEN, _OTHER = (255, 190, 0), (150, 150, 150)


@dataclass(frozen=True)
class FaceEmbeds:
    """n faces: ArcFace embeddings [n, 512] as the network gave them, and aligned crops [n, 256, 256, 3] in 0..1."""

    embedding: Tensor
    crops: Tensor

    def __post_init__(self) -> None:
        n = self.embedding.shape[0]
        if n == 0 or self.embedding.shape != (n, ARCFACE) or self.crops.shape != (n, CROP, CROP, 3):
            raise IPAdapterError(
                f"These are not face embeddings: {list(self.embedding.shape)} with pictures {list(self.crops.shape)}. "
                "Make them with IPAdapter Face Embeds."
            )

    @property
    def normed(self) -> Tensor:
        """The embeddings [n, 512] with length 1."""
        return torch.nn.functional.normalize(self.embedding, dim=-1)

    def crop(self, size: int) -> Tensor:
        """The faces [n, size, size, 3] aligned for `size`, as insightface's face_align.norm_crop frames them.

        Multiples of 128 leave a margin of 1/16 at both sides and 1/8 below; multiples of 112 have none.
        """
        crops = self.crops if size % 112 else self.crops[:, : CROP * 7 // 8, CROP // 16 : CROP * 15 // 16]
        return crops if size == crops.shape[1] else resize(crops, size, size, "BICUBIC")


def check_faces(value: Any) -> FaceEmbeds:
    """The value of a FACE_EMBEDS input. Raises IPAdapterError for any other."""
    if not isinstance(value, FaceEmbeds):
        raise IPAdapterError(f"The face_embeds input has a {type(value).__name__}, not faces: connect an IPAdapter Face Embeds node.")
    return value


def join(faces: Sequence[FaceEmbeds]) -> FaceEmbeds:
    """All faces side by side, in the order given."""
    faces = [check_faces(face) for face in faces]
    return FaceEmbeds(torch.cat([face.embedding for face in faces]), torch.cat([face.crops for face in faces]))


def average(faces: FaceEmbeds) -> FaceEmbeds:
    """One face: the mean direction of the embeddings at their mean length, with the crop of the face that is nearest to it."""
    direction = torch.nn.functional.normalize(faces.normed.mean(0), dim=0)
    nearest = int((faces.normed @ direction).argmax())
    length = faces.embedding.norm(dim=-1).mean()
    return FaceEmbeds((direction * length).unsqueeze(0), faces.crops[nearest : nearest + 1])


def draw_faces(image: Tensor, boxes: Tensor, points: Tensor, chosen: Sequence[int]) -> Tensor:
    """A picture [h, w, 3] with boxes [n, 4] and points [n, 5, 2]: the chosen ones, numbered from 1 in their order, over grey others."""
    picture = Image.fromarray((image * 255).round().byte().cpu().numpy())
    draw = ImageDraw.Draw(picture)
    line = max(1, round(max(picture.size) / 400))
    for face in sorted(range(len(boxes)), key=lambda face: face in chosen):
        colour = _CHOSEN if face in chosen else _OTHER
        draw.rectangle(boxes[face].tolist(), outline=colour, width=line)
        for x, y in points[face].tolist():
            draw.ellipse((x - line, y - line, x + line, y + line), fill=colour)
        if face in chosen:
            left, top = boxes[face, :2].tolist()
            draw.text((left + 2 * line, top + line), str(1 + chosen.index(face)), fill=colour, font_size=12 * line)
    return torch.from_numpy(np.array(picture)).to(image.dtype) / 255
