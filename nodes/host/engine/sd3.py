"""Where SD3.5 is patched: the picture's tokens attend to themselves and to the image prompt once more, with norms of the adapter's own.

    out += w softmax(q' [k', k_ip]^T / sqrt d) [v, v_ip],   q', k' the picture's projections under the adapter's RMS norms

(SD3IPAdapterJointAttnProcessor2_0 of diffusers). The block gives q and k under norms of its own, RMS norms too: they are those under the
adapter's once the one weight is divided out and the other multiplied in, for the root mean square is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .application import Application
from .block_patch import Block, BlockPatch, attend_with, overridden, placed
from .layer_patch import Acting, Plan


class SD3Patch(BlockPatch):
    def call(self, block: Block, acting: list[tuple[Application, Acting]], plan: Plan) -> dict[str, Any]:
        text = plan.text

        def around(core: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = core(q, k, v)
            images, q, k, v = (part[:, text:] for part in (out, q, k, v))
            options = placed(plan, q.shape[1], 0)
            for application, one in acting:
                assert application.timed is not None
                norm_q, norm_k = application.timed.norms_on(self.layer.key, q)
                dim = norm_q.shape[0]
                heads = [part.reshape(*part.shape[:2], -1, dim).transpose(1, 2) for part in (q, k, v)]
                attend = _with_own(heads[1] * norm_k, heads[2], attend_with(heads[0].shape[1], block.options))
                images = self.images(images, heads[0] * norm_q, [one], attend, options)
            return torch.cat([out[:, :text], images], 1)

        return block.run({**block.args, "transformer_options": overridden(block.options, around)})


def _with_own(own_k: Tensor, own_v: Tensor, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """attend over the picture's own tokens [b, h, n, d] in front of the image prompt's; several rows of q may lie behind each other.

    There is no mask: references attend each by themselves, and their regions are on what comes out.
    """

    def attend_own(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        rows, each = q.shape[0], own_k.shape[0] // q.shape[0]
        if each > 1:
            q = q.unflatten(2, (each, -1)).transpose(1, 2).flatten(0, 1)
            k, v = k.repeat_interleave(each, 0), v.repeat_interleave(each, 0)
        out = attend(q, torch.cat([own_k, k], 2), torch.cat([own_v, v], 2))
        return out if each == 1 else out.reshape(rows, -1, out.shape[-1])

    return attend_own
