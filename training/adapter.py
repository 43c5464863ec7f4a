"""The adapter that is trained: ipadapter_core's own modules, new or out of a file, and what puts it on diffusers' UNet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ipadapter_core.adapter.attention import build_layers, image_attention, sdpa
from ipadapter_core.adapter.layers import Layer, layers
from ipadapter_core.adapter.lora import lora_layers
from ipadapter_core.adapter.projection import PROJECTIONS, build_projection
from ipadapter_core.errors import IPAdapterError
from ipadapter_core.files.checkpoint import Checkpoint, read_checkpoint, read_shapes
from ipadapter_core.files.encoders import HIDDEN
from ipadapter_core.files.family import ARCFACE, Info, identify
from ipadapter_core.files.shapes import check_layout

KVs = dict[int, tuple[Tensor, Tensor]]  # key number -> K and V [b, t, c]

_FAMILIES = {"standard": ("linear", 4), "plus": ("resampler", 16), "full-face": ("mlp", 0), "faceid": ("faceid", 4),
             "faceid-plus-v2": ("faceid_plus", 4)}  # fmt: skip
_DEPTH, _FACE_HIDDEN = 4, 1024  # of the published files (h94/IP-Adapter and IP-Adapter-FaceID)
PLUS_WIDTH = {"SD1.5": 768, "SDXL": 1280}


class Adapter(nn.Module):
    """Features to K and V of every cross-attention. The names of its parameters are those of the published files."""

    def __init__(self, checkpoint: Checkpoint, info: Info):
        super().__init__()
        self.info = info
        self.image_proj = build_projection(info.projection, _own(checkpoint.image_proj))
        self.ip_adapter = build_layers(_own(checkpoint.ip_adapter))
        # the LoRA of a FaceID file: part of the frozen base while training, written again as it was
        self.lora = {f"ip_adapter.{key}": value for key, value in checkpoint.ip_adapter.items() if "_lora." in key}
        self.requires_grad_(True)

    def forward(self, features: Mapping[str, Tensor]) -> KVs:
        """features: "image" [b, e] or [b, n, e], "face" [b, 512], whichever the family takes."""
        dtype = next(self.parameters()).dtype
        image, face = (features[name].to(dtype) if name in features else None for name in ("image", "face"))
        if self.info.projection == "faceid_plus":
            tokens = self.image_proj(face, image, shortcut=self.info.family == "faceid-plus-v2")
        elif self.info.family == "portrait-unnorm":
            assert face is not None
            tokens = self.image_proj(face.unsqueeze(1))
        else:
            tokens = self.image_proj(face if self.info.face else image)
        return {int(number): (pair["to_k_ip"](tokens), pair["to_v_ip"](tokens)) for number, pair in self.ip_adapter.items()}  # type: ignore


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.to(torch.float32, copy=True) for key, value in tensors.items()}


def new_checkpoint(family: str, base: str, attentions: Mapping[int, Any], width: int, plus_width: int, seed: int) -> Checkpoint:
    """A new adapter in the published shapes of `family`: K and V are copies of the text's, the projection is random.

    attentions: key number -> diffusers' Attention; width: of the encoder's feature (ignored for faceid).
    """
    context = next(iter(attentions.values())).to_k.weight.shape[1]
    kind, tokens = _FAMILIES[family]
    inner = plus_width or PLUS_WIDTH[base]
    resampler = {"proj_in.weight": (inner, width), "proj_out.weight": (context, inner), "latents": (1, tokens, inner)}
    face = {"proj.0.weight": (_FACE_HIDDEN, ARCFACE), "proj.2.weight": (tokens * context, _FACE_HIDDEN), "norm.weight": (context,)}
    sizes: dict[str, dict[str, tuple[int, ...]]] = {
        "linear": {"proj.weight": (tokens * context, width), "norm.weight": (context,)},
        "mlp": {"proj.0.weight": (width, width), "proj.2.weight": (context, width)},
        "resampler": {**resampler, **_perceiver("", inner)},
        "faceid": face,
        "faceid_plus": {**face, "perceiver_resampler.proj_in.weight": (context, width),
                        "perceiver_resampler.proj_out.weight": (context, context), **_perceiver("perceiver_resampler.", context)},
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = PROJECTIONS[kind]({key: torch.empty(shape, device="meta") for key, shape in sizes[kind].items()})
        if kind == "resampler":
            nn.init.normal_(module.latents, std=inner**-0.5)  # type: ignore[arg-type]
    copies = {}
    for number, attention in attentions.items():
        copies[f"{number}.to_k_ip.weight"] = attention.to_k.weight.detach()
        copies[f"{number}.to_v_ip.weight"] = attention.to_v.weight.detach()
    return Checkpoint(dict(module.state_dict()), copies)


def _perceiver(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    sizes: dict[str, tuple[int, ...]] = {}
    for i in range(_DEPTH):
        sizes |= {f"{prefix}layers.{i}.0.to_q.weight": (width, width), f"{prefix}layers.{i}.1.1.weight": (4 * width, width)}
    return sizes


def shapes_of(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the file has them."""
    parts = {"image_proj": checkpoint.image_proj, "ip_adapter": checkpoint.ip_adapter}
    return {f"{part}.{key}": tuple(value.shape) for part, sd in parts.items() for key, value in sd.items()}


def read_adapter(path: str, base: str) -> tuple[Checkpoint, Info]:
    """An adapter file to go on from. Raises IPAdapterError for one that cannot be read, is no adapter, or is another base's."""
    name = Path(path).name
    info = identify(read_shapes(path), name)
    checkpoint = read_checkpoint(path)
    if info.base != base:
        raise IPAdapterError(f"{name} is an adapter for {info.base} and the base model is {base}: choose one that fits the other.")
    return checkpoint, info


def check_name(checkpoint: Checkpoint, info: Info, file: str) -> Info:
    """What the pack will take the written file for. Raises IPAdapterError where its name would make it another family."""
    shapes = shapes_of(checkpoint)
    found = identify(shapes, file)
    if not found.supported:
        raise IPAdapterError(f"This adapter cannot be trained: {found.problem}.")
    if found.family != info.family:
        told = {"faceid-plus": "faceid-plus", "faceid-plus-v2": "faceid-plusv2", "portrait-unnorm": "portrait_unnorm"}.get(info.family, "")
        raise IPAdapterError(f"{file} would be taken for {found.label}, as its shapes do not tell: use '{told}' in --name.")
    check_layout(shapes, found, file)
    return found


def check_encoder(info: Info, projected: int, hidden: int, name: str) -> None:
    """Raises IPAdapterError where an encoder with these widths does not give what the adapter takes."""
    if info.encoder is None:
        return
    width = hidden if info.encoder.feature == HIDDEN else projected
    if width != info.encoder.width:
        raise IPAdapterError(
            f"{info.label} takes {info.encoder.feature} {info.encoder.width} wide ({info.encoder.name}), and {name} gives {width}: "
            "choose the image encoder that fits the adapter."
        )


def place(layer: Layer, attention: str = "attn2") -> str:
    """diffusers' name of a layer's attention: three (input) or three (output) ComfyUI blocks are one block there."""
    if layer.name == "middle":
        block = "mid_block.attentions.0"
    elif layer.name == "input":
        block = f"down_blocks.{(layer.id - 1) // 3}.attentions.{(layer.id - 1) % 3}"
    else:
        block = f"up_blocks.{layer.id // 3}.attentions.{layer.id % 3}"
    return f"{block}.transformer_blocks.{layer.index}.{attention}"


class ImageAttention:
    """diffusers' attention processor: text attention, and image attention of the same q where there are K and V."""

    def __init__(self, number: int, kvs: KVs):
        self.number, self.kvs = number, kvs

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        q = attn.to_q(hidden_states)
        out = sdpa(split(q), split(attn.to_k(encoder_hidden_states)), split(attn.to_v(encoder_hidden_states)))
        if pair := self.kvs.get(self.number):
            k, v = (split(part.to(q.dtype)) for part in pair)
            out = out + image_attention(q, k, v)
        return attn.to_out[1](attn.to_out[0](out))


def attentions_of(unet: Any, base: str) -> dict[int, Any]:
    """Key number -> the cross-attention of diffusers' UNet that it belongs to."""
    return {layer.key: unet.get_submodule(place(layer)) for layer in layers(base)}


def attach(unet: Any, base: str) -> KVs:
    """Puts processors on every cross-attention; they add image attention of what is in the dict that is given back."""
    kvs: KVs = {}
    for number, attention in attentions_of(unet, base).items():
        attention.set_processor(ImageAttention(number, kvs))
    return kvs


@torch.no_grad()
def merge_lora(unet: Any, base: str, checkpoint: Checkpoint) -> None:
    """Adds the LoRA inside a FaceID file to the UNet's weights, as loaders of the file do."""
    for part in lora_layers(checkpoint.ip_adapter, base):
        layer = next(one for one in layers(base) if (one.name, one.id, one.index) == (part.block, part.id, part.index))
        weight = unet.get_submodule(f"{place(layer, part.attention)}.{part.linear}").weight
        weight += (part.up.float() @ part.down.float()).to(weight)
