"""From a chain of references to a patched model: one application, however many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.files.encoders import HIDDEN
from ....ipadapter_core.pictures.references import EVERYTHING, NEGATIVE, Reference, References, blended
from ....ipadapter_core.weights.curves import Curve
from ....ipadapter_core.weights.layer_weights import Shares, shares_of
from ..cache import digest
from ..engine.application import Joined, Shown
from ..load.adapter import Adapter, as_adapter, from_pipeline
from ..pictures.encoder import encode, encode_fitted
from .apply_inputs import ApplyInputs
from .face_features import from_embeds
from .features import Features, face_options, face_side, needed_encoder, negative_side
from .project import apply_features, check_model
from .settings import Settings

PUBLISHED, PLUS = METHODS = ("as published", "as IPAdapter Plus")


@dataclass(frozen=True)
class Manner:
    """How references are applied. weight: of all; join: one of JOINS; method: one of METHODS; layers: as shares_of takes it."""

    weight: float
    join: str
    method: str
    layers: Any
    start_at: float = 0.0
    end_at: float = 1.0
    curve: Curve | None = None


@dataclass(frozen=True, eq=False)
class _Picture:
    """One picture or face of a reference: its features [1, ...], its weight without the layers' shares, its role and region."""

    features: Features
    weight: float
    role: str
    region: Tensor | None


def apply_references(model: Any, ipadapter: Any, references: References, manner: Manner, clip_vision: Any = None) -> Any:
    """A clone of the model with all references applied.

    References of the role *negative* stand on the negative side; where there are none, each positive one has nothing (as the method
    has it) for its counterpart there, with the same weights and region.
    """
    adapter = as_adapter(ipadapter)
    base = check_model(model, adapter)
    shares = shares_of(base, manner.layers)
    inputs = ApplyInputs(weight=manner.weight, weight_faceidv2=1.0, clip_vision=clip_vision or from_pipeline(ipadapter, "clipvision"))
    pictures = _pictures_of(adapter, inputs, references, manner.weight)
    if manner.join == "blended":
        pictures = _blend(pictures)
    sides = [[one for one in pictures if (one.role == NEGATIVE) == negative] for negative in (True, False)]
    nothing = _nothing(adapter, inputs, pictures[0].features, manner.method)
    negative, positive = (side or [replace(one, features=nothing) for one in other] for side, other in (sides, sides[::-1]))
    count = max(len(negative), len(positive))
    by_role = {role: _times(shares, shares_of(base, EVERYTHING if role == NEGATIVE else role)) for role in {one.role for one in pictures}}
    shown = [_shown(side, by_role, count) for side in (negative, positive)]
    if not all(sides):
        shown = [shown[0], shown[0]]
    features = [_together([*(one.features for one in side), *[side[-1].features] * (count - len(side))]) for side in (negative, positive)]
    joined = Joined(*shown, apart=manner.join != "side by side")  # type: ignore[misc]
    settings = Settings(
        start_at=manner.start_at,
        end_at=manner.end_at,
        curve=manner.curve,
        middle=manner.method == PUBLISHED,
        cubic=manner.method == PUBLISHED,
        **_settled(joined),
    )
    return apply_features(model, adapter, features[1], features[0], settings, **face_options(adapter, inputs))


def _pictures_of(adapter: Adapter, inputs: ApplyInputs, references: References, weight: float) -> list[_Picture]:
    """Every picture and face of the chain, those alike in shape and fit encoded together."""
    pictures: list[_Picture] = []
    regions: dict[bytes, Tensor] = {}
    for _, alike in groupby((one for one in references if len(one)), _encoded_alike):
        some = list(alike)
        features = _features(adapter, inputs, some)
        place = 0
        for one in some:
            region = None if one.region is None else regions.setdefault(digest(one.region), one.region)
            for _ in range(len(one)):
                each = tuple(part[place : place + 1] for part in features)
                pictures.append(_Picture(each, weight * one.weight, one.role, region))
                place += 1
    return pictures


def _encoded_alike(reference: Reference) -> tuple:
    if reference.image is None:
        return ()
    mask = None if reference.mask is None else reference.mask.shape[1:]
    return reference.image.shape[1:], reference.fit, reference.tiles, mask, reference.role == NEGATIVE


def _features(adapter: Adapter, inputs: ApplyInputs, references: Sequence[Reference]) -> Features:
    """What the adapter's projection takes of references that are encoded alike."""
    faces = [one.faces for one in references if one.faces is not None]
    if adapter.info.face != bool(faces):
        needed, given = ("Image Prompt Face Reference", "a picture") if adapter.info.face else ("Image Prompt Reference", "a face")
        raise IPAdapterError(f"{adapter.name} ({adapter.info.label}) does not take {given} as a reference: use {needed} with it.")
    if faces:
        ids, crops = (torch.cat(part) for part in zip(*(from_embeds(adapter, one) for one in faces), strict=True))
        return face_side(adapter, inputs, ids, crops)
    encoder = needed_encoder(adapter, inputs.clip_vision)
    first = references[0]
    images = torch.cat([one.image for one in references if one.image is not None])
    masks = [one.mask if len(one.mask) == len(one) else one.mask[:1].expand(len(one), -1, -1) for one in references if one.mask is not None]
    feature = adapter.info.encoder.feature  # type: ignore[union-attr]
    return (encode_fitted(encoder, images, feature, first.fit, first.tiles, mask=torch.cat(masks) if masks else None),)


def _nothing(adapter: Adapter, inputs: ApplyInputs, positive: Features, method: str) -> Features:
    """What stands where no reference is: as published, zero embeds, or the encoding of a picture that is black or zero when normalised."""
    if method == PLUS:
        return negative_side(adapter, inputs, positive)
    if adapter.info.nothing == "black":
        return negative_side(adapter, inputs, positive)
    if adapter.info.nothing == "zeros":
        return tuple(torch.zeros_like(part) for part in positive)
    encoder = needed_encoder(adapter, inputs.clip_vision)
    side = encoder.image_size
    zeros = encode(encoder, torch.zeros(1, side, side, 3), HIDDEN, mask=torch.zeros(1, side, side))
    return (*(torch.zeros_like(part) for part in positive[:-1]), zeros)


def _blend(pictures: Sequence[_Picture]) -> list[_Picture]:
    """One picture for all with the same role and region."""
    groups: dict[tuple, list[_Picture]] = {}
    for one in pictures:
        groups.setdefault((one.role, id(one.region)), []).append(one)
    made = []
    for some in groups.values():
        features, weight = blended([one.features for one in some], [one.weight for one in some])
        made.append(replace(some[0], features=features, weight=weight))
    return made


def _shown(side: Sequence[_Picture], shares: Mapping[str, Shares], count: int) -> tuple[Shown, ...]:
    """`count` of them, the missing ones off everywhere."""
    shown = [Shown({t: one.weight * share for t, share in shares[one.role].items()}, one.region) for one in side]
    return (*shown, *[Shown({}, None)] * (count - len(side)))


def _settled(joined: Joined) -> dict[str, Any]:
    """The settings of references that one weight and one mask can tell, or else of each its own."""
    every = (*joined.negative, *joined.positive)
    first = every[0]
    alone = not joined.apart or len(joined.positive) == 1
    if alone and all(one.weights == first.weights and one.region is first.region for one in every):
        return {"by_layer": first.weights, "mask": first.region}
    ts = {t for one in every for t in one.weights}
    strongest = {t: max((one.weights.get(t, 0.0) for one in every), key=abs) for t in ts}
    return {"by_layer": strongest, "joined": joined}


def _times(shares: Shares, others: Shares) -> Shares:
    return {t: share * others[t] for t, share in shares.items() if t in others}


def _together(features: Sequence[Features]) -> Features:
    return tuple(torch.cat(part) for part in zip(*features, strict=True))
