"""Where Flux (and Chroma, which has its blocks) is patched.

q is the queries after their norm and before RoPE. XLabs' adapter adds its image attention to what comes out of a double block
(diffusers' FluxIPAdapterAttnProcessor), InstantX's to the attention in front of the block's output projection, in single blocks of text
and picture alike (attention_processor.py of InstantX/FLUX.1-dev-IP-Adapter).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

import comfy.ldm.flux.math as flux_math
from comfy.ldm.flux.layers import DoubleStreamBlock
from torch import Tensor

from .application import Application
from .block_patch import OVERRIDE, Block, BlockPatch, attend_with, overridden, placed
from .laid_out import plus, plus_in_place
from .layer_patch import Acting, Plan

Seen = Callable[[Tensor, Tensor], Tensor]  # (q [b, h, n, d], attention's output [b, n, h d], added to in place) -> the output


class FluxPatch(BlockPatch):
    def call(self, block: Block, acting: list[tuple[Application, Acting]], plan: Plan) -> dict[str, Any]:
        double = self.layer.name == "double"
        inside = [one for application, one in acting if not application.outside]
        outside = [one for application, one in acting if application.outside]
        queries: list[Tensor] = []

        def see(q: Tensor, out: Tensor) -> Tensor:
            heads, text = q.shape[1], plan.text
            if double:
                q = q[:, :, text:]
                queries.append(q)
            if not inside:
                return out
            attend = attend_with(heads, block.options)
            if not double:
                return self.images(out, q, inside, attend, placed(plan, out.shape[1], text), plus_in_place)
            self.images(out[:, text:], q, inside, attend, placed(plan, q.shape[2], 0), plus_in_place)
            return out

        out = (_by_hooks if HOOKS else _by_override)(block, self.previous is None, see)
        if outside and queries:
            q = queries[-1]
            attend = attend_with(q.shape[1], block.options)
            out = {**out, "img": self.images(out["img"], q, outside, attend, placed(plan, q.shape[2], 0), plus)}
        return out


def _by_hooks(block: Block, bare: bool, see: Seen) -> dict[str, Any]:
    """By the patches that newer cores call around a block's attention, for this block alone."""
    patches = block.options.get("patches", {})
    shared = OVERRIDE in block.options or bool(patches.get("attn1_output_patch"))  # another pack may keep what it gives
    queries: list[Tensor] = []

    def before(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        queries.append(q)
        return {}

    def after(out: Tensor, extra_options: Mapping[str, Any]) -> Tensor:
        return see(queries[-1], out.clone() if shared else out)

    ours = {"attn1_patch": before, "attn1_output_patch": after}
    patches = {**patches, **{kind: [*patches.get(kind, ()), one] for kind, one in ours.items()}}
    return block.run({**block.args, "transformer_options": {**block.options, "patches": patches}})


def _by_override(block: Block, bare: bool, see: Seen) -> dict[str, Any]:
    """By standing in for the block's attention. A bare block gets no `pe`, so that its queries come as they are before RoPE, which is then
    done here; a patch that stands on the block may need its `pe`, and the rotation is undone."""
    pe = block.args["pe"]

    def around(core: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if pe is None:
            return see(q, core(q, k, v))
        if bare:
            return see(q, core(*flux_math.apply_rope(q, k, pe), v))
        return see(flux_math.apply_rope1(q, pe.transpose(-1, -2)), core(q, k, v))

    return block.run({**block.args, "pe": None if bare else pe, "transformer_options": overridden(block.options, around)})


def _constants(code: CodeType) -> set[Any]:
    found = {one for one in code.co_consts if isinstance(one, str)}
    return found.union(*(_constants(one) for one in code.co_consts if isinstance(one, CodeType)))


# Whether this core calls these patches in Flux's blocks
HOOKS = {"attn1_patch", "attn1_output_patch"} <= _constants(DoubleStreamBlock.forward.__code__)
