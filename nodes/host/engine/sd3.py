"""Where SD3.5 is patched: the picture's tokens attend to themselves and to the image prompt once more, with norms of the adapter's own.

    out += w softmax(q' [k', k_ip]^T / sqrt d) [v, v_ip],   q', k' the picture's projections under the adapter's RMS norms

(SD3IPAdapterJointAttnProcessor2_0 of diffusers). The block gives q and k under norms of its own, RMS norms too: they are those under the
adapter's once the one weight is divided out and the other multiplied in, for the root mean square is the same. All of that is on the keys.
Where a weight of the model's is too small for that, q and k are projected once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....ipadapter_core.adapter.attention import rms_norm
from .application import Application
from .block_patch import OVERRIDE, Block, BlockPatch, attend_with, overridden, placed
from .laid_out import plus_in_place
from .layer_patch import Acting, Plan


class SD3Patch(BlockPatch):
    def call(self, block: Block, acting: list[tuple[Application, Acting]], plan: Plan) -> dict[str, Any]:
        text = plan.text
        img, vec = (block.args[name] for name in ("img", "vec"))
        settled = [application.timed.settled(img) for application, _ in acting if application.timed is not None]
        own, part = [norms.own[self.layer.key] for norms in settled], settled[0].raw.get(self.layer.key)
        raw = None if part is None else _raw(part, img, vec, own[0].shape[0])  # the block may change img in place

        def around(core: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            heads = [_heads(part, own[0].shape[0]) for part in (q, k, v)]
            # the block's own attention takes heads in front too, which are fewer operations; another pack's may not
            out = core(q, k, v) if OVERRIDE in block.options else core(*heads, skip_reshape=True)
            own_q, own_k, own_v = (part[:, :, text:] for part in heads)
            own_q, own_k = (own_q, own_k) if raw is None else raw
            images, options = out[:, text:], placed(plan, own_q.shape[2], 0)
            for (_, one), scale in zip(acting, own, strict=True):
                attend = _with_own(own_k * scale, own_v, attend_with(own_q.shape[1], block.options))
                self.images(images, own_q, [one], attend, options, plus_in_place)
            return out

        return block.run({**block.args, "transformer_options": overridden(block.options, around)})


def _heads(part: Tensor, dim: int) -> Tensor:
    """[b, n, h d] or [b, n, h, d] -> [b, h, n, d] in one view."""
    rows, tokens, *rest = part.shape
    row, token, *each = part.stride()
    head = each[0] if len(each) == 2 else dim * each[0]
    return part.as_strided((rows, math.prod(rest) // dim, tokens, dim), (row, head, token, each[-1]))


def _raw(part: Any, img: Tensor, vec: Tensor, dim: int) -> Tensor:
    """q and k [2, b, h, n, d] of a block's x_block under RMS norms without weights."""
    shift, scale = part.adaLN_modulation(vec)[:, None].chunk(6, dim=-1)[:2]
    qk = part.attn.qkv(part.norm1(img) * (1 + scale) + shift).unflatten(-1, (3, -1, dim))[:, :, :2]
    return rms_norm(qk.float(), 1e-6).to(qk.dtype).permute(2, 0, 3, 1, 4)


def _with_own(own_k: Tensor, own_v: Tensor, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """attend over the picture's own tokens [b, h, n, d] in front of the image prompt's.

    There is no mask: references attend each by themselves, and their regions are on what comes out.
    """

    def attend_own(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return attend(q, torch.cat([own_k, k], 2), torch.cat([own_v, v], 2))

    return attend_own
