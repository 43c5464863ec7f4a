"""How an application is laid out for a model call: K, V, weights and masks for each row of the batch, on the model's device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ....ipadapter_core.adapter.attention import KV, image_attention, runs, scale_kv, select_rows
from ....ipadapter_core.adapter.layers import Layer
from ....ipadapter_core.adapter.masks import Area, level_size, take
from .application import Application
from .chunks import Chunks, tell_once
from .joined_layout import lay_out_joined
from .laid_out import Attended, LaidOut, Masks, Plus, Size, for_each_row, plus, shared_rows, spread, tell_unplaced
from .layout_cache import LayoutKey


@dataclass
class Layout(LaidOut):
    """An application with one weight and one mask at each layer."""

    kv: dict[int, tuple[Tensor, Tensor]]
    factor: dict[int, float]
    masks: Masks | None

    def add(
        self,
        out: Tensor,
        q: Tensor,
        attend: Callable[..., Tensor],
        layer: Layer,
        options: Mapping[str, Any],
        strength: float,
        plus: Plus = plus,
    ) -> Tensor:
        """`out` of a layer plus the image attention, `strength` times its weight."""
        image = image_attention(q, *self.dealt(*self.kv[layer.key]), attend)
        mask = None if self.masks is None else self.masks.of(layer.t, out.shape[1], options)
        return plus(out, image, self.factor[layer.key] * strength, mask)

    def attended(self, layer: Layer, count: int, tokens: int, options: Mapping[str, Any]) -> tuple[Attended, ...]:
        k, v = self.kv[layer.key]
        factor = self.factor[layer.key]
        scale = factor if self.masks is None else factor * self.masks.of(layer.t, count, options)
        return (Attended(k, v, tuple(range(k.shape[2] // tokens)), None, scale),)


def layout_of(application: Application, chunks: Chunks, device: torch.device, dtype: torch.dtype) -> LaidOut | None:
    """Laid out for a model call, and kept for the next one like it; None where that needs to know the latents and they are not known."""
    if not application.per_latent:
        chunks = replace(chunks, latents=None)
    elif chunks.latents is None:
        tell_once(
            "The frames of this model call are not known: adapters with a picture, weight or mask for each frame are left out of it. "
            "Use context windows without extra frames (guide or retained ones), or one picture, weight and mask for all."
        )
        return None
    if not application.masks and application.joined is None:
        chunks = replace(chunks, areas=None, size=(0, 0))
    lay_out = _lay_out if application.joined is None else lay_out_joined
    return application.layouts.layout(LayoutKey(chunks, device, dtype), lambda: lay_out(application, chunks, device, dtype))


def _lay_out(application: Application, chunks: Chunks, device: torch.device, dtype: torch.dtype) -> Layout:
    negative, latents = chunks.negative, chunks.latents or (0,)
    scaled = application.scaling != "V only"
    listed = {t: weight for t, weight in application.weights.items() if isinstance(weight, tuple)}
    index = [_at(application.negative if side else application.positive, latent) for side in negative for latent in latents]
    if not (scaled and listed):
        index = runs(index)
    if application.timed is not None:
        index = for_each_row(index, chunks)
    rows = select_rows(application.kv.rows, index).to(device, dtype)
    kv = KV(rows, application.kv.slots)

    def each(weight: Sequence[float]) -> Tensor:
        return take(torch.tensor(weight), latents).repeat(len(negative)).to(device, dtype).view(-1, 1, 1)

    pairs, factor = {}, {}
    for number, layer in application.layers.items():
        k, v = kv.layer(number)
        weight = application.weights[layer.t]
        single = not isinstance(weight, tuple)
        if scaled:
            scale = torch.tensor(weight, device=device, dtype=dtype) if single else each(weight)[..., None]
            k, v = scale_kv(k, v, application.scaling, scale, k.shape[2] // application.tokens)
        pairs[number] = (spread(k, chunks.rows), spread(v, chunks.rows)) if application.on_blocks else (k, v)
        factor[number] = weight if single and not scaled else 1.0

    # A factor for each latent: its weight, or 0 and 1 where K and V carry the weight, so that 0 is exactly off.
    weights = {t: each([float(x != 0) for x in w] if scaled else w) for t, w in listed.items()}
    own = rows.data_ptr() == application.kv.rows[index[0]].data_ptr()
    copied = sum(part[: len(index)].nbytes for pair in pairs.values() for part in pair) if scaled else 0 if own else rows.nbytes
    deal = shared_rows(len(index), chunks, device) if application.on_blocks else None
    if application.mask is None:
        alike = len(index) == 1 and not weights
        masks = Masks(None, weights, chunks, device, dtype) if weights else None
        return Layout(None if alike else chunks.rows, None, dtype, copied, deal, pairs, factor, masks)
    alike = len(index) == 1 and not application.per_latent and len(set(chunks.areas or (None,))) == 1
    masks = _masks(application, weights, chunks, device, dtype)
    return Layout(None if alike else chunks.rows, chunks.size, dtype, copied, deal, pairs, factor, masks)


def _masks(
    application: Application, weights: Mapping[int, Tensor], chunks: Chunks, device: torch.device, dtype: torch.dtype
) -> Masks:
    """With the grids of the levels that the adapter is on, each made once for all layers and layouts."""
    tell_unplaced(chunks)
    masks = Masks(application.mask, weights, chunks, device, dtype, application.cubic)
    for t, level in {layer.t: layer.level for layer in application.layers.values()}.items():
        size = level_size(*chunks.size, level)
        count = size[0] * size[1]

        def grid(area: Area | None, count: int = count, size: Size = size) -> Tensor:
            return application.layouts.grid((size, area, device, dtype), lambda: masks.grid(count, size, area))

        masks.make(t, count, size, grid)
    return masks


def _at(rows: tuple[int, ...], latent: int) -> int:
    return rows[min(latent, len(rows) - 1)]
