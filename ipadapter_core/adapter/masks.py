"""Attention masks on the grid of a layer's latent tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Area:
    """The part of a latent of `full` (height, width) that a prompt with an area is sampled on, in latent cells."""

    y: int
    x: int
    height: int
    width: int
    full: tuple[int, int]


def token_grid(count: int, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) that `count` tokens covering a latent of height x width most likely have; rows times columns is at most `count`.

    rows = int(x) + (1 if count mod int(x) else 0) with x = height / sqrt(height width / count); columns = count // rows
    (the grid of diffusers' IPAdapterMaskProcessor.downsample). From 1 to `count` rows, however narrow the latent. A guess: for
    some sizes it is transposed, 65 x 64 for one, so token_size asks it only for counts that are none of the UNet's own.
    """
    rows = max(1, int(height / (height * width / count) ** 0.5))
    rows = min(rows + (count % rows != 0), count)
    return rows, count // rows


def level_size(height: int, width: int, level: int) -> tuple[int, int]:
    """(height, width) of a UNet's level for a latent of height x width: each level halves, rounding up."""
    return -(-height // 2**level), -(-width // 2**level)


def token_size(count: int, height: int, width: int, levels: int = 4) -> tuple[int, int]:
    """(rows, columns) of `count` tokens: those of the level that has so many, else token_grid's guess."""
    sizes = (level_size(height, width, level) for level in range(levels))
    return next((size for size in sizes if size[0] * size[1] == count), token_grid(count, height, width))


def mask_to_tokens(mask: Tensor, count: int, grid: tuple[int, int], area: Area | None = None, mode: str = "bilinear") -> Tensor:
    """[n, H, W] -> [n, count, 1] for a layer whose tokens lie on `grid` and cover the whole mask, or the part of it at `area`.

    By `mode` (bilinear, or bicubic as in diffusers), not antialiased. Where the grid has fewer cells than tokens the flat mask is padded
    with zeros on both sides, the smaller half first (as ComfyUI_IPAdapter_plus does).
    """
    if area is None:
        cells = F.interpolate(mask.unsqueeze(1), size=grid, mode=mode)
    else:
        cells = F.grid_sample(mask.unsqueeze(1), _centres(grid, area, mask), mode, "border", align_corners=False)
    flat = cells.flatten(1)
    missing = count - flat.shape[1]
    return F.pad(flat, (missing // 2, missing - missing // 2)).unsqueeze(-1)


def _centres(grid: tuple[int, int], area: Area, mask: Tensor) -> Tensor:
    """Where the centres of the area's cells lie on the mask [n, rows, columns, (x, y)], from -1 at its one edge to 1 at the other."""

    def along(cells: int, start: int, length: int, full: int) -> Tensor:
        return 2 * (start + (torch.arange(cells, dtype=mask.dtype, device=mask.device) + 0.5) * length / cells) / full - 1

    y, x = along(grid[0], area.y, area.height, area.full[0]), along(grid[1], area.x, area.width, area.full[1])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).expand(mask.shape[0], -1, -1, -1)


def take(values: Tensor, index: Sequence[int]) -> Tensor:
    """Rows `index` of [n, ...]; beyond the end the last row repeats."""
    last = values.shape[0] - 1
    return values[torch.tensor([min(i, last) for i in index], device=values.device)]
