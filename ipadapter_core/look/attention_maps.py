"""Where a picture acts, from q, K and V of its attention (IP-Adapter, arXiv 2308.06721, equation 5), and how to show it.

For each position two figures are kept: a reference's share of the attention softmax(q K^T / sqrt(d)) over all tokens of its adapter,
which is 1 everywhere for a reference that is alone; and its influence, |w o| / (|w o| + |text|) of what its tokens add (o, over all
heads) beside what the text's attention gives there: 0 is nothing, 0.5 as much as the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter.masks import Area

LONGEST = 64  # cells on the longer side of a map
SCALES = ("each map", "all maps alike", "as measured")
VIEWS = ("overlay", "side by side", "map alone")
_AT_ONCE = 1 << 24  # values that are worked on at a time
_HEAT = ((0.0, 0.0, 0.1), (0.3, 0.05, 0.45), (0.75, 0.15, 0.35), (0.97, 0.5, 0.1), (1.0, 0.95, 0.55))  # darker is less, in grey too


def attention_parts(q: Tensor, k: Tensor, v: Tensor, pictures: int = 1, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """q [b, n, h d], K and V [r, h, t, d] as in image_attention -> (softmax(q K^T / sqrt(d)) [b, n, t], |o| [b, n, pictures]) in fp32.

    bias [r, 1, b / r * n, t] is added to the scores. The probabilities are the mean of all heads; |o| is the length over heads and
    channels of what each picture's t / pictures tokens add.
    """
    rows, heads, tokens, dim = k.shape
    batch, count = q.shape[:2]
    each = q.reshape(rows, -1, heads, dim)
    k, v = k.float(), v.float().unflatten(2, (pictures, -1))
    probabilities, lengths = [], []
    at_once = max(1, _AT_ONCE // (rows * heads * max(tokens, pictures * dim)))
    biases = [None] * each.shape[1] if bias is None else bias.float().movedim(1, 2).split(at_once, dim=1)  # [r, n, 1, t]
    for part, more in zip(each.split(at_once, dim=1), biases, strict=False):
        scores = torch.einsum("rnhd,rhtd->rnht", part.float(), k) * dim**-0.5
        p = (scores if more is None else scores + more).softmax(-1)
        o = torch.einsum("rnhpt,rhptd->rnphd", p.unflatten(-1, (pictures, -1)), v)
        probabilities.append(p.mean(2))
        lengths.append(o.flatten(3).norm(dim=-1))
    return torch.cat(probabilities, 1).view(batch, count, tokens), torch.cat(lengths, 1).view(batch, count, pictures)


def influence(added: Tensor, text: Tensor) -> Tensor:
    """Lengths of what is added [b, n, p] beside the text attention's output [b, n, c] -> 0 for nothing, 0.5 for as much, below 1."""
    return added / (added + text.float().norm(dim=-1, keepdim=True)).clamp_min(torch.finfo(torch.float32).tiny)


def map_size(height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of the maps of latents of height x width: their own, or LONGEST cells on the longer side."""
    scale = min(1.0, LONGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def to_map(values: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Values of tokens [b, n, c] that lie on `grid` (rows, columns) -> [b, c, *size]: averaged over cells, bilinear where it grows.

    Tokens that the grid has no cell for are left out.
    """
    cells = values[:, : grid[0] * grid[1]].movedim(1, 2).unflatten(2, grid)
    if grid == size:
        return cells
    if grid[0] >= size[0] and grid[1] >= size[1]:
        return F.interpolate(cells, size, mode="area")
    return F.interpolate(cells, size, mode="bilinear")


def cells_of(area: Area | None, size: tuple[int, int]) -> tuple[slice, slice]:
    """The cells of a map of `size` that an area covers, one at least; all of them for None."""
    if area is None:
        return slice(None), slice(None)
    ends = ((area.y, area.height, area.full[0], size[0]), (area.x, area.width, area.full[1], size[1]))
    found = []
    for start, length, full, cells in ends:
        first = min(round(start * cells / full), cells - 1)
        found.append(slice(first, max(first + 1, round((start + length) * cells / full))))
    rows, columns = found
    return rows, columns


def scaled(maps: Tensor, scale: str) -> Tensor:
    """Maps [n, h, w] in 0..1 by one of SCALES: stretched from each one's lowest to its highest value, or by the highest of all."""
    if scale == "as measured":
        return maps.clamp(0, 1)
    if scale == "all maps alike":
        return maps / maps.max().clamp_min(torch.finfo(maps.dtype).tiny)
    low, high = maps.flatten(1).aminmax(dim=1)
    span = (high - low)[:, None, None]
    return torch.where(span > 1e-6, (maps - low[:, None, None]) / span.clamp_min(1e-6), maps.clamp(0, 1))


def heat(maps: Tensor) -> Tensor:
    """Values [n, h, w] in 0..1 as colours [n, h, w, 3], from dark blue over red to light yellow."""
    colours = maps.new_tensor(_HEAT)
    place = maps.clamp(0, 1) * (len(_HEAT) - 1)
    low = place.floor().long().clamp_max(len(_HEAT) - 2)
    share = (place - low).unsqueeze(-1)
    return colours[low] * (1 - share) + colours[low + 1] * share


def resized(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps [n, h, w] at the size of a picture, bilinear."""
    return F.interpolate(maps[:, None], (height, width), mode="bilinear")[:, 0]


def shown(maps: Tensor, pictures: Tensor, view: str) -> Tensor:
    """Maps [n, h, w] in 0..1 beside or over the pictures [n, h, w, 3] that they belong to, by one of VIEWS: [n, h, w or 2 w, 3].

    Overlaid, a picture is left as it is where the map is 0, and four fifths of it are covered where it is 1.
    """
    colours = heat(maps)
    if view == "map alone":
        return colours
    if view == "side by side":
        return torch.cat([pictures, colours], dim=2)
    cover = 0.8 * maps.unsqueeze(-1)
    return pictures * (1 - cover) + colours * cover


def figures(maps: Sequence[Tensor], names: Sequence[str]) -> str:
    """A line for each map [h, w]: its name, its mean and its highest value."""
    return "\n".join(f"{name}: mean {float(one.mean()):.3f}, highest {float(one.max()):.3f}" for one, name in zip(maps, names, strict=True))
