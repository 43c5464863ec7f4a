"""Deterministic synthetic weights, checkpoints and inputs: the same numbers on every machine and torch version.

Every tensor is uniform noise from splitmix64 over (crc32(name) << 32) + flat index, scaled by `gain / sqrt(fan_in)`.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


def noise(name, shape, scale=1.0):
    n = int(np.prod(shape)) if len(shape) else 1
    with np.errstate(over="ignore"):
        z = np.arange(n, dtype=np.uint64) + (np.uint64(zlib.crc32(name.encode())) << np.uint64(32))
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return torch.from_numpy(((u * 2 - 1) * scale).astype(np.float32)).reshape(shape)


def linear(sd, key, out_f, in_f, bias=True, gain=1.7):
    sd[key + ".weight"] = noise(key + ".weight", (out_f, in_f), gain / in_f**0.5)
    if bias:
        sd[key + ".bias"] = noise(key + ".bias", (out_f,), 0.1)


def norm(sd, key, dim):
    sd[key + ".weight"] = 1 + noise(key + ".weight", (dim,), 0.1)
    sd[key + ".bias"] = noise(key + ".bias", (dim,), 0.1)


# attention widths in key order (down, up, mid) for the tiny UNets used in the parity work
TINY = {
    "sd15": dict(width=32, ctx=768, dims=[32] * 2 + [64] * 2 + [128] * 2 + [128] * 3 + [64] * 3 + [32] * 3 + [128]),
    "sdxl": dict(width=32, ctx=2048, dims=[64] * 4 + [128] * 20 + [128] * 30 + [64] * 6 + [128] * 10),
}
FULL = {
    "sd15": dict(width=320, ctx=768, dims=[320] * 2 + [640] * 2 + [1280] * 2 + [1280] * 3 + [640] * 3 + [320] * 3 + [1280]),
    "sdxl": dict(width=320, ctx=2048, dims=[640] * 4 + [1280] * 20 + [1280] * 30 + [640] * 6 + [1280] * 10),
}


def ip_layers(arch, sizes, lora=None):
    sd = {}
    ctx = sizes[arch]["ctx"]
    for i, d in enumerate(sizes[arch]["dims"]):
        linear(sd, f"{2 * i + 1}.to_k_ip", d, ctx, bias=False)
        linear(sd, f"{2 * i + 1}.to_v_ip", d, ctx, bias=False)
    if lora:
        for i, d in enumerate(sizes[arch]["dims"]):
            for j, kv in ((2 * i, d), (2 * i + 1, ctx)):
                for p in "qkv":
                    linear(sd, f"{j}.to_{p}_lora.down", lora, d if p == "q" else kv, bias=False)
                    linear(sd, f"{j}.to_{p}_lora.up", d, lora, bias=False)
                linear(sd, f"{j}.to_out_lora.down", lora, d, bias=False)
                linear(sd, f"{j}.to_out_lora.up", d, lora, bias=False)
    return sd


def resampler(sd, prefix, dim, out, emb, heads, depth=4, queries=16, dim_head=64):
    if queries:
        sd[prefix + "latents"] = noise(prefix + "latents", (1, queries, dim), 1.0)
    linear(sd, prefix + "proj_in", dim, emb)
    linear(sd, prefix + "proj_out", out, dim)
    norm(sd, prefix + "norm_out", out)
    inner = heads * dim_head
    for i in range(depth):
        norm(sd, f"{prefix}layers.{i}.0.norm1", dim)
        norm(sd, f"{prefix}layers.{i}.0.norm2", dim)
        linear(sd, f"{prefix}layers.{i}.0.to_q", inner, dim, bias=False)
        linear(sd, f"{prefix}layers.{i}.0.to_kv", inner * 2, dim, bias=False)
        linear(sd, f"{prefix}layers.{i}.0.to_out", dim, inner, bias=False)
        norm(sd, f"{prefix}layers.{i}.1.0", dim)
        linear(sd, f"{prefix}layers.{i}.1.1", dim * 4, dim, bias=False)
        linear(sd, f"{prefix}layers.{i}.1.3", dim, dim * 4, bias=False)


def image_proj(family, ctx):
    sd = {}
    if family in ("base", "base_vit_g"):
        linear(sd, "proj", 4 * ctx, 1280 if family == "base_vit_g" else 1024)
        norm(sd, "norm", ctx)
    elif family == "plus":
        resampler(sd, "", 1280 if ctx == 2048 else 768, ctx, 1280, 20 if ctx == 2048 else 12)
    elif family == "full_face":
        linear(sd, "proj.0", 1280, 1280)
        linear(sd, "proj.2", ctx, 1280)
        norm(sd, "proj.3", ctx)
    elif family in ("faceid", "portrait"):
        tokens = 16 if family == "portrait" else 4
        linear(sd, "proj.0", 1024, 512)
        linear(sd, "proj.2", ctx * tokens, 1024)
        norm(sd, "norm", ctx)
    elif family == "faceid_plus":
        linear(sd, "proj.0", 1024, 512)
        linear(sd, "proj.2", ctx * 4, 1024)
        norm(sd, "norm", ctx)
        resampler(sd, "perceiver_resampler.", ctx, ctx, 1280, ctx // 64, queries=0)
    elif family == "kolors_faceid_plus":
        linear(sd, "proj.0", 1024, 512)
        linear(sd, "proj.2", 6 * 4096, 1024)
        norm(sd, "norm", 4096)
        resampler(sd, "perceiver_resampler.", 4096, 4096, 1024, 64, depth=1, queries=0)
    elif family == "portrait_unnorm":
        resampler(sd, "", 1280, ctx, 512, 20)
    elif family == "kolors_plus":
        resampler(sd, "", 2048, 2048, 1024, 12)
    else:
        raise KeyError(family)
    return sd


def adapter(family, arch, sizes=TINY):
    """{'image_proj': {...}, 'ip_adapter': {...}} in the published key layout, with this family's shapes."""
    ctx = sizes[arch]["ctx"]
    lora = 8 if family in ("faceid", "faceid_plus") else None
    return {"image_proj": image_proj(family, ctx), "ip_adapter": ip_layers(arch, sizes, lora)}


def weights(module):
    """(name, tensor) of all parameters and buffers with fractions: SD3's position table is a buffer, and ComfyUI leaves it unset."""
    return [(key, p) for key, p in (*module.named_parameters(), *module.named_buffers()) if p.is_floating_point()]


def fill(module, name):
    """Fill every parameter and buffer of a module with synthetic noise, in place."""
    with torch.no_grad():
        for key, p in weights(module):
            if p.dim() <= 1:
                v = noise(f"{name}.{key}", p.shape, 0.1)
                if key.endswith("weight"):
                    v = v + 1
            else:
                v = noise(f"{name}.{key}", p.shape, 1.7 / (p[0].numel() ** 0.5))
            p.copy_(v.to(p.dtype))
    return module


def save_adapter(state, path: Path):
    """Write an adapter as it is published: flat safetensors, or a nested pickle for any other suffix."""
    if path.suffix == ".safetensors":
        save_file({f"{group}.{key}": value.contiguous() for group, part in state.items() for key, value in part.items()}, path)
    else:
        torch.save(state, path)
