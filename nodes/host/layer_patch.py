"""What stands on one cross-attention: the attention that stood there before, plus the image attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from comfy.ldm.modules import attention
from torch import Tensor

from ...ipadapter_core.attention import image_attention
from ...ipadapter_core.layers import Layer
from .application import Application, Prepared

PLAN = "ipadapter_plan"  # {slot: (Application, Prepared, or None while its window is closed)}, for one model call


class LayerPatch:
    """Stands on one attn2 key: the attention that stood there before, plus the image attention of each application.

    `parts` are (slot, Application) pairs of ours, or (callback, kwargs) that InstantID, PuLID and the like `.add`:
    callback(out, q, k, v, extra_options, **kwargs) is added to the output while kwargs' sigma_start >= sigma >= sigma_end.
    """

    def __init__(self, layer: Layer, previous: Callable | None, parts: list[tuple[Any, Any]]):
        self.layer = layer
        self.previous = previous
        self.parts = parts

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        heads, precision = extra_options["n_heads"], extra_options["attn_precision"]
        if self.previous is None:
            out = attention.optimized_attention(q, k, v, heads, attn_precision=precision, transformer_options=extra_options)
        else:
            out = self.previous(q, k, v, extra_options)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention.optimized_attention(
                q, k, v, heads, attn_precision=precision, transformer_options=extra_options, skip_reshape=True
            )

        plan = extra_options.get(PLAN, {})
        for first, second in self.parts:
            if not isinstance(second, Application):
                sigma = plan["sigma"] if "sigma" in plan else current_sigma(extra_options)
                if second.get("sigma_end", 0.0) <= sigma <= second.get("sigma_start", float("inf")):
                    out = out + first(out, q, k, v, extra_options, **second)
                continue
            owner, prepared = plan.get(first, (None, None))
            if owner is not second or (prepared is not None and prepared.dtype != q.dtype):
                prepared = self._unplanned(second, q, extra_options)
            if prepared is not None:
                image = image_attention(q, *prepared.kv[self.layer.key], attend)
                out = prepared.add(out, image, self.layer)
        return out

    @staticmethod
    def _unplanned(application: Application, q: Tensor, options: dict[str, Any]) -> Prepared | None:
        """For calls that did not come through prepare_call, or with a q of another dtype than the model computes in."""
        if application.window is not None and not application.is_open(current_sigma(options)):
            return None
        return application.prepare(options, tuple(options["original_shape"]), q.device, q.dtype)

    def add(self, callback: Callable, **kwargs: Any) -> None:
        """The protocol by which InstantID and PuLID join whatever stands on their key."""
        self.parts.append((callback, kwargs))

    def applications(self) -> list[tuple[int, Application]]:
        return [part for part in self.parts if isinstance(part[1], Application)]

    def to(self, target: Any) -> LayerPatch:
        for _, application in self.applications():
            application.to(target)
        if hasattr(self.previous, "to"):
            self.previous = self.previous.to(target)  # type: ignore[union-attr]
        return self

    def models(self) -> list:
        """Those of the patch that stood here before: nothing of the adapter but its K and V is needed while sampling."""
        return self.previous.models() if hasattr(self.previous, "models") else []  # type: ignore[union-attr]

    def copy(self) -> LayerPatch:
        return LayerPatch(self.layer, self.previous, list(self.parts))

    def __deepcopy__(self, memo: dict) -> LayerPatch:
        return LayerPatch(self.layer, copy.deepcopy(self.previous, memo), list(self.parts))


def current_sigma(options: Mapping[str, Any]) -> float:
    sigmas = options.get("sigmas")
    return 999999999.9 if sigmas is None else float(sigmas[0])


def layer_patches(options: Mapping[str, Any]) -> dict[Any, LayerPatch]:
    """Our patches in transformer_options, by their attn2 key."""
    patches = options.get("patches_replace", {}).get("attn2", {})
    return {key: patch for key, patch in patches.items() if isinstance(patch, LayerPatch)}
