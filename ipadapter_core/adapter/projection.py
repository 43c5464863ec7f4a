"""Image features -> tokens of the UNet's context width, one class for each kind of published `image_proj`.

Parameter names are the checkpoints'; every dimension is read from the shapes. `operations` gives the layer classes
(torch.nn, or ComfyUI's casting ones).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

HEAD = 64  # dim_head of every published Resampler
AT_ONCE = 1 << 14  # rows of the one weight that is too large to be cast as a whole


class LinearProjection(nn.Module):
    """[b, e] -> [b, t, d]: Linear(e, t d), LayerNorm(d) (ImageProjModel of tencent-ailab/IP-Adapter)."""

    def __init__(self, sd: Mapping[str, Tensor], operations: Any = nn):
        super().__init__()
        out, features = sd["proj.weight"].shape
        self.dim = sd["norm.weight"].shape[0]
        self.proj = operations.Linear(features, out)
        self.norm = operations.LayerNorm(self.dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(rearrange(self.proj(features), "... (t d) -> ... t d", d=self.dim))


class MLPProjection(nn.Module):
    """[b, n, e] -> [b, n, d], every encoder token by itself (full-face; MLPProjModel)."""

    def __init__(self, sd: Mapping[str, Tensor], operations: Any = nn):
        super().__init__()
        hidden, features = sd["proj.0.weight"].shape
        dim = sd["proj.2.weight"].shape[0]
        self.proj = nn.Sequential(
            operations.Linear(features, hidden), nn.GELU(), operations.Linear(hidden, dim), operations.LayerNorm(dim)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.proj(features)


class PerceiverAttention(nn.Module):
    """Latents [b, t, w] attend to features and latents side by side (Flamingo, arXiv 2204.14198)."""

    def __init__(self, width: int, inner: int, operations: Any):
        super().__init__()
        self.norm1 = operations.LayerNorm(width)
        self.norm2 = operations.LayerNorm(width)
        self.to_q = operations.Linear(width, inner, bias=False)
        self.to_kv = operations.Linear(width, inner * 2, bias=False)
        self.to_out = operations.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor, modulate: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        latents = self.norm2(latents)
        if modulate is not None:
            latents = modulate(latents)
        k, v = self.to_kv(torch.cat([self.norm1(x), latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (rearrange(y, "b t (h d) -> b h t d", d=HEAD) for y in (self.to_q(latents), k, v))
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)"))


def _feed_forward(width: int, hidden: int, operations: Any) -> nn.Sequential:
    return nn.Sequential(
        operations.LayerNorm(width),
        operations.Linear(width, hidden, bias=False),
        nn.GELU(),
        operations.Linear(hidden, width, bias=False),
    )


class Resampler(nn.Module):
    """[b, n, e] -> [b, t, o]: t learned latents read the features in a few perceiver layers (plus)."""

    def __init__(self, sd: Mapping[str, Tensor], operations: Any = nn):
        super().__init__()
        width, features = sd["proj_in.weight"].shape
        out = sd["proj_out.weight"].shape[0]
        if "latents" in sd:
            self.latents = nn.Parameter(torch.empty(sd["latents"].shape), requires_grad=False)
        self.proj_in = operations.Linear(features, width)
        self.proj_out = operations.Linear(width, out)
        self.norm_out = operations.LayerNorm(out)
        depth = 1 + max(int(key.split(".")[1]) for key in sd if key.startswith("layers."))
        self.layers = nn.ModuleList(
            nn.ModuleList((
                PerceiverAttention(width, sd[f"layers.{i}.0.to_q.weight"].shape[0], operations),
                _feed_forward(width, sd[f"layers.{i}.1.1.weight"].shape[0], operations),
            ))
            for i in range(depth)
        )  # fmt: skip

    def forward(self, features: Tensor, latents: Tensor | None = None) -> Tensor:
        if latents is None:
            latents = repeat(self.latents.to(features), "1 t w -> b t w", b=features.shape[0])
        x = self.proj_in(features)
        for attention, feed_forward in self.layers:  # type: ignore[misc]
            latents = latents + attention(x, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


class FaceIDProjection(nn.Module):
    """Face embeddings [b, e] -> [b, t, d] (FaceID and portrait; MLPProjModel of ip_adapter_faceid)."""

    def __init__(self, sd: Mapping[str, Tensor], operations: Any = nn):
        super().__init__()
        hidden, embedding = sd["proj.0.weight"].shape
        self.dim = sd["norm.weight"].shape[0]
        self.proj = nn.Sequential(
            operations.Linear(embedding, hidden), nn.GELU(), operations.Linear(hidden, sd["proj.2.weight"].shape[0])
        )
        self.norm = operations.LayerNorm(self.dim)

    def forward(self, faces: Tensor) -> Tensor:
        return self.norm(rearrange(self.proj(faces), "... (t d) -> ... t d", d=self.dim))


class PooledProjection(FaceIDProjection):
    """[b, e] -> [b, t, d], as of faces (InstantX Flux). The last layer's weight is cast in parts: as a whole it is 4.8 GB in fp32."""

    def forward(self, features: Tensor) -> Tensor:
        layers: list[Any] = list(self.proj)
        *first, last = layers
        for layer in first:
            features = layer(features)
        parts = zip(last.weight.split(AT_ONCE), last.bias.split(AT_ONCE), strict=True)
        tokens = torch.cat([F.linear(features, weight.to(features), bias.to(features)) for weight, bias in parts], dim=-1)
        return self.norm(rearrange(tokens, "... (t d) -> ... t d", d=self.dim))


class FaceIDPlusProjection(FaceIDProjection):
    """Face embeddings [b, 512] and CLIP features of the face [b, n, e] -> [b, t, d] (ProjPlusModel).

    The tokens of the ID are the latents of a Resampler. `shortcut` (v2): id tokens + scale * resampled; without it (v1)
    the resampled tokens alone.
    """

    def __init__(self, sd: Mapping[str, Tensor], operations: Any = nn):
        super().__init__(sd, operations)
        prefix = "perceiver_resampler."
        inner = {key.removeprefix(prefix): value for key, value in sd.items() if key.startswith(prefix)}
        self.perceiver_resampler = Resampler(inner, operations)

    def forward(self, faces: Tensor, features: Tensor, shortcut: bool = False, scale: float = 1.0) -> Tensor:
        tokens = super().forward(faces)
        resampled = self.perceiver_resampler(features, tokens)
        return tokens + scale * resampled if shortcut else resampled


class TimeResampler(Resampler):
    """[b, n, e] at a timestep -> [b, t, o]: a Resampler whose latents and layers are modulated by the timestep (InstantX SD3.5)."""

    def __init__(self, sd: Mapping[str, Tensor], operations: Any = nn):
        super().__init__(sd, operations)
        width = self.proj_in.out_features
        self.waves = sd["time_embedding.linear_1.weight"].shape[1]
        self.time_embedding = nn.ModuleDict(
            {"linear_1": operations.Linear(self.waves, width), "linear_2": operations.Linear(width, width)}
        )
        for layer in self.layers:
            layer.append(nn.Sequential(nn.SiLU(), operations.Linear(width, 4 * width)))  # type: ignore[operator]

    def time(self, timestep: Tensor) -> Tensor:
        """Timesteps [b] from 0 to 1000 -> embeddings [b, w], which the adapter's layers take too."""
        embedding = self.time_embedding["linear_1"](sinusoids(timestep, self.waves))
        return self.time_embedding["linear_2"](F.silu(embedding))

    def forward(self, features: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        """time [b or 1, w] as time() gives it."""
        latents = repeat(self.latents.to(features), "1 t w -> b t w", b=features.shape[0])
        x = self.proj_in(features) + time[:, None]
        for attention, feed_forward, modulation in self.layers:  # type: ignore[misc]
            shift, scale, shift_mlp, scale_mlp = modulation(time)[:, None].chunk(4, dim=-1)
            latents = latents + attention(x, latents, lambda y, shift=shift, scale=scale: y * (1 + scale) + shift)
            norm, *rest = feed_forward
            y = norm(latents) * (1 + scale_mlp) + shift_mlp
            for step in rest:
                y = step(y)
            latents = latents + y
        return self.norm_out(self.proj_out(latents))


def sinusoids(timestep: Tensor, width: int) -> Tensor:
    """[b] -> [b, width]: cosines, then sines of the timestep at frequencies from 1 to 1 / 10000 (Timesteps of diffusers, flipped)."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(width // 2, dtype=torch.float32, device=timestep.device) / (width // 2))
    angles = timestep.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


PROJECTIONS: dict[str, type[nn.Module]] = {
    "linear": LinearProjection,
    "mlp": MLPProjection,
    "resampler": Resampler,
    "faceid": FaceIDProjection,
    "faceid_plus": FaceIDPlusProjection,
    "pooled": PooledProjection,
    "time_resampler": TimeResampler,
}


def build_projection(kind: str, sd: Mapping[str, Tensor], operations: Any = nn) -> nn.Module:
    """The module of `kind` on the tensors of `sd` themselves: nothing is initialised and nothing copied."""
    with torch.device("meta"):
        module = PROJECTIONS[kind](sd, operations)
    module.load_state_dict(sd, assign=True)
    return module.eval().requires_grad_(False)
