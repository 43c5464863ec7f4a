"""Decoupled cross-attention (IP-Adapter, arXiv 2308.06721, equation 5): K and V of the image tokens are projected
once, then every layer adds softmax(q K^T / sqrt(d)) V of the same q that attends to the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALINGS = ("V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty")
PENALTY_WIDTH = 1280  # the width at which the C penalty is 1


@dataclass(frozen=True)
class Slot:
    """Where one layer's K (and V right behind it) lies in a row of KV."""

    offset: int
    heads: int
    tokens: int
    dim: int

    @property
    def size(self) -> int:
        return self.heads * self.tokens * self.dim


@dataclass(frozen=True)
class KV:
    """Projected K and V of all layers: `rows` [r, s], one row for a set of tokens, in one piece of memory."""

    rows: Tensor
    slots: Mapping[int, Slot]

    def layer(self, key: int) -> tuple[Tensor, Tensor]:
        """K and V of a layer, each [r, heads, tokens, dim], as views."""
        slot = self.slots[key]
        both = self.rows[:, slot.offset : slot.offset + 2 * slot.size]
        k, v = both.view(-1, 2, slot.heads, slot.tokens, slot.dim).unbind(1)
        return k, v

    def times(self, weights: Mapping[int, Tensor], device: torch.device) -> KV:
        """On `device`, each layer's K times its weights [d]."""
        kv = KV(self.rows.to(device, copy=True), self.slots)
        for key, weight in weights.items():
            kv.layer(key)[0].mul_(weight)
        return kv


def build_layers(sd: Mapping[str, Tensor], operations: Any = nn) -> nn.ModuleDict:
    """{number: {to_k_ip, to_v_ip, ...}} on the tensors "1.to_k_ip.weight" ... of `sd` themselves; a LoRA's are left out.

    InstantX's SD3.5 adapter has norms beside them: `norm_ip` with a `linear`, and weights of RMS norms of queries and keys.
    """
    sd = {key: value for key, value in sd.items() if "_lora." not in key}
    numbers = sorted({int(key.split(".")[0]) for key in sd})
    with torch.device("meta"):
        layers = nn.ModuleDict({str(number): _layer(sd, f"{number}.", operations) for number in numbers})
    layers.load_state_dict(sd, assign=True)
    return layers.eval().requires_grad_(False)


def _layer(sd: Mapping[str, Tensor], prefix: str, operations: Any) -> nn.ModuleDict:
    def linear(key: str) -> nn.Module:
        out, features = sd[f"{prefix}{key}.weight"].shape
        return operations.Linear(features, out, bias=f"{prefix}{key}.bias" in sd)

    layer = nn.ModuleDict({kind: linear(kind) for kind in ("to_k_ip", "to_v_ip")})
    if f"{prefix}norm_ip.linear.weight" in sd:
        layer["norm_ip"] = nn.ModuleDict({"linear": linear("norm_ip.linear")})
        for kind in ("norm_q", "norm_k", "norm_ip_k"):
            layer[kind] = nn.ParameterDict({"weight": nn.Parameter(torch.empty(sd[f"{prefix}{kind}.weight"].shape))})
    return layer


def project_kv(
    to_kv: Mapping[int, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]],
    tokens: Mapping[int, Tensor],
    heads: Mapping[int, int],
    dtype: torch.dtype,
    norm: Callable[[int, Tensor], Tensor] | None = None,
) -> KV:
    """tokens {key: [r, t, d]} through each layer's (to_k_ip, to_v_ip), kept in `dtype`. norm(key, K [r, t, h, d]): of each head's K."""
    parts, slots, offset = [], {}, 0
    for key, (to_k, to_v) in to_kv.items():
        k, v = to_k(tokens[key]), to_v(tokens[key])
        if norm is not None:
            k = norm(key, k.unflatten(-1, (heads[key], -1))).flatten(2)
        both = torch.stack([k, v], dim=1)  # [r, 2, t, c]
        both = both.unflatten(-1, (heads[key], -1)).transpose(2, 3)  # [r, 2, h, t, d]
        slots[key] = Slot(offset, heads[key], both.shape[3], both.shape[4])
        offset += 2 * slots[key].size
        parts.append(both.flatten(1).to(dtype))
    return KV(torch.cat(parts, dim=1), slots)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x over its root mean square of the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def modulated(tokens: Tensor, linear: Callable[[Tensor], Tensor], time: Tensor) -> Tensor:
    """LayerNorm(tokens) (1 + scale) + shift, both from the embedding of the timestep [1, w] (AdaLayerNorm of diffusers, chunk_dim 1)."""
    shift, scale = linear(F.silu(time))[:, None].chunk(2, dim=-1)
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


def scale_kv(k: Tensor, v: Tensor, scaling: str, weight: Tensor, pictures: int = 1) -> tuple[Tensor, Tensor]:
    """K and V [r, h, t, d] under one of SCALINGS; weight is 0-d or [r, 1, 1, 1]. "V only" is not scaled here.

    K+V: both times w. With C penalty: w becomes w C / 1280, C the layer's width. K+mean(V): V becomes (V - m) + m w',
    m its mean over the tokens of each of the `pictures` that stand side by side.
    """
    if scaling == "V only":
        return k, v
    if scaling != "K+V":
        weight = weight * (k.shape[1] * k.shape[3] / PENALTY_WIDTH)
    if scaling == "K+mean(V) w/ C penalty":
        each = v.unflatten(2, (pictures, -1))
        mean = each.mean(dim=3, keepdim=True).expand_as(each).flatten(2, 3)
        return k * weight, v - mean + mean * weight
    return k * weight, v * weight


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[r, h, n, d] each -> [r, n, h d]."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def image_attention(q: Tensor, k: Tensor, v: Tensor, attention: Callable[[Tensor, Tensor, Tensor], Tensor] = sdpa) -> Tensor:
    """q [b, n, h d], K and V [r, h, t, d] -> [b, n, h d]; b is a multiple of r, and b / r neighbours share a row.

    Which row belongs to which q is the caller's to know: a b that is no multiple of r would be split across rows.
    q with its heads in front, [b, h, n, d], takes K and V of b rows.
    """
    if q.ndim == 4:
        return attention(q, k, v)
    rows, heads, _, dim = k.shape
    out = attention(q.reshape(rows, -1, heads, dim).transpose(1, 2), k, v)
    return out if rows == q.shape[0] else out.view(q.shape)


def runs(index: Sequence[int]) -> tuple[int, ...]:
    """A shorter index where neighbours share a row: one entry for each run, all runs as long as each other (1, 1, 2, 2 -> 1, 2)."""
    count = len(index)
    lengths = (length for length in range(count, 0, -1) if count % length == 0)
    alike = (length for length in lengths if all(index[i] == index[i - i % length] for i in range(count)))
    return tuple(index[:: next(alike)])


def select_rows(rows: Tensor, index: Sequence[int]) -> Tensor:
    """rows[index] of [r, s], without a copy where the index runs upwards without gaps."""
    if list(index) == list(range(index[0], index[0] + len(index))):
        return rows[index[0] : index[0] + len(index)]
    return rows[torch.tensor(index, device=rows.device)]
