"""Combining the encoder's features of several pictures, before the projection."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import IPAdapterError
from ..values import check_choice

COMBINE_METHODS = ("concat", "add", "subtract", "average", "norm average")


def combine(embeds: Tensor, method: str) -> Tensor:
    """[n, ...] -> [n, ...] for "concat", whose tokens later stand side by side, else [1, ...].

    add: sum. subtract: the first minus the mean of the others. average: mean. norm average: mean of e / ||e||, the norm
    taken over the pictures for each component. max, min: elementwise. One picture stays as it is.
    """
    check_choice(method, "method to combine embeds", (*COMBINE_METHODS, "max", "min"))
    if method == "concat" or embeds.shape[0] == 1:
        return embeds
    if method == "add":
        return embeds.sum(0, keepdim=True)
    if method == "subtract":
        return embeds[:1] - embeds[1:].mean(0, keepdim=True)
    if method == "average":
        return embeds.mean(0, keepdim=True)
    if method == "norm average":
        return (embeds / embeds.norm(dim=0, keepdim=True).clamp_min(torch.finfo(embeds.dtype).tiny)).mean(0, keepdim=True)
    if method == "max":
        return embeds.amax(0, keepdim=True)
    if method == "min":
        return embeds.amin(0, keepdim=True)
    raise IPAdapterError(f"There is no method '{method}' to combine embeds.")


def match_count(embeds: Tensor, count: int) -> Tensor:
    """[n, ...] -> [count, ...]: cut, or the last entry repeated."""
    missing = count - embeds.shape[0]
    if missing > 0:
        return torch.cat([embeds, embeds[-1:].expand(missing, *embeds.shape[1:])])
    return embeds[:count]
