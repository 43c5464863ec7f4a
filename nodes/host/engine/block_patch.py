"""What stands on one block of a transformer model, where its kind does not matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from comfy.ldm.modules import attention
from torch import Tensor

from ....ipadapter_core.adapter.masks import level_size
from .application import Application
from .chunks import tell_once
from .laid_out import AROUND, Plus
from .layer_patch import PLAN, Acting, LayerPatch, Plan

OVERRIDE = "optimized_attention_override"
BENEATH = "ipadapter_beneath"  # the override of another pack (or None) beneath ours, in options that hold ours


class Block(NamedTuple):
    """A call of a block: what it was given, and what it is asked to run, which may be a patch that stood there before."""

    args: dict[str, Any]
    run: Callable[[dict[str, Any]], dict[str, Any]]
    options: dict[str, Any]


@dataclass(eq=False)
class BlockPatch(LayerPatch):
    """Stands on one block: what stood there before, or the block itself, with the image attention of each application."""

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        original, previous = extra["original_block"], self.previous
        run = original if previous is None else lambda given: previous(given, {"original_block": original})
        options = args.get("transformer_options") or {}  # copies of older forwards, as caches of steps bring them, hand none on
        plan: Plan | None = options.get(PLAN)
        if plan is None:
            tell_once("Another node calls the model's blocks by itself: the image prompt is left out of those calls.")
            return run(args)
        if "txt" in args:
            plan.text = args["txt"].shape[1]
        owner, planned = plan.layouts.get(self.layer.key, (None, ()))
        if owner is not self:  # another pack's patch stands in front and calls this one
            planned = tuple(plan.acting.get(application) for application in self.applications)
        acting = [(application, one) for application, one in zip(self.applications, planned, strict=True) if one is not None]
        return self.call(Block(args, run, options), acting, plan) if acting else run(args)

    def call(self, block: Block, acting: list[tuple[Application, Acting]], plan: Plan) -> dict[str, Any]:
        """The block's output with the image attention of what is acting in it."""
        raise NotImplementedError

    def add(self, callback: Callable, **kwargs: Any) -> None:
        raise TypeError("This patch stands on a transformer's block: nothing can be added to its attention.")

    def images(
        self, out: Tensor, q: Tensor, acting: list[Acting], attend: Callable[..., Tensor], options: Mapping[str, Any], plus: Plus
    ) -> Tensor:
        """`out` [b, n, c] plus the image attention of q [b, h, n, d]."""
        for layout, strength in acting:
            out = layout.add(out, q, attend, self.layer, options, strength, plus)
        return out


def placed(plan: Plan, tokens: int, before: int) -> dict[str, Any]:
    """The options by which layouts find their grid among `tokens`: `before` of the text, the picture's, those of Kontext's references."""
    rows, columns = level_size(*plan.size, 1)
    around = before, tokens - before - rows * columns
    return {"original_shape": (0, 0, *plan.size), "activations_shape": (0, 0, rows, columns), AROUND: around}


def attend_with(heads: int, options: Mapping[str, Any]) -> Callable[..., Tensor]:
    """The attention of [r, h, n, d] each, by which the model itself attends, or what another pack puts in its place."""
    if BENEATH in options:  # of a patch of ours that calls this one by way of another pack's
        theirs = options[BENEATH]
        options = {key: value for key, value in options.items() if key != OVERRIDE}
        options = options if theirs is None else {**options, OVERRIDE: theirs}

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return attention.optimized_attention(q, k, v, heads, mask=mask, skip_reshape=True, transformer_options=options)

    return attend


def overridden(options: Mapping[str, Any], around: Callable[..., Tensor]) -> dict[str, Any]:
    """Options under which the block's attention is around(attention, q, k, v), attention being what another pack puts in its place.

    attention(q, k, v, ...) gives what may be added to in place: a copy of what another pack gives, which it may have kept.
    """
    theirs = options.get(OVERRIDE)

    def override(func: Callable, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def core(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
            given = {**kwargs, **more}
            return func(q, k, v, *args, **given) if theirs is None else theirs(func, q, k, v, *args, **given).clone()

        return around(core, q, k, v)

    return {**options, OVERRIDE: override, BENEATH: options.get(BENEATH, theirs)}
