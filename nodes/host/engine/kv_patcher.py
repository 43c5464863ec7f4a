"""Projected K and V as a model of ComfyUI's, so that it loads, counts and unloads them with the UNet that they are for."""

from __future__ import annotations

import weakref
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn


class HeldKV(nn.Module):
    """K and V rows [r, s]. What was laid out of them on a device goes when they are moved away from it."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows, requires_grad=False)
        self.layouts: weakref.WeakSet[Any] = weakref.WeakSet()  # a LayoutCache, or what has its `copied` and `clear`

    def _apply(self, fn: Any, recurse: bool = True) -> HeldKV:
        device = self.rows.device
        moved = super()._apply(fn, recurse)
        if self.rows.device != device:
            for cache in self.layouts:
                cache.clear()
        return moved

    @property
    def copied(self) -> int:
        """Bytes that the layouts hold beside the rows."""
        return sum(cache.copied for cache in self.layouts)


class KVPatcher(comfy.model_patcher.ModelPatcher):
    """Counts what is laid out for model calls too. `held` is the HeldKV, the only child of its model."""

    @property
    def held(self) -> HeldKV:
        return self.model.held

    def model_size(self) -> int:
        return self.held.rows.nbytes + self.held.copied


def kv_patcher(rows: Tensor) -> KVPatcher:
    model: Any = nn.Module()
    with torch.inference_mode(False):
        model.held = HeldKV(rows)
    patcher = KVPatcher(model, comfy.model_management.get_torch_device(), torch.device("cpu"))  # system memory, whatever the flags say
    patcher.cached_patcher_init = (_another, (model.held,))  # by which newer cores make one for another device
    return patcher


def empty_patcher() -> KVPatcher:
    """Of nothing but what is laid out."""
    with torch.inference_mode(False):
        return kv_patcher(torch.empty(0))


def _another(held: HeldKV) -> KVPatcher:
    return kv_patcher(held.rows.detach().cpu().clone())
