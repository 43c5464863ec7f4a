"""SigLIP's attention pooling head, which ComfyUI does not load with the rest of the encoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

PREFIX = "vision_model.head."
HEADS = 16  # of SigLIP-so400m; a file does not say
_KEYS = (
    "probe", "attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight", "attention.out_proj.bias",
    "layernorm.weight", "layernorm.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
)  # fmt: skip


def head_of(sd: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The head's tensors in fp32, without their prefix, of an encoder's; None where one is missing."""
    if not all(PREFIX + key in sd for key in _KEYS):
        return None
    return {key: sd[PREFIX + key].float() for key in _KEYS}


def pooled(head: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Normed tokens of the last layer [b, n, c] -> [b, c]: a learned query attends to them (SiglipMultiheadAttentionPoolingHead)."""
    head = {key: value.to(tokens.device) for key, value in head.items()}
    weights, biases = (head[f"attention.in_proj_{part}"].chunk(3) for part in ("weight", "bias"))
    given = head["probe"].expand(len(tokens), -1, -1), tokens.float(), tokens.float()
    q, k, v = (F.linear(x, w, b).unflatten(-1, (HEADS, -1)).transpose(1, 2) for x, w, b in zip(given, weights, biases, strict=True))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = F.linear(out, head["attention.out_proj.weight"], head["attention.out_proj.bias"])
    normed = F.layer_norm(out, out.shape[-1:], head["layernorm.weight"], head["layernorm.bias"], 1e-6)
    hidden = F.gelu(F.linear(normed, head["mlp.fc1.weight"], head["mlp.fc1.bias"]), approximate="tanh")
    return (out + F.linear(hidden, head["mlp.fc2.weight"], head["mlp.fc2.bias"]))[:, 0]
