"""From features to a patched model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....ipadapter_core.adapter.attention import KV
from ....ipadapter_core.adapter.layers import Layer, composition_ts, layers, swapped_ts
from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.files.encoders import HIDDEN
from ..cache import number_of
from ..engine.application import Application
from ..engine.base import base_of, transformer_shape
from ..engine.chunks import tell_once
from ..engine.install import add_application
from ..engine.timed import Timed
from ..engine.unet import compute_dtype, cross_attentions
from ..engine.windows import Window
from ..load.adapter import Adapter
from ..pictures.encoder import wrong_encoder
from .features import Features
from .settings import Settings
from .sides import Sides, per_latent, side_by_side

log = logging.getLogger(__name__)


def check_model(model: Any, adapter: Adapter) -> str:
    """What `layers` calls the layers of the model that the adapter acts in. Raises IPAdapterError where it is made for another base."""
    base, info = base_of(model), adapter.info
    if base == "Chroma" and info.family == "flux-instantx":
        tell_once(f"{adapter.name} was made for Flux: on Chroma, which has its blocks, it is untested.")
        return "Flux"
    made_for = "SDXL" if info.base == "Kolors" else info.base
    if made_for != base:
        raise IPAdapterError(
            f"{adapter.name} is an adapter for {info.base}, the connected model is {base}. "
            f"Load an adapter for {'Flux by InstantX' if base == 'Chroma' else base}, or connect a {info.base} model."
        )
    return "Flux double" if info.family == "flux-xlabs" else base


def _check_features(adapter: Adapter, features: Tensor) -> None:
    """Raises IPAdapterError for features that are not of the kind or the width that the adapter's projection takes."""
    needed = adapter.info.encoder
    if needed is None:
        return
    if features.ndim != (3 if needed.feature == HIDDEN else 2):
        raise IPAdapterError(
            f"{adapter.name} takes the {needed.feature} of {needed.name}, and these embeds of shape {list(features.shape)} were made for "
            "another adapter: encode the picture again with an IPAdapter Encoder behind this adapter."
        )
    if features.shape[-1] != needed.width:
        raise wrong_encoder(needed, features.shape[-1], adapter.name)


def apply_features(
    model: Any,
    adapter: Adapter,
    positive: Features,
    negative: Features,
    settings: Settings,
    *,
    combine_embeds: str = "concat",
    composition: Features | None = None,
    weight_kolors: float = 1.0,
    **projection: Any,
) -> Any:
    """A clone of `model` with the adapter applied; the model given stays as it was.

    positive, negative: features for the two sides, the negative brought to the positive's count. composition: features
    that take the positive's place at the layers of composition. weight_kolors: of Kolors' text projection.
    `projection` goes to the adapter's projection.
    """
    base = check_model(model, adapter)
    for side in (positive, negative, composition):
        if side is not None:
            _check_features(adapter, side[-1])
    if not settings.per_latent and settings.listed:
        log.warning("A list of weights has an entry for each latent on the Batch nodes only: the first weight is used for all.")
    work = model.clone()
    weights = {t: w for t, w in settings.weights(base).items() if (any(w) if isinstance(w, tuple) else w)}
    chosen = {layer.key: layer for layer in layers(base) if layer.t in weights and (settings.middle or layer.name != "middle")}
    if not chosen:
        return work

    given = [positive] if composition is None else [positive, composition]
    swapped = swapped_ts(base, settings.effective_type) if settings.swaps else frozenset()
    moved = composition_ts(base) if composition is not None else frozenset()
    sides = per_latent(given, negative, bool(swapped)) if settings.per_latent else side_by_side(given, negative, combine_embeds)

    def tokens() -> dict[int, Tensor]:
        def side(features: Features) -> Tensor:
            tokens = adapter.project(*features, **projection)
            if text_projection is not None:
                tokens = _through_text_projection(tokens, text_projection, weight_kolors)
            return tokens if settings.per_latent else tokens.flatten(0, 1).unsqueeze(0)

        rows = adapter.tokens(tokens_key, lambda: [(side(neg), side(pos)) for neg, pos in zip(sides.negative, sides.positive, strict=True)])

        @cache
        def both(is_moved: bool, is_swapped: bool) -> Tensor:
            neg, pos = rows[is_moved]
            return torch.cat([pos[list(sides.swapped_rows)], torch.zeros_like(pos)] if is_swapped else [neg, pos])

        return {number: both(layer.t in moved, layer.t in swapped) for number, layer in numbered.items()}

    numbered = {layer.key: layer for layer in layers(base) if settings.middle or layer.name != "middle"}
    heads = _heads(model, adapter, numbered)
    dtype = compute_dtype(model.model)
    common: dict[str, Any] = dict(
        negative=sides.negative_rows,
        positive=tuple(len(sides.swapped_rows) + row for row in sides.positive_rows),
        layers=chosen,
        weights=weights,
        scaling=settings.embeds_scaling,
        window=_window(model, settings),
        mask=settings.mask,
        cubic=settings.cubic,
        joined=settings.joined,
        name=adapter.name,
        away=swapped,
    )
    if adapter.info.projection == "time_resampler":
        add_application(work, _timed(adapter, sides, settings, heads, dtype, common))
        return work
    text_projection = _text_projection(model, adapter)
    tokens_key = (sides.key, settings.per_latent, *sorted(projection.items()))
    if text_projection is not None:
        tokens_key = (*tokens_key, *_state(text_projection), weight_kolors)
    key = (tokens_key, swapped, moved, tuple(heads.values()))
    kv, patcher = adapter.kv(tuple(numbered), heads, dtype, key, tokens)
    count = next(kv.slots[number].tokens for number, layer in numbered.items() if layer.t not in moved) // sides.pictures
    application = Application(kv=kv, patchers=(patcher,), tokens=count, outside=base == "Flux double", **common)
    patcher.held.layouts.add(application.layouts)
    add_application(work, application)
    return work


def _heads(model: Any, adapter: Adapter, numbered: Mapping[int, Layer]) -> dict[int, int]:
    """Layer number -> heads. Raises IPAdapterError where a layer is not as wide as the adapter's."""
    found = {(a.name, a.id, a.index): a for a in cross_attentions(model)}
    shapes = {n: found[layer.name, layer.id, layer.index] if found else transformer_shape(model) for n, layer in numbered.items()}
    for number, shape in shapes.items():
        if (own := adapter.widths.get(number)) != shape.width:
            raise IPAdapterError(
                f"{adapter.name} does not fit the connected model: its layer {number} is {own} wide, "
                f"the model's is {shape.width}. Load an adapter made for this model."
            )
    return {number: shape.heads for number, shape in shapes.items()}


def _timed(
    adapter: Adapter, sides: Sides, settings: Settings, heads: Mapping[int, int], dtype: torch.dtype, common: Mapping[str, Any]
) -> Application:
    """Of an adapter whose tokens depend on the timestep. Several pictures attend each by themselves, since each sees the whole picture."""

    def make(timestep: float, device: torch.device) -> KV:
        def tokens(project: Callable[[Tensor], Tensor]) -> Tensor:
            rows = [project(*side) for side in (sides.negative[0], sides.positive[0])]
            return torch.cat(rows if settings.per_latent else [one.flatten(0, 1).unsqueeze(0) for one in rows])

        return adapter.kv_at(timestep, tokens, heads, dtype, device)

    if settings.embeds_scaling != "V only":
        tell_once(f"{adapter.name} attends to the picture itself too: its weight is on what comes out, and embeds_scaling has no effect.")
    joined = settings.joined and replace(settings.joined, apart=True)
    key = sides.key, settings.per_latent, tuple(heads.values()), dtype
    rows = [len(side[0]) if settings.per_latent else 1 for side in (sides.negative[0], sides.positive[0])]
    size = sum(rows) * sides.pictures * adapter.info.tokens * 2 * sum(adapter.widths[number] for number in heads) * dtype.itemsize
    timed = Timed(make, adapter.own_norms(), adapter, key, size)
    return Application(
        kv=KV(torch.empty(0), {}),
        patchers=(adapter.patcher, timed.patcher),
        tokens=adapter.info.tokens,
        timed=timed,
        **{**common, "scaling": "V only", "joined": joined},
    )


def _text_projection(model: Any, adapter: Adapter) -> Any:
    """The layer that brings Kolors' text to the UNet's width, for the family whose tokens pass through it (4096 -> 2048)."""
    if adapter.info.family != "kolors-faceid-plus":
        return None
    layer = getattr(model.model.diffusion_model, "encoder_hid_proj", None)
    if layer is None:
        raise IPAdapterError(
            f"{adapter.name} is for Kolors, and the connected model has no Kolors text projection (encoder_hid_proj): "
            "load Kolors with a Kolors loader that keeps it in the model."
        )
    return layer


def _state(layer: Any) -> tuple:
    """Another one whenever weight or bias are others: ComfyUI puts a new parameter in place of one that it patches."""
    given = [part for part in (layer.weight, layer.bias) if part is not None]
    return tuple((number_of(part), None if part.is_inference() else part._version) for part in given)


def _through_text_projection(tokens: Tensor, layer: Any, weight: float) -> Tensor:
    """`weight` multiplies the layer's weight and bias."""
    bias = None if layer.bias is None else layer.bias.to(tokens) * weight
    return F.linear(tokens, layer.weight.to(tokens) * weight, bias)


def _window(model: Any, settings: Settings) -> Window | None:
    if settings.start_at <= 0 and settings.end_at >= 1 and settings.curve is None:
        return None
    return Window(settings.start_at, settings.end_at, model.get_model_object("model_sampling"), settings.curve)
