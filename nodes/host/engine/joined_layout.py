"""References side by side, or each by itself, laid out for a model call: each with its own weight and region.

Side by side, with w_j the weight of reference j, m_j(x) in 0..1 its region at place x, and its tokens i in j:

    out(x) = c(x) * sum_j w_j sum_(i in j) p_i(x) V_i,   p_i(x) = m_j(x) exp(q(x) K_i / sqrt d) / (the same summed over all tokens),

c(x) = min(1, the sum of the regions that differ), 1 wherever a reference acts everywhere: regions that meet fade into each other without
a seam, one alone is what a mask is, and where none is there is nothing. A reference with weight 0 at a layer has no share in p.
Each by itself: the sum over j of w_j m_j(x) times the attention over its own tokens (diffusers' IPAdapterAttnProcessor with masks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....ipadapter_core.adapter.attention import KV, image_attention, runs, select_rows
from ....ipadapter_core.adapter.layers import Layer
from ....ipadapter_core.adapter.masks import Area, level_size
from .application import Application, Shown
from .chunks import Chunks
from .laid_out import (
    AROUND,
    Attended,
    LaidOut,
    Masks,
    Plus,
    Size,
    for_each_row,
    plus,
    shared_rows,
    size_of,
    spread,
    tell_unplaced,
    with_around,
)

Showing = tuple[Shown | None, ...]  # each picture of an attention on one side, None where it is off


class Part(NamedTuple):
    """One attention of a layer over some pictures. factor: what it is multiplied with; regions: where they act, None for everywhere."""

    k: Tensor
    v: Tensor
    factor: float | Tensor
    regions: Regions | None
    pictures: tuple[int, ...]


@dataclass
class JoinedLayout(LaidOut):
    parts: dict[int, tuple[Part, ...]]

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
        for k, v, factor, regions, _ in self.parts[layer.key]:
            bias, cover = (None, None) if regions is None else regions.of(out.shape[1], options)
            image = image_attention(q, *self.dealt(k, v), attend if regions is None else partial(attend, mask=bias))
            if isinstance(factor, Tensor):
                factor, cover = 1.0, factor if cover is None else factor * cover
            out = plus(out, image, factor * strength, cover)
        return out

    def attended(self, layer: Layer, count: int, tokens: int, options: Mapping[str, Any]) -> tuple[Attended, ...]:
        found = []
        for k, v, factor, regions, pictures in self.parts[layer.key]:
            bias, cover = (None, None) if regions is None else regions.of(count, options)
            found.append(Attended(k, v, pictures, bias, factor if cover is None else factor * cover))
        return tuple(found)


@dataclass
class Regions:
    """What an attention over pictures of `tokens` tokens each adds to its scores and multiplies its output with, by a layer's grid.

    rows: those of K and V, which the rows of a call are dealt to in turn.
    """

    sides: Mapping[bool, Showing]  # negative or not -> what shows there
    tokens: int
    rows: int
    grid: Callable[[Tensor, int, Size], Tensor]  # of a region: [1 or b, count, 1]
    chunks: Chunks
    device: torch.device
    dtype: torch.dtype
    _made: dict[tuple[int, Size, tuple[int, int]], tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    def of(self, count: int, options: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """(bias [rows, 1, b / rows * count, tokens] or None, cover [1 or b, count, 1] or None) for a layer of `count` tokens."""
        around = options.get(AROUND, (0, 0))
        inner = count - sum(around)
        size = size_of(inner, options, self.chunks)
        return self._made.get((inner, size, around)) or self.make(inner, size, around)

    def make(self, count: int, size: Size, around: tuple[int, int] = (0, 0)) -> tuple[Tensor | None, Tensor | None]:
        """Kept for `of`. around: tokens before and behind the `count`."""
        share, cover = (self._of_rows(of, count, size) for of in (self._share, self._cover))
        share, cover = (None if one is None else with_around(one, around) for one in (share, cover))
        key, count = (count, size, around), count + sum(around)
        bias = None
        if share is not None:
            bias = torch.where(share.sum(-1, keepdim=True) > 0, share.log(), 0).repeat_interleave(self.tokens, -1)
            bias = bias.expand(self.chunks.rows, count, -1).reshape(self.rows, 1, -1, bias.shape[-1]).to(self.dtype)
        cover = None if cover is None else cover.to(self.dtype)
        self._made[key] = bias, cover
        return bias, cover

    def _of_rows(self, of: Callable[[Showing, int, Size], Tensor | None], count: int, size: Size) -> Tensor | None:
        """Of each row's side, [1 or b, ...]; None where it is 1 all over."""
        if len(set(self.sides.values())) == 1:
            return of(next(iter(self.sides.values())), count, size)
        values = [of(self.sides[negative], count, size) for negative in (True, False)]
        if all(value is None for value in values):
            return None
        negative = torch.tensor(self.chunks.negative, device=self.device)
        each = self.chunks.rows // len(self.chunks.negative)
        ones = (self._ones() if value is None else value for value in values)
        return torch.where(negative.repeat_interleave(each).view(-1, 1, 1), *ones)

    def _share(self, shown: Showing, count: int, size: Size) -> Tensor | None:
        """m_j, [1 or b, count, pictures]; None where all pictures act alike."""
        if len(shown) == 1 or (len({id(each and each.region) for each in shown}) == 1 and None not in shown):
            return None
        grids = [0 * self._ones() if each is None else self._region(each, count, size) for each in shown]
        rows = max(len(grid) for grid in grids)
        return torch.cat([grid.clamp(0, 1).expand(rows, count, 1) for grid in grids], -1)

    def _cover(self, shown: Showing, count: int, size: Size) -> Tensor | None:
        """c, [1 or b, count, 1]; None where one acts everywhere."""
        regions = {id(each.region): each for each in shown if each is not None}
        if not regions or any(each.region is None for each in regions.values()):
            return None
        grids = [self._region(each, count, size) for each in regions.values()]
        if len(grids) == 1:
            return grids[0]
        return torch.stack(torch.broadcast_tensors(*(grid.clamp(0, 1) for grid in grids))).sum(0).clamp(max=1)

    def _region(self, shown: Shown, count: int, size: Size) -> Tensor:
        return self._ones() if shown.region is None else self.grid(shown.region, count, size)

    def _ones(self) -> Tensor:
        return torch.ones(1, 1, 1, device=self.device)


def lay_out_joined(application: Application, chunks: Chunks, device: torch.device, dtype: torch.dtype) -> JoinedLayout:
    joined = application.joined
    assert joined is not None
    index = runs([application.negative[0] if side else application.positive[0] for side in chunks.negative])
    if application.timed is not None:
        index = for_each_row(index, chunks)
    sides = [row == application.negative[0] for row in index]
    rows = select_rows(application.kv.rows, index).to(device, dtype)
    kv = KV(rows, application.kv.slots)
    grid = _grids(application, chunks, device)
    regions: dict[tuple, Regions] = {}
    parts, rest = {}, 0

    def regions_of(t: int, level: int, pictures: tuple[int, ...]) -> Regions | None:
        shown = {side: tuple(_at(joined.side(side), picture, t) for picture in pictures) for side in set(chunks.negative)}
        several = len(pictures) > 1 and any(None in side for side in shown.values())
        if not several and all(each is None or each.region is None for side in shown.values() for each in side):
            return None
        key = (level, pictures, *((side, *map(id, each)) for side, each in shown.items()))
        if key not in regions:
            rows = chunks.rows if application.on_blocks else len(index)
            regions[key] = Regions(shown, application.tokens, rows, grid, chunks, device, dtype)
            size = level_size(*chunks.size, level)
            regions[key].make(size[0] * size[1], size)
        return regions[key]

    for number, layer in application.layers.items():
        whole = kv.layer(number)
        weights = [[_weight(joined.side(side), picture, layer.t) for side in sides] for picture in range(len(joined.positive))]
        acting = tuple(picture for picture, each in enumerate(weights) if any(each))
        made = []
        for pictures in [(picture,) for picture in acting] if joined.apart else [acting] if acting else []:
            k, v = (_pictures(part, pictures, application.tokens) for part in whole)
            values = {weight for picture in pictures for weight in weights[picture]}
            if len(values) > 1 and application.timed is not None:  # the picture's own tokens are in the attention: what comes out is scaled
                each = torch.tensor(weights[pictures[0]], device=device, dtype=dtype).repeat_interleave(chunks.rows // len(sides))
                made.append(Part(k, v, each.view(-1, 1, 1), regions_of(layer.t, layer.level, pictures), pictures))
                continue
            if len(values) > 1:
                scale = torch.tensor([weights[picture] for picture in pictures], device=device, dtype=dtype)
                v = v * scale.repeat_interleave(application.tokens, 0).T[:, None, :, None]
            made.append(Part(k, v, 1.0 if len(values) > 1 else values.pop(), regions_of(layer.t, layer.level, pictures), pictures))
            rest += sum(part.nbytes for part in (k, v) if part.untyped_storage().data_ptr() != rows.untyped_storage().data_ptr())
        parts[number] = tuple(made)

    own = rows.data_ptr() == application.kv.rows[index[0]].data_ptr()
    alike = len(index) == 1 and not regions
    if application.masks:
        tell_unplaced(chunks)
    copied = rest + (0 if own else rows.nbytes)
    deal = None
    if application.on_blocks:
        deal = shared_rows(len(index), chunks, device)
        for number, made in parts.items():
            parts[number] = tuple(part._replace(k=spread(part.k, chunks.rows), v=spread(part.v, chunks.rows)) for part in made)
    return JoinedLayout(None if alike else chunks.rows, chunks.size if regions else None, dtype, copied, deal, parts)


def _grids(application: Application, chunks: Chunks, device: torch.device) -> Callable[[Tensor, int, Size], Tensor]:
    """A region on the grid of a layer, once for all layers and layouts."""

    def grid(region: Tensor, count: int, size: Size) -> Tensor:
        masks = Masks(region, {}, chunks, device, torch.float32, application.cubic)

        def on(area: Area | None) -> Tensor:
            return application.layouts.grid((id(region), count, size, area, device), lambda: masks.grid(count, size, area))

        return masks.rows(on)

    return grid


def _at(side: tuple[Shown, ...], picture: int, t: int) -> Shown | None:
    return side[picture] if _weight(side, picture, t) else None


def _weight(side: tuple[Shown, ...], picture: int, t: int) -> float:
    return side[picture].weights.get(t, 0.0)


def _pictures(part: Tensor, pictures: tuple[int, ...], tokens: int) -> Tensor:
    """The tokens of some pictures of K or V [r, h, all tokens, d], as a view where they are neighbours."""
    first, last = pictures[0], pictures[-1]
    if last - first == len(pictures) - 1:
        return part[:, :, first * tokens : (last + 1) * tokens]
    return torch.cat([part[:, :, picture * tokens : (picture + 1) * tokens] for picture in pictures], 2)
