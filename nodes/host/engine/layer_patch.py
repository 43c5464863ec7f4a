"""What stands on one cross-attention: the attention that stood there before, plus the image attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from comfy.ldm.modules import attention
from torch import Tensor

from ....ipadapter_core.adapter.layers import Layer
from .application import Application
from .chunks import chunks_of
from .laid_out import LaidOut
from .layout import layout_of

PLAN = "ipadapter_plan"  # the Plan of a model call in transformer_options
APPLIED = "ipadapter_applied"  # the Applications on a transformer's blocks in transformer_options: other packs' patches may hide ours


class Acting(NamedTuple):
    """An application in a model call: its layout, and what its weight is multiplied with."""

    layout: LaidOut
    strength: float


@dataclass
class Plan:
    """What was settled once for a model call.

    sigma: None if nobody asks. layouts: layer number -> the patch there, and each of its applications as it acts in this call,
    None for one that does not. Keyed by number, since a key that is new at every apply would make torch.compile start anew.
    acting: the same by application, for patches on blocks that another pack calls.
    watching: what is told of each application in each layer, with the text attention's output. size: (height, width) of the latents;
    text: tokens of the text in front of the picture's, on a transformer.
    """

    sigma: float | None = None
    layouts: dict[int, tuple[LayerPatch, tuple[Acting | None, ...]]] = field(default_factory=dict)
    acting: dict[Application, Acting | None] = field(default_factory=dict)
    watching: tuple[Callable[..., None], ...] = ()
    size: tuple[int, int] = (0, 0)
    text: int = 0


@dataclass(eq=False)
class LayerPatch:
    """Stands on one attn2 key: what stood there before, plus the image attention of each application.

    joined: what InstantID, PuLID and the like `.add`: (callback, kwargs), where callback(out, q, k, v, extra_options, **kwargs)
    is added to the output while kwargs' sigma_start >= sigma >= sigma_end.
    """

    layer: Layer
    previous: Callable | None
    applications: tuple[Application, ...] = ()
    joined: list[tuple[Callable, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        heads, precision = extra_options["n_heads"], extra_options["attn_precision"]
        if self.previous is None:
            out = attention.optimized_attention(q, k, v, heads, attn_precision=precision, transformer_options=extra_options)
        else:
            out = self.previous(q, k, v, extra_options)

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            return attention.optimized_attention(
                q, k, v, heads, mask=mask, attn_precision=precision, transformer_options=extra_options, skip_reshape=True
            )

        plan: Plan | None = extra_options.get(PLAN)
        owner, planned = (None, ()) if plan is None else plan.layouts.get(self.layer.key, (None, ()))
        text, watching = out, () if plan is None else plan.watching
        for place, application in enumerate(self.applications):
            if owner is self:
                acting = planned[place]
                if acting is not None and not acting.layout.fits(q, extra_options):
                    acting = _for_rows(application, q, extra_options, acting.strength)
            else:
                acting = _unplanned(application, q, extra_options)
            if acting is not None:
                for see in watching:
                    see(application, acting, self.layer, q, text, extra_options)
                out = acting.layout.add(out, q, attend, self.layer, extra_options, acting.strength)
        if self.joined:
            sigma = plan.sigma if plan is not None and plan.sigma is not None else current_sigma(extra_options)
            for callback, kwargs in self.joined:
                if kwargs.get("sigma_end", 0.0) <= sigma <= kwargs.get("sigma_start", float("inf")):
                    out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out

    def add(self, callback: Callable, **kwargs: Any) -> None:
        """The protocol by which InstantID and PuLID join whatever stands on their key."""
        self.joined.append((callback, kwargs))

    def to(self, target: Any) -> LayerPatch:
        if hasattr(self.previous, "to"):
            self.previous = self.previous.to(target)  # type: ignore[union-attr]
        return self

    def models(self) -> list:
        """K and V, which are all of the adapter that sampling needs, and what the patch that stood here before needs."""
        previous = self.previous.models() if hasattr(self.previous, "models") else []  # type: ignore[union-attr]
        return [*previous, *(patcher for application in self.applications for patcher in application.patchers)]

    def copy(self) -> LayerPatch:
        return type(self)(self.layer, self.previous, self.applications, list(self.joined))

    def __deepcopy__(self, memo: dict) -> LayerPatch:
        return type(self)(self.layer, copy.deepcopy(self.previous, memo), self.applications, list(self.joined))


def _unplanned(application: Application, q: Tensor, options: dict[str, Any]) -> Acting | None:
    """For calls that did not come through prepare_call, and patches that another pack hides from it."""
    strength = 1.0 if application.window is None else application.window.strength(current_sigma(options))
    return _for_rows(application, q, options, strength) if strength else None


def _for_rows(application: Application, q: Tensor, options: dict[str, Any], strength: float) -> Acting | None:
    """For the rows that are really there, where the options say what they are. Raises IPAdapterError where they do not."""
    height, width = options["original_shape"][-2:]
    layout = layout_of(application, chunks_of(options, q.shape[0], (height, width)), q.device, q.dtype)
    return None if layout is None else Acting(layout, strength)


def current_sigma(options: Mapping[str, Any]) -> float:
    sigmas = options.get("sigmas")
    return 999999999.9 if sigmas is None else float(sigmas[0])


def layer_patches(options: Mapping[str, Any]) -> dict[Any, LayerPatch]:
    """Our patches in transformer_options, by their key: of a UNet's attn2, or of a transformer's block."""
    replaced = options.get("patches_replace", {})
    patches = {**replaced.get("attn2", {}), **replaced.get("dit", {})}
    return {key: patch for key, patch in patches.items() if isinstance(patch, LayerPatch)}


def applications(options: Mapping[str, Any]) -> list[Application]:
    """Those of our patches in transformer_options, in the order in which they were applied."""
    found = [application for patch in layer_patches(options).values() for application in patch.applications]
    return list(dict.fromkeys([*found, *options.get(APPLIED, ())]))
