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


def build_layers(sd: Mapping[str, Tensor], operations: Any = nn) -> nn.ModuleDict:
    """{number: {to_k_ip, to_v_ip}} on the tensors "1.to_k_ip.weight" ... of `sd` themselves; its other tensors are left out."""
    sd = {key: value for key, value in sd.items() if key.endswith((".to_k_ip.weight", ".to_v_ip.weight"))}
    numbers = sorted({int(key.split(".")[0]) for key in sd})
    with torch.device("meta"):
        layers = nn.ModuleDict(
            {
                str(number): nn.ModuleDict(
                    {
                        kind: operations.Linear(*reversed(sd[f"{number}.{kind}.weight"].shape), bias=False)
                        for kind in ("to_k_ip", "to_v_ip")
                    }
                )
                for number in numbers
            }
        )
    layers.load_state_dict(sd, assign=True)
    return layers.eval().requires_grad_(False)


def project_kv(
    to_kv: Mapping[int, tuple[nn.Module, nn.Module]], tokens: Mapping[int, Tensor], heads: Mapping[int, int], dtype: torch.dtype
) -> KV:
    """tokens {key: [r, t, d]} through each layer's (to_k_ip, to_v_ip), kept in `dtype`."""
    parts, slots, offset = [], {}, 0
    for key, (to_k, to_v) in to_kv.items():
        both = torch.stack([to_k(tokens[key]), to_v(tokens[key])], dim=1)  # [r, 2, t, c]
        both = both.unflatten(-1, (heads[key], -1)).transpose(2, 3)  # [r, 2, h, t, d]
        slots[key] = Slot(offset, heads[key], both.shape[3], both.shape[4])
        offset += 2 * slots[key].size
        parts.append(both.flatten(1).to(dtype))
    return KV(torch.cat(parts, dim=1), slots)


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
    """
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
