"""Adapters of every family with few and narrow layers, whole files of a megabyte or two, and the models that they fit."""

import io
from functools import cache
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from support import lab, synth

WIDTH = 8  # of every layer's K and V
HIDDEN, PROJECTED = 64, 16  # the narrow encoder's widths
TINY: dict[str, Any] = synth.TINY
SIZES: dict[str, Any] = {arch: dict(ctx=TINY[arch]["ctx"], dims=[WIDTH] * len(TINY[arch]["dims"])) for arch in ("sd15", "sdxl")}
FAMILIES = {  # family: (arch, dtype, how often among the files: large ones are rare)
    "standard": ("sd15", torch.float16, 32),
    "plus": ("sd15", torch.float16, 24),
    "full-face": ("sd15", torch.float16, 14),
    "faceid": ("sd15", torch.float16, 8),
    "faceid-plus": ("sd15", torch.float16, 5),
    "portrait": ("sd15", torch.float16, 10),
    "standard-sdxl": ("sdxl", torch.float16, 3),
    "portrait-unnorm": ("sdxl", torch.float16, 2),
    "kolors-plus": ("sdxl", torch.float8_e4m3fn, 1),
    "kolors-faceid-plus": ("sdxl", torch.float8_e4m3fn, 1),
}

Flat = dict[str, Tensor]


@cache
def adapter(family: str) -> Flat:
    """The tensors of a family's file under their flat names. They are shared: do not write to them."""
    arch, dtype, _ = FAMILIES[family]
    proj = _projection(family, SIZES[arch]["ctx"])
    layers = synth.ip_layers(arch, SIZES, lora=1 if family in ("faceid", "faceid-plus") else None)
    flat = {f"image_proj.{key}": value for key, value in proj.items()} | {f"ip_adapter.{key}": value for key, value in layers.items()}
    return {key: value.to(dtype) for key, value in flat.items()}


def _projection(family: str, ctx: int) -> Flat:
    sd: Flat = {}
    if family.startswith("standard"):
        _linear(sd, "proj", 2 * ctx, PROJECTED)
        synth.norm(sd, "norm", ctx)
    elif family == "plus":
        resampler(sd, "", 64, ctx, HIDDEN, queries=2)
    elif family == "full-face":
        _linear(sd, "proj.0", 32, HIDDEN)
        _linear(sd, "proj.2", ctx, 32)
        synth.norm(sd, "proj.3", ctx)
    elif family == "portrait-unnorm":
        resampler(sd, "", 64, ctx, 512, queries=2)
    elif family == "kolors-plus":
        resampler(sd, "", 2048, 2048, 1024, queries=2, inner=768)
    else:
        width = 4096 if family == "kolors-faceid-plus" else ctx
        _linear(sd, "proj.0", 8, 512)
        _linear(sd, "proj.2", (16 if family == "portrait" else 4) * width, 8)
        synth.norm(sd, "norm", width)
        if family == "faceid-plus":
            resampler(sd, "perceiver_resampler.", ctx, ctx, HIDDEN)
        elif family == "kolors-faceid-plus":
            resampler(sd, "perceiver_resampler.", 4096, 4096, 1024)
    return sd


def _linear(sd: Flat, key: str, rows: int, columns: int, bias: bool = True) -> None:
    """As synth.linear; rows of large ones are all the same, for noise takes a second for every ten million numbers."""
    large = rows * columns > 1 << 20
    synth.linear(sd, key, 1 if large else rows, columns, bias)
    if large:
        for part, value in [(part, sd[f"{key}.{part}"]) for part in ("weight", "bias") if f"{key}.{part}" in sd]:
            sd[f"{key}.{part}"] = value.expand(rows, *value.shape[1:]).clone()


def resampler(sd: Flat, prefix: str, dim: int, out: int, features: int, queries: int = 0, inner: int = 64) -> None:
    """One layer deep, with a narrow feed forward."""
    if queries:
        sd[prefix + "latents"] = synth.noise(prefix + "latents", (1, queries, dim))
    _linear(sd, prefix + "proj_in", dim, features)
    _linear(sd, prefix + "proj_out", out, dim)
    synth.norm(sd, prefix + "norm_out", out)
    for norm in ("0.norm1", "0.norm2", "1.0"):
        synth.norm(sd, f"{prefix}layers.0.{norm}", dim)
    for key, rows, columns in (
        ("0.to_q", inner, dim),
        ("0.to_kv", 2 * inner, dim),
        ("0.to_out", dim, inner),
        ("1.1", 8, dim),
        ("1.3", dim, 8),
    ):
        _linear(sd, f"{prefix}layers.0.{key}", rows, columns, bias=False)


def written(tensors: Flat, container: str) -> bytes:
    """A file of flat tensors: "safetensors", "zip" (torch.save) or "legacy" (torch.save's format before zip)."""
    if container == "safetensors":
        return save({key: value.contiguous() for key, value in tensors.items()})
    nested: dict[str, Flat] = {}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        nested.setdefault(part, {})[name] = value
    return torch_file(nested, container == "zip")


def torch_file(content: object, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@cache
def content(family: str, container: str) -> bytes:
    """The undamaged file of a family."""
    return written(adapter(family), container)


class Models:
    """UNets, encoders and faces that the narrow adapters are applied with, through the pack's nodes. Nothing is sampled."""

    def __init__(self, pack: dict[str, type]):
        from ipadapter_pack.ipadapter_core.pictures.face_embeds import FaceEmbeds

        self.pack = pack
        self.unets = {arch: _narrowed(lab.unet(arch, seed="")) for arch in ("sd15", "sdxl")}
        to_text: Flat = {}
        _linear(to_text, "proj", 2048, 4096)
        projection = self.unets["sdxl"].model.diffusion_model.encoder_hid_proj = torch.nn.Linear(4096, 2048, device="meta")
        projection.load_state_dict({key.removeprefix("proj."): value for key, value in to_text.items()}, assign=True)
        self.encoder = lab.clip_vision(hidden=HIDDEN, proj=PROJECTED, heads=4, size=56)
        self.encoder_kolors = lab.clip_vision(hidden=1024, proj=768, heads=16, size=56)
        self.image = lab.images(1)
        self.faces = FaceEmbeds(synth.noise("face", (1, 512), 3.0), lab.images(1, 256, 256))

    def load(self, file: str):
        return lab.call(self.pack["IPAdapterModelLoader"], ipadapter_file=file)[0]

    def apply(self, adapter, family: str):
        """The patched model of an adapter that was made as one of `family`."""
        given = dict(
            model=self.unets[FAMILIES[family][0]],
            ipadapter=adapter,
            clip_vision=self.encoder_kolors if family.startswith("kolors") else self.encoder,
            weight=0.8,
        )
        if adapter.info.face:
            return lab.call(self.pack["IPAdapterApplyFaceEmbeds"], face_embeds=self.faces, **given)[0]
        return lab.call(self.pack["IPAdapterAdvanced"], image=self.image, weight_type="linear", **given)[0]


def _narrowed(unet):
    """The UNet with cross-attentions that say they are WIDTH wide, as far as an apply node looks."""
    for module in unet.model.diffusion_model.modules():
        if hasattr(module, "attn2"):
            module.attn2.heads, module.attn2.dim_head = 2, WIDTH // 2
    return unet


def applications(model) -> list[Any]:
    """What the pack has put on a patched model."""
    patches = model.model_options.get("transformer_options", {}).get("patches_replace", {}).get("attn2", {}).values()
    return list(dict.fromkeys(application for patch in patches for application in patch.applications))


def kv_rows(model) -> list[Tensor]:
    """K and V [r, s] of every application on a patched model."""
    return [application.kv.rows for application in applications(model)]
