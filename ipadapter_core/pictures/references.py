"""References as values: pictures or faces, each with its weight, role and places, in a chain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import IPAdapterError
from ..values import check_choice, check_number, check_whole
from .face_embeds import FaceEmbeds
from .fit import FITS, fit, per_picture
from .preprocess import SIZE

EVERYTHING, NEGATIVE = "everything", "negative"
ROLES = (EVERYTHING, "style", "layout", NEGATIVE)
FACE_ROLES = (EVERYTHING, NEGATIVE)
JOINS = ("side by side", "each by itself", "blended")


@dataclass(frozen=True, eq=False)
class Reference:
    """What all pictures of one node share. image [n, h, w, 3] with fit, tiles and mask [n or 1, H, W], or n faces.

    role: one of ROLES. region [m, H, W]: where in the result it acts, None everywhere.
    """

    weight: float
    role: str
    region: Tensor | None = None
    image: Tensor | None = None
    fit: str = FITS[0]
    tiles: int = 1
    mask: Tensor | None = None
    faces: FaceEmbeds | None = None

    def __post_init__(self) -> None:
        check_number(self.weight, "The weight of a reference")
        check_choice(self.role, "role", ROLES if self.faces is None else FACE_ROLES)
        check_choice(self.fit, "way to fit a picture", FITS)
        check_whole(self.tiles, "tiles", 1, 64)
        if self.region is not None and not self.region.any():
            raise IPAdapterError("The region of a reference is black everywhere, so it would act nowhere: paint white where it should act.")
        if self.image is not None and self.mask is not None:
            _check_seen(self.image, self.fit, self.tiles, self.mask)

    def __len__(self) -> int:
        """How many references it counts as: a batch is one for each picture."""
        given = self.image if self.faces is None else self.faces.embedding
        return 0 if given is None else len(given)


@dataclass(frozen=True, eq=False)
class References:
    """The value of a REFERENCE wire: a chain, in the order in which its nodes are connected."""

    items: tuple[Reference, ...] = field(default=())

    def __iter__(self) -> Iterator[Reference]:
        return iter(self.items)


def chained(more: Any, reference: Reference) -> References:
    """The chain `more` (None: none yet) with one more reference behind it. Raises IPAdapterError where `more` is no chain."""
    before = () if more is None else check_references(more, "more").items
    return References((*before, reference))


def check_references(value: Any, name: str) -> References:
    """The value of a REFERENCE input. Raises IPAdapterError for any other, and for a chain without a picture."""
    if not isinstance(value, References):
        raise IPAdapterError(f"The {name} input has a {type(value).__name__}, not references: connect an Image Prompt Reference.")
    if not any(len(reference) for reference in value):
        raise IPAdapterError(f"The {name} input has no picture and no face: connect an Image Prompt Reference with a picture.")
    return value


def _check_seen(image: Tensor, how: str, tiles: int, mask: Tensor) -> None:
    """Raises IPAdapterError where a mask leaves nothing of its picture, or nothing of what the encoder is shown."""
    for number, (picture, white) in enumerate(zip(image, per_picture(mask, len(image)), strict=True), 1):
        which = f" {number}" if len(image) > 1 else ""
        if not white.any():
            raise IPAdapterError(
                f"The mask of picture{which} is black everywhere, so nothing of it would be seen: paint white what should count."
            )
        if not torch.any(fit(picture[None, ..., :1].expand(-1, -1, -1, 3), how, tiles, SIZE, white[None]).masks):  # type: ignore[arg-type]
            raise IPAdapterError(
                f"The white part of the mask of picture{which} lies outside the square that the encoder is shown: set fit to pad or tiles."
            )


def blended(features: Sequence[tuple[Tensor, ...]], weights: Sequence[float]) -> tuple[tuple[Tensor, ...], float]:
    """(features, weight) of one picture from those of several, each [1, ...]: sum(w f) / sum(w), at the mean weight.

    Raises IPAdapterError where the weights cancel out.
    """
    if len(set(weights)) == 1:
        return tuple(torch.cat(part).mean(0, keepdim=True) for part in zip(*features, strict=True)), weights[0]
    total = sum(weights)
    if abs(total) < 1e-6:
        raise IPAdapterError(
            "The weights of the references that are blended cancel out: give them a sum that is not 0, or choose another join."
        )
    parts = (torch.stack([w * part for w, part in zip(weights, each, strict=True)]).sum(0) / total for each in zip(*features, strict=True))
    return tuple(parts), total / len(weights)
