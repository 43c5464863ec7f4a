"""Attention masks on the grid of a layer's latent tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def token_grid(count: int, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of `count` tokens that cover a latent of height x width; rows times columns is at most `count`.

    rows = int(x) + (1 if count mod int(x) else 0) with x = height / sqrt(height width / count); columns = count // rows
    (the grid of diffusers' IPAdapterMaskProcessor.downsample). From 1 to `count` rows, however narrow the latent.
    """
    rows = max(1, int(height / (height * width / count) ** 0.5))
    rows = min(rows + (count % rows != 0), count)
    return rows, count // rows


def mask_to_tokens(mask: Tensor, count: int, height: int, width: int) -> Tensor:
    """[n, H, W] -> [n, count, 1] for a layer of `count` tokens on a latent of height x width.

    Bilinear, not antialiased. Where the grid has fewer cells than tokens the flat mask is padded with zeros on both
    sides, the smaller half first (as ComfyUI_IPAdapter_plus does).
    """
    grid = token_grid(count, height, width)
    flat = F.interpolate(mask.unsqueeze(1), size=grid, mode="bilinear").flatten(1)
    missing = count - flat.shape[1]
    return F.pad(flat, (missing // 2, missing - missing // 2)).unsqueeze(-1)


def level_sizes(height: int, width: int, levels: int = 4) -> dict[int, tuple[int, int]]:
    """Token counts of a UNet's levels for a latent of height x width: {tokens: (height, width)}; each level halves, rounding up."""
    sizes = {}
    for _ in range(levels):
        sizes[height * width] = (height, width)
        height, width = -(-height // 2), -(-width // 2)
    return sizes


def take(values: Tensor, index: Sequence[int]) -> Tensor:
    """Rows `index` of [n, ...]; beyond the end the last row repeats."""
    last = values.shape[0] - 1
    return values[torch.tensor([min(i, last) for i in index], device=values.device)]
