"""One adapter applied with one set of tokens, and how it is laid out for a model call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...ipadapter_core.attention import KV, scale_kv, select_rows
from ...ipadapter_core.layers import Layer, Weight
from ...ipadapter_core.masks import level_sizes, mask_to_tokens, take
from .polarity import latent_index, negative_chunks

LAYOUTS = 4  # prepared layouts that an application keeps
LAYOUT_BYTES = 256 << 20  # and what they may hold when there are more than two: one with K and V for each of many frames is large


@dataclass
class Prepared:
    """An application laid out for the chunks of one kind of model call."""

    dtype: torch.dtype
    kv: dict[int, tuple[Tensor, Tensor]]
    factor: dict[int, float]
    masks: dict[int, dict[int, Tensor]] | None  # t -> token count -> [b or 1, count or 1, 1]
    mask_for: Callable[[int, int], Tensor] | None

    @property
    def held(self) -> int:
        """Bytes of K and V."""
        return sum(part.nbytes for pair in self.kv.values() for part in pair)

    def add(self, out: Tensor, image: Tensor, layer: Layer) -> Tensor:
        if self.masks is None or self.mask_for is None:
            return torch.add(out, image, alpha=self.factor[layer.key])
        by_count = self.masks[layer.t]
        count = out.shape[1]
        if count not in by_count:
            by_count[count] = self.mask_for(layer.t, count)
        return torch.addcmul(out, image, by_count[count], value=self.factor[layer.key])


@dataclass(frozen=True, eq=False)
class Application:
    """One adapter applied with one set of tokens. Immutable: copies of a model share it.

    kv.rows: the `negatives` sets of tokens of the negative side, then the positive side's; one of each, or one for
    every latent where `per_latent` (the last of a side repeats). weights: t -> weight. window: (sigma_start, sigma_end),
    None for all of the sampling. mask [n, H, W]. For people to see: the adapter's name,
    and `away`, the t where the picture is on the negative side.
    """

    kv: KV
    negatives: int
    layers: Mapping[int, Layer]
    weights: Mapping[int, Weight]
    scaling: str
    window: tuple[float, float] | None
    mask: Tensor | None
    per_latent: bool
    name: str = ""
    away: frozenset[int] = frozenset()
    _layouts: dict[Any, Prepared] = field(default_factory=dict, repr=False)

    def __deepcopy__(self, memo: dict) -> Application:
        return self

    def is_open(self, sigma: float) -> bool:
        return self.window is None or self.window[1] <= sigma <= self.window[0]

    def to(self, target: Any) -> None:
        """Forget what was laid out on other devices; prepare() moves to the model's device and dtype when needed."""
        if isinstance(target, torch.device):
            for key in [key for key in self._layouts if key[-2] != target]:
                self._layouts.pop(key, None)

    def prepare(self, options: Mapping[str, Any], shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Prepared:
        """Laid out for transformer_options and an input of shape [b, c, h, w]; kept for the next call like it."""
        negative = negative_chunks(options, shape[0])
        latents = latent_index(options, shape[0] // len(negative))
        key = (negative, latents, shape[0], shape[-2:], device, dtype)
        prepared = self._layouts.get(key)
        if prepared is None:
            prepared = self._lay_out(negative, latents, shape, device, dtype)
            kept = list(self._layouts.items())
            while len(kept) >= LAYOUTS or (len(kept) > 1 and sum(other.held for _, other in kept) > LAYOUT_BYTES):
                self._layouts.pop(kept.pop(0)[0], None)
            self._layouts[key] = prepared
        return prepared

    def _lay_out(self, negative, latents, shape, device, dtype) -> Prepared:
        positives = self.kv.rows.shape[0] - self.negatives
        if self.per_latent:
            places = ((neg, i) for neg in negative for i in latents)
            index = [min(i, self.negatives - 1) if neg else self.negatives + min(i, positives - 1) for neg, i in places]
        else:
            index = [0 if neg else 1 for neg in negative]
        kv = KV(select_rows(self.kv.rows, index).to(device, dtype), self.kv.slots)

        def each(weight: tuple[float, ...]) -> Tensor:
            values = take(torch.tensor(weight), latents).repeat(len(negative))
            return values.to(device, dtype).view(-1, 1, 1)

        pairs, factor = {}, {}
        for number, layer in self.layers.items():
            k, v = kv.layer(number)
            weight = self.weights[layer.t]
            single = not isinstance(weight, tuple)
            if self.scaling != "V only":
                scale = torch.tensor(weight, device=device, dtype=dtype) if single else each(weight)[..., None]
                k, v = scale_kv(k, v, self.scaling, scale)
            pairs[number] = k, v
            factor[number] = weight if single and self.scaling == "V only" else 1.0

        # A factor for each latent: its weight, or 0 and 1 where K and V carry the weight, so that 0 is exactly off.
        listed = {t: w for t, w in self.weights.items() if isinstance(w, tuple)}
        rows = {t: each(w if self.scaling == "V only" else tuple(float(x != 0) for x in w)) for t, w in listed.items()}
        if self.mask is None and not rows:
            return Prepared(dtype, pairs, factor, None, None)

        mask = None if self.mask is None else self.mask.float()
        if mask is not None and mask.shape[0] > 1:
            mask = take(mask, latents)

        def mask_for(t: int, count: int) -> Tensor:
            if mask is None:
                return rows[t]
            grid = mask_to_tokens(mask, count, shape[-2], shape[-1]).to(device, dtype)
            if grid.shape[0] > 1:
                grid = grid.repeat(len(negative), 1, 1)
            return rows[t] * grid if t in rows else grid

        masks: dict[int, dict[int, Tensor]] = {}
        plain = {} if rows else {count: mask_for(next(iter(self.weights)), count) for count in level_sizes(shape[-2], shape[-1])}
        for t in self.weights:
            masks[t] = {count: mask_for(t, count) for count in level_sizes(shape[-2], shape[-1])} if rows else plain
        return Prepared(dtype, pairs, factor, masks, mask_for)
