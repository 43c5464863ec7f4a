"""What layouts are made of: for which model calls one is, and masks on the grids of the layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....ipadapter_core.adapter.layers import Layer
from ....ipadapter_core.adapter.masks import Area, mask_to_tokens, take, token_size
from .chunks import Chunks, tell_once

Size = tuple[int, int]
Plus = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]
AROUND = "ipadapter_around"  # in a transformer block's options: how many tokens stand before and behind the picture's


class Attended(NamedTuple):
    """One attention of a layer, for those who watch. k, v [r, h, all tokens, d]: of these pictures of the application.

    bias [r, 1, b / r * n, all tokens] or None is added to the scores; scale [1 or b, 1 or n, 1] or a number multiplies what comes out.
    """

    k: Tensor
    v: Tensor
    pictures: tuple[int, ...]
    bias: Tensor | None
    scale: Tensor | float


def plus(out: Tensor, image: Tensor, factor: float, mask: Tensor | None) -> Tensor:
    """out + factor * mask * image."""
    return torch.add(out, image, alpha=factor) if mask is None else torch.addcmul(out, image, mask, value=factor)


def plus_in_place(out: Tensor, image: Tensor, factor: float, mask: Tensor | None) -> Tensor:
    """plus, where nobody else holds `out`."""
    return out.add_(image, alpha=factor) if mask is None else out.addcmul_(image, mask, value=factor)


@dataclass
class LaidOut(ABC):
    """An application laid out for one kind of model call.

    rows: the rows of q that it is made for, None where all are alike. size: the latent's, None where it does not matter.
    copied: bytes of K and V that are not the application's own. deal: on a transformer's block, the row of K and V that each row of q
    takes, None where they have as many rows as q.
    """

    rows: int | None
    size: Size | None
    dtype: torch.dtype
    copied: int
    deal: Tensor | None

    def dealt(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return (k, v) if self.deal is None else (k.index_select(0, self.deal), v.index_select(0, self.deal))

    def fits(self, q: Tensor, options: Mapping[str, Any]) -> bool:
        """Whether it is made for the rows, the latents and the dtype that a layer is given."""
        return (
            q.dtype == self.dtype
            and (self.rows is None or q.shape[0] == self.rows)
            and (self.size is None or tuple(options["original_shape"][-2:]) == self.size)
        )

    @abstractmethod
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
        """`out` [b, n, c] of a layer plus the image attention of q [b, n, c] or [b, h, n, d], `strength` times its weight.

        attend(q, k, v, mask=None): the attention of [r, h, n, d] each, mask [r, 1, n, tokens] added to what goes into the softmax.
        """

    @abstractmethod
    def attended(self, layer: Layer, count: int, tokens: int, options: Mapping[str, Any]) -> tuple[Attended, ...]:
        """What `add` does in a layer of `count` tokens, without its strength; tokens: those of one picture."""


class Masks:
    """What a layer's image attention is multiplied with, [b or 1, tokens or 1, 1]: the mask on the layer's grid, and each latent's weight.

    mask [n, H, W], weights: t -> [b, 1, 1]; one of them at least. cubic: how the mask is brought to the grid.
    """

    def __init__(
        self,
        mask: Tensor | None,
        weights: Mapping[int, Tensor],
        chunks: Chunks,
        device: torch.device,
        dtype: torch.dtype,
        cubic: bool = False,
    ):
        self.mask, self.weights, self.chunks, self.device, self.dtype = mask, weights, chunks, device, dtype
        self.mode = "bicubic" if cubic else "bilinear"
        self._made: dict[tuple, Tensor] = {}

    def of(self, t: int, count: int, options: Mapping[str, Any]) -> Tensor:
        """For a layer of `count` tokens; core says the size of each layer's input."""
        if self.mask is None:
            return self.weights[t]
        around = options.get(AROUND, (0, 0))
        inner = count - sum(around)
        size = size_of(inner, options, self.chunks)
        made = self._made.get((t if t in self.weights else None, inner, size, around))
        return self.make(t, inner, size, lambda area: self.grid(inner, size, area), around) if made is None else made

    def make(self, t: int, count: int, size: Size, grid: Any, around: tuple[int, int] = (0, 0)) -> Tensor:
        """Kept for `of`; grid(area) gives the mask on the grid of `size`, [n, count, 1]. around: tokens before and behind those."""
        weight = self.weights.get(t)
        key = (None if weight is None else t, count, size, around)
        if key not in self._made:
            mask = with_around(self.rows(grid), around)
            self._made[key] = mask if weight is None else weight * mask
        return self._made[key]

    def grid(self, count: int, size: Size, area: Area | None) -> Tensor:
        assert self.mask is not None
        return mask_to_tokens(self.mask.float(), count, size, area, self.mode).to(self.device, self.dtype)

    def rows(self, grid: Any) -> Tensor:
        """One row for all where all are alike."""
        areas = self.chunks.areas or (None,)
        each = {area: grid(area) for area in set(areas)}
        if self.chunks.latents is not None and len(next(iter(each.values()))) > 1:
            each = {area: take(one, self.chunks.latents) for area, one in each.items()}
        if len(each) > 1:
            return torch.cat([each[area].expand(self.chunks.rows // len(areas), -1, -1) for area in areas])
        (one,) = each.values()
        return one if len(one) == 1 else one.repeat(len(self.chunks.negative), 1, 1)


def for_each_row(index: Sequence[int], chunks: Chunks) -> Sequence[int]:
    """What neighbours among the call's rows share, for each of them; what all share as it is."""
    return index if len(index) == 1 else [row for row in index for _ in range(chunks.rows // len(index))]


def shared_rows(rows: int, chunks: Chunks, device: torch.device) -> Tensor | None:
    """LaidOut.deal for `rows` of K and V that neighbours among the call's rows share; None where that is one row or each its own."""
    if rows in (1, chunks.rows):
        return None
    return torch.arange(rows, device=device).repeat_interleave(chunks.rows // rows)


def spread(part: Tensor, rows: int) -> Tensor:
    """K or V [1, ...] for each of `rows`, as a view; others as they are."""
    return part.expand(rows, -1, -1, -1) if part.shape[0] == 1 else part


def with_around(grid: Tensor, around: tuple[int, int]) -> Tensor:
    """[n, count, c] with tokens before and behind the picture's, which get its mean: a text has no place in it, and takes its share."""
    if around == (0, 0):
        return grid
    mean = grid.mean(1, keepdim=True)
    before, behind = around
    return torch.cat([mean.expand(-1, before, -1), grid, mean.expand(-1, behind, -1)], 1)


def size_of(count: int, options: Mapping[str, Any], chunks: Chunks) -> Size:
    """grid_of, for masks: told once where it is a guess."""
    shape = options.get("activations_shape") or (0, 0)
    if shape[-2] * shape[-1] not in (0, count):
        tell_once("Another node merges the tokens that the adapter sees: where they lie is guessed, and attn_mask is not exact.")
    return grid_of(count, options, chunks)


def grid_of(count: int, options: Mapping[str, Any], chunks: Chunks) -> Size:
    """(rows, columns) of a layer's `count` tokens, which core says unless another node merges tokens; then a guess."""
    shape = options.get("activations_shape") or (0, 0)
    return (shape[-2], shape[-1]) if shape[-2] * shape[-1] == count else token_size(count, *chunks.size)


def tell_unplaced(chunks: Chunks) -> None:
    """Once, where a call's part of the picture is not known."""
    if chunks.areas is None:
        tell_once("Another node samples parts of the picture without saying where they lie: each of them gets the whole attn_mask.")
