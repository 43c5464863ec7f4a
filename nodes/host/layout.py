"""How an application is laid out for a model call: K, V, weights and masks for each row of the batch, on the model's device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...ipadapter_core.attention import KV, runs, scale_kv, select_rows
from ...ipadapter_core.layers import Layer
from ...ipadapter_core.masks import Area, level_size, mask_to_tokens, take, token_size
from .application import Application
from .chunks import Chunks, tell_once
from .layout_cache import LayoutKey

Size = tuple[int, int]


@dataclass
class Layout:
    """An application laid out for one kind of model call.

    rows: the rows of q that it is made for, None where all are alike. size: the latent's, None where it does not matter.
    copied: bytes of K and V that are not the application's own.
    """

    rows: int | None
    size: Size | None
    dtype: torch.dtype
    kv: dict[int, tuple[Tensor, Tensor]]
    factor: dict[int, float]
    masks: Masks | None
    copied: int

    def fits(self, q: Tensor, options: Mapping[str, Any]) -> bool:
        """Whether it is made for the rows, the latents and the dtype that a layer is given."""
        return (
            q.dtype == self.dtype
            and (self.rows is None or q.shape[0] == self.rows)
            and (self.size is None or tuple(options["original_shape"][-2:]) == self.size)
        )

    def add(self, out: Tensor, image: Tensor, layer: Layer, options: Mapping[str, Any]) -> Tensor:
        if self.masks is None:
            return torch.add(out, image, alpha=self.factor[layer.key])
        return torch.addcmul(out, image, self.masks.of(layer.t, out.shape[1], options), value=self.factor[layer.key])


class Masks:
    """What a layer's image attention is multiplied with, [b or 1, tokens or 1, 1]: the mask on the layer's grid, and each latent's weight.

    mask [n, H, W], weights: t -> [b, 1, 1]; one of them at least.
    """

    def __init__(self, mask: Tensor | None, weights: Mapping[int, Tensor], chunks: Chunks, device: torch.device, dtype: torch.dtype):
        self.mask, self.weights, self.chunks, self.device, self.dtype = mask, weights, chunks, device, dtype
        self._made: dict[tuple[int | None, int, Size], Tensor] = {}

    def of(self, t: int, count: int, options: Mapping[str, Any]) -> Tensor:
        """For a layer of `count` tokens; core says the size of each layer's input."""
        if self.mask is None:
            return self.weights[t]
        shape = options.get("activations_shape") or (0, 0)
        size = (shape[-2], shape[-1]) if shape[-2] * shape[-1] == count else token_size(count, *self.chunks.size)
        if shape[-2] * shape[-1] not in (0, count):
            tell_once("Another node merges the tokens that the adapter sees: where they lie is guessed, and attn_mask is not exact.")
        made = self._made.get((t if t in self.weights else None, count, size))
        return self.make(t, count, size, lambda area: self.grid(count, size, area)) if made is None else made

    def make(self, t: int, count: int, size: Size, grid: Any) -> Tensor:
        """Kept for `of`; grid(area) gives the mask on the grid of `size`, [n, count, 1]."""
        weight = self.weights.get(t)
        key = (None if weight is None else t, count, size)
        if key not in self._made:
            mask = self._rows(grid)
            self._made[key] = mask if weight is None else weight * mask
        return self._made[key]

    def grid(self, count: int, size: Size, area: Area | None) -> Tensor:
        assert self.mask is not None
        return mask_to_tokens(self.mask.float(), count, size, area).to(self.device, self.dtype)

    def _rows(self, grid: Any) -> Tensor:
        """One row for all where all are alike."""
        areas = self.chunks.areas or (None,)
        each = {area: grid(area) for area in set(areas)}
        if self.chunks.latents is not None and len(next(iter(each.values()))) > 1:
            each = {area: take(one, self.chunks.latents) for area, one in each.items()}
        if len(each) > 1:
            return torch.cat([each[area].expand(self.chunks.rows // len(areas), -1, -1) for area in areas])
        (one,) = each.values()
        return one if len(one) == 1 else one.repeat(len(self.chunks.negative), 1, 1)


def layout_of(application: Application, chunks: Chunks, device: torch.device, dtype: torch.dtype) -> Layout | None:
    """Laid out for a model call, and kept for the next one like it; None where that needs to know the latents and they are not known."""
    if not application.per_latent:
        chunks = replace(chunks, latents=None)
    elif chunks.latents is None:
        tell_once(
            "The frames of this model call are not known: adapters with a picture, weight or mask for each frame are left out of it. "
            "Use context windows without extra frames (guide or retained ones), or one picture, weight and mask for all."
        )
        return None
    if application.mask is None:
        chunks = replace(chunks, areas=None, size=(0, 0))
    return application.layouts.layout(LayoutKey(chunks, device, dtype), lambda: _lay_out(application, chunks, device, dtype))


def _lay_out(application: Application, chunks: Chunks, device: torch.device, dtype: torch.dtype) -> Layout:
    negative, latents = chunks.negative, chunks.latents or (0,)
    scaled = application.scaling != "V only"
    listed = {t: weight for t, weight in application.weights.items() if isinstance(weight, tuple)}
    index = [_at(application.negative if side else application.positive, latent) for side in negative for latent in latents]
    if not (scaled and listed):
        index = runs(index)
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
        pairs[number] = k, v
        factor[number] = weight if single and not scaled else 1.0

    # A factor for each latent: its weight, or 0 and 1 where K and V carry the weight, so that 0 is exactly off.
    weights = {t: each([float(x != 0) for x in w] if scaled else w) for t, w in listed.items()}
    own = rows.data_ptr() == application.kv.rows[index[0]].data_ptr()
    copied = sum(part.nbytes for pair in pairs.values() for part in pair) if scaled else 0 if own else rows.nbytes
    if application.mask is None:
        alike = len(index) == 1 and not weights
        masks = Masks(None, weights, chunks, device, dtype) if weights else None
        return Layout(None if alike else chunks.rows, None, dtype, pairs, factor, masks, copied)
    alike = len(index) == 1 and not application.per_latent and len(set(chunks.areas or (None,))) == 1
    masks = _masks(application, weights, chunks, device, dtype)
    return Layout(None if alike else chunks.rows, chunks.size, dtype, pairs, factor, masks, copied)


def _masks(
    application: Application, weights: Mapping[int, Tensor], chunks: Chunks, device: torch.device, dtype: torch.dtype
) -> Masks:
    """With the grids of the levels that the adapter is on, each made once for all layers and layouts."""
    if chunks.areas is None:
        tell_once("Another node samples parts of the picture without saying where they lie: each of them gets the whole attn_mask.")
    masks = Masks(application.mask, weights, chunks, device, dtype)
    for t, level in {layer.t: layer.level for layer in application.layers.values()}.items():
        size = level_size(*chunks.size, level)
        count = size[0] * size[1]

        def grid(area: Area | None, count: int = count, size: Size = size) -> Tensor:
            return application.layouts.grid((size, area, device, dtype), lambda: masks.grid(count, size, area))

        masks.make(t, count, size, grid)
    return masks


def _at(rows: tuple[int, ...], latent: int) -> int:
    return rows[min(latent, len(rows) - 1)]
