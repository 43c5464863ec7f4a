"""A picture of any shape to the squares that an image encoder reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import IPAdapterError
from .images import middle_start
from .preprocess import CLIP_MEAN, middle_mask, middle_square, stretched
from .tiles import tile_starts

FITS = ("center crop", "pad", "stretch", "tiles")
MOST_TILES = 64

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the picture; beyond it where it is padded


@dataclass(frozen=True)
class Fitted:
    """Pictures as squares: `boxes` of each, `squares` [b len(boxes), size, size, 3], picture by picture, with a mask for each square."""

    boxes: tuple[Box, ...]
    squares: Tensor
    masks: Tensor | None  # [b len(boxes), size, size]


def fit(image: Tensor, how: str, tiles: int, size: int, mask: Tensor | None = None, fill: Sequence[float] = CLIP_MEAN) -> Fitted:
    """Pictures [b, h, w, 3] -> squares of `size` pixels by one of FITS.

    center crop: the middle square, as CLIP's own preprocessing takes it. pad: the whole picture, with bars of the colour `fill`
    (the encoder's mean, which it sees as nothing; LLaVA pads so, arXiv 2310.03744). stretch: the whole picture, out of shape.
    tiles: squares that cover the picture, a `tiles`th of its short side wide, overlapping as need be.
    mask [m, H, W], one for each picture or the first for all, is cut with the picture; bars are masked out.
    Raises IPAdapterError where a picture is too small or too long for its tiles.
    """
    b, h, w, _ = image.shape
    boxes = boxes_of(how, h, w, tiles)
    if mask is not None:
        mask = per_picture(mask, b)
    if how == "center crop":
        return Fitted(boxes, middle_square(image, size), None if mask is None else middle_mask(mask, size))
    squares = torch.stack([stretched(_cut(image, box, fill), size) for box in boxes], 1).flatten(0, 1)
    if mask is None:
        return Fitted(boxes, squares, None)
    layer = F.interpolate(mask.unsqueeze(1).float(), size=(h, w), mode="bilinear", antialias=True).movedim(1, -1)
    masks = torch.stack([stretched(_cut(layer, box, (0.0,)), size) for box in boxes], 1).flatten(0, 1)
    return Fitted(boxes, squares, masks[..., 0])


def per_picture(mask: Tensor, count: int) -> Tensor:
    """Masks [m, H, W] -> [count, H, W]: one for each picture, or the first for all."""
    return (mask if len(mask) == count else mask[:1]).expand(count, -1, -1)


def boxes_of(how: str, height: int, width: int, tiles: int) -> tuple[Box, ...]:
    """What of a picture becomes a square, by one of FITS."""
    short, long = min(height, width), max(height, width)
    if how == "stretch":
        return ((0, 0, width, height),)
    if how in ("center crop", "pad"):
        side = short if how == "center crop" else long
        left, top = middle_start(width, side), middle_start(height, side)
        return ((left, top, left + side, top + side),)
    if how != "tiles":
        raise IPAdapterError(f"'{how}' is not a way to fit a picture. Choose one of: {', '.join(FITS)}.")
    if tiles > short:
        raise IPAdapterError(f"The picture ({width} x {height}) is too small for {tiles} tiles: lower tiles, or connect a larger picture.")
    side = math.ceil(short / tiles)
    rows, columns = tile_starts(height, side), tile_starts(width, side)
    if len(rows) * len(columns) > MOST_TILES:
        raise IPAdapterError(
            f"The picture ({width} x {height}) would become {len(rows) * len(columns)} tiles, more than {MOST_TILES}. "
            "Lower tiles, or crop the picture first."
        )
    return tuple((left, top, left + side, top + side) for top in rows for left in columns)


def _cut(image: Tensor, box: Box, fill: Sequence[float]) -> Tensor:
    """[b, h, w, c] -> the box of it; what lies beyond the picture has the colour `fill`."""
    left, top, right, bottom = box
    h, w = image.shape[1:3]
    inside = image[:, max(top, 0) : bottom, max(left, 0) : right]
    if left >= 0 and top >= 0 and right <= w and bottom <= h:
        return inside
    out = image.new_tensor(fill).repeat(len(image), bottom - top, right - left, 1)
    y, x = max(-top, 0), max(-left, 0)
    out[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
    return out


def pool(features: Tensor, count: int, masks: Tensor | None = None) -> Tensor:
    """Features [b count, ...] of the squares of each picture -> [b, ...]: their mean, by the white share of each square's mask.

    Plain where a picture's masks are black all over.
    """
    features = rearrange(features, "(b n) ... -> b n ...", n=count)
    if masks is None or count == 1:
        return features.mean(1)
    share = rearrange(masks, "(b n) h w -> b n (h w)", n=count).mean(-1).to(features)
    share = torch.where(share.sum(1, keepdim=True) > 0, share, torch.ones_like(share))
    return torch.einsum("bn,bn...->b...", share / share.sum(1, keepdim=True), features)


def interpolate_positions(table: Tensor, side: int) -> Tensor:
    """Position embeddings [c + n n, d] of an encoder for pictures of side x side patches: [c + side side, d], the class token's c kept.

    Bicubic on the grid of patches, as transformers' interpolate_pos_encoding. Raises IPAdapterError where they are no square grid.
    """
    n = math.isqrt(len(table))
    classes = len(table) - n * n
    if classes > 1:
        raise IPAdapterError("This image encoder has no square grid of patches: set size to 0, its own size.")
    grid = rearrange(table[classes:].float(), "(y x) c -> 1 c y x", y=n)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:classes].float(), rearrange(grid, "1 c y x -> (y x) c")]).to(table.dtype)
