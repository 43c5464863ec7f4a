"""From an apply node's inputs to a patched model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.pictures.face_embeds import FaceEmbeds, check_faces
from ....ipadapter_core.pictures.images import rgb
from ..load.adapter import Adapter, as_adapter, from_pipeline
from ..pictures.preview import seen
from .apply_inputs import ApplyInputs, regions_of, settings_of, styled
from .face_features import from_embeds
from .features import Features, face_options, face_side, features_of, negative_side
from .project import apply_features, check_model
from .settings import Settings


def apply_inputs(model: Any, ipadapter: Any, inputs: ApplyInputs, per_latent: bool = False, show: bool = True) -> tuple[Any, Tensor | None]:
    """(patched clone of the model, the picture of the face or the reference); `show`: the node shows what was seen of the pictures."""
    adapter = as_adapter(ipadapter)
    check_model(model, adapter)
    clip_vision = inputs.clip_vision or from_pipeline(ipadapter, "clipvision")
    insightface = inputs.insightface or from_pipeline(ipadapter, "insightface")
    inputs = replace(inputs, clip_vision=clip_vision, insightface=insightface)
    regions = [inputs] if inputs.ipadapter_params is None else regions_of(inputs)
    picture, pictures = None, []
    for region in regions:
        model, picture = _apply_one(model, adapter, styled(region), per_latent)
        pictures.append(picture)
    if show:
        seen(pictures)
    return (model if regions else model.clone()), picture


def apply_faces(model: Any, ipadapter: Any, faces: FaceEmbeds, inputs: ApplyInputs, middle: bool) -> Any:
    """A patched clone of the model, from faces that were read before; no face recogniser is needed."""
    adapter = as_adapter(ipadapter)
    check_model(model, adapter)
    if not adapter.info.face:
        raise IPAdapterError(
            f"{adapter.name} ({adapter.info.label}) does not use face embeddings: "
            "connect the picture itself to an IPAdapter or IPAdapter Advanced node."
        )
    inputs = replace(inputs, clip_vision=inputs.clip_vision or from_pipeline(ipadapter, "clipvision"))
    positive = face_side(adapter, inputs, *from_embeds(adapter, check_faces(faces)))
    return _patched(model, adapter, inputs, positive, replace(settings_of(inputs), middle=middle))


def _apply_one(model: Any, adapter: Adapter, inputs: ApplyInputs, per_latent: bool) -> tuple[Any, Tensor]:
    if inputs.image is None:
        raise IPAdapterError("There is no reference picture: connect one to the image input.")
    positive, picture = features_of(adapter, inputs, rgb(inputs.image))
    composition = None
    if inputs.image_composition is not None:
        composition, _ = features_of(adapter, inputs, rgb(inputs.image_composition))
    return _patched(model, adapter, inputs, positive, settings_of(inputs, per_latent), composition), picture


def _patched(
    model: Any, adapter: Adapter, inputs: ApplyInputs, positive: Features, settings: Settings, composition: Features | None = None
) -> Any:
    return apply_features(
        model,
        adapter,
        positive,
        negative_side(adapter, inputs, positive),
        settings,
        combine_embeds=inputs.combine_embeds,
        composition=composition,
        weight_kolors=inputs.weight_kolors,
        **face_options(adapter, inputs),
    )
