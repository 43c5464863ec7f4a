"""References cut into tiles: one region of the picture per tile (Tiled), or finer features of a picture (ClipVision Enhancer)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from ..errors import IPAdapterError
from ..values import check_number
from .images import center_crop, resize, rgb, sharpen
from .preprocess import around_middle

TILE = 256
LONGEST = 4 * TILE


def reference_tiles(image: Tensor, mask: Tensor | None = None, sharpening: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cut pictures [b, h, w, 1..4] into n tiles [n, b, 256, 256, 3]; masks [n, m, H, W] are their places on the reference.

    Pictures of nearly square shape become 512 x 512, others 256 on the short side and at most 1024 on the long one (centre crops).
    `mask` [m, h, w], of any size, is brought to the reference's shape; each tile's mask is it inside the tile and 0 elsewhere.
    """
    check_number(sharpening, "sharpening", 0, 1)
    image = rgb(image)
    _, h, w, _ = image.shape
    region = image.new_ones(1, h, w, 1) if mask is None else _bicubic(mask.to(image).reshape(-1, *mask.shape[-2:], 1), h, w)
    short = min(h, w)
    if 0.75 < h / w < 1.33:
        image, region = center_crop(image, short, short), center_crop(region, short, short)
        height = width = 2 * TILE
    else:
        image, region = around_middle(image, TILE), around_middle(region, TILE)
        height, width = image.shape[1] * TILE // short, image.shape[2] * TILE // short
    image, region = resize(image, height, width), _bicubic(region, height, width)
    height, width = min(height, LONGEST), min(width, LONGEST)
    image, region = center_crop(image, height, width), center_crop(region, height, width)[..., 0]
    if sharpening > 0:
        image = sharpen(image, sharpening)
    boxes = [(slice(None), slice(top, top + TILE), slice(left, left + TILE)) for top in tile_starts(height) for left in tile_starts(width)]
    masks = region.new_zeros(len(boxes), *region.shape)
    for tile_mask, box in zip(masks, boxes, strict=True):
        tile_mask[box] = region[box]
    return torch.stack([image[box] for box in boxes]), masks


def tile_starts(length: int, side: int = TILE) -> list[int]:
    """Where tiles `side` wide begin along a length: as few as cover it, evenly overlapping."""
    count = math.ceil(length / side)
    return [int(i * (length - side) / max(count - 1, 1)) for i in range(count)]


def _bicubic(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x.movedim(-1, 1), size=(height, width), mode="bicubic", antialias=True, align_corners=False).movedim(1, -1)


def split_tiles(image: Tensor, k: int) -> Tensor:
    """Cut the centre square of pictures [b, h, w, c] into k x k equal tiles: [b k k, s, s, c], picture by picture, row by row.

    Raises IPAdapterError where a picture has fewer than k pixels on a side.
    """
    short = min(image.shape[1:3])
    side = short // k
    if side == 0:
        raise IPAdapterError(f"The picture is too small to be cut into {k} x {k} tiles. Lower enhance_tiles or connect a larger picture.")
    image = center_crop(image, short, short)[:, : side * k, : side * k]
    return rearrange(image, "b (y h) (x w) c -> (b y x) h w c", y=k, x=k)


def merge_tile_features(features: Tensor, k: int) -> Tensor:
    """Features of the tiles that split_tiles cut, put together on their grid and average-pooled to the grid of one picture.

    Hidden states [b k k, 1 + n n, c] -> [b, 1 + n n, c], class tokens averaged. Embeds [b k k, e] -> [b, e], where the e values are
    seen as a square, or as the rectangle nearest to one (1280: 32 x 40).
    Raises IPAdapterError where the tokens after the first do not form a square.
    """
    if features.ndim == 2:
        rows = next(r for r in range(math.isqrt(features.shape[1]), 0, -1) if features.shape[1] % r == 0)
        return _pool_grid(rearrange(features, "n (r s) -> n r s 1", r=rows), k)[..., 0]
    n = math.isqrt(features.shape[1] - 1)
    if n * n != features.shape[1] - 1:
        raise IPAdapterError(
            f"Tiles cannot be merged: this image encoder gives {features.shape[1]} tokens, which is not a square and a class token. "
            "Set enhance_tiles to 1."
        )
    classes = reduce(features[:, :1], "(b tiles) t c -> b t c", "mean", tiles=k * k)
    return torch.cat([classes, _pool_grid(rearrange(features[:, 1:], "n (r s) c -> n r s c", r=n), k)], dim=1)


def _pool_grid(tiles: Tensor, k: int) -> Tensor:
    """[b k k, r, s, c] -> [b, r s, c]"""
    grid = rearrange(tiles, "(b y x) r s c -> b c (y r) (x s)", y=k, x=k)
    return rearrange(F.avg_pool2d(grid, k), "b c r s -> b (r s) c")


def join_tiled(full: Tensor, tiled: Tensor, ratio: float) -> Tensor:
    """Features [b, ...] of whole pictures and of their tiles: several are mixed by `ratio`; of one, full * ratio and tiled side by side."""
    if full.shape[0] == 1:
        return torch.cat([full * ratio, tiled])
    return full * ratio + tiled * (1 - ratio)
