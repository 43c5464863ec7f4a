"""Between diffusers' folder and a single checkpoint file as ComfyUI takes it, its names those of Stable Diffusion 1.5's files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from . import autoencoder, text, unet, vision

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_OUTER = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
          "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0",
          "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2"}  # fmt: skip


def _prefixes() -> Iterator[tuple[str, str]]:
    """diffusers' and the file's names of every part of the UNet."""
    yield from _OUTER.items()
    for i in range(4):
        for j in range(2):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{3 * i + j + 1}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{3 * i + j + 1}.1"
        yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{3 * i + 3}.0.op"
        for j in range(3):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{3 * i + j}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{3 * i + j}.1"
        yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}.conv"


def _unet_name(name: str) -> str:
    """The file's name of a tensor of diffusers' UNet."""
    part, told = next((part, told) for part, told in _prefixes() if name.startswith(f"{part}."))
    rest = name.removeprefix(part)
    if "resnets" in part:
        inner = re.match(r"\.(\w+)\.", rest)
        assert inner
        rest = f".{_RESNET[inner[1]]}.{rest[inner.end() :]}"
    return f"model.diffusion_model.{told}{rest}"


def _vae_name(name: str) -> str:
    """TAESD counts the clamp in front of its decoder as layer 0."""
    side, _, number, rest = name.split(".", 3)
    return f"first_stage_model.taesd_{side}.{int(number) + (side == 'decoder')}.{rest}"


def _names(model: unet.Model, vae: Any) -> dict[str, tuple[Any, str]]:
    """The file's name of every tensor -> the module that has it and its name there."""
    names: dict[str, tuple[Any, str]] = {_unet_name(name): (model.unet, name) for name in model.unet.state_dict()}
    names |= {f"cond_stage_model.transformer.{name}": (model.text, name) for name in model.text.state_dict()}
    return names | {_vae_name(name): (vae, name) for name in vae.state_dict()}


def _dtype(key: str, value: Tensor) -> torch.dtype:
    """Half precision; 8 bits for the matrices of the text encoder and of the UNet's text keys and values, to keep the file small."""
    text_matrix = key.startswith("cond_stage_model") or key.endswith(unet.OF_TEXT)
    return unet.EIGHT_BITS if text_matrix and value.ndim == 2 else torch.float16


def save_checkpoint(path: Path, model: unet.Model, vae: Any) -> None:
    """One file as ComfyUI's Load Checkpoint takes it."""
    tensors = {key: module.state_dict()[name] for key, (module, name) in _names(model, vae).items()}
    state = {key: value.to(_dtype(key, value)).contiguous() for key, value in tensors.items()}
    # the factor between TAESD's latents and those of SD 1.5's VAE, which ComfyUI works with
    state["first_stage_model.vae_scale"] = torch.tensor(0.18215)
    state["first_stage_model.vae_shift"] = torch.tensor(0.0)
    save_file(state, path)


def load_checkpoint(path: Path, tokens: CLIPTokenizer) -> tuple[unet.Model, Any]:
    """UNet with text encoder, and autoencoder, of a file that save_checkpoint wrote; float32."""
    model, vae, kept = unet.Model(tokens), autoencoder.new(), load_file(path)
    for key, (module, name) in _names(model, vae).items():
        module.state_dict()[name].copy_(kept[key])
    return model.eval().requires_grad_(False), vae.eval().requires_grad_(False)


def save_diffusers(folder: Path, model: unet.Model, vae: Any, tokenizer: Path) -> None:
    """A base model in diffusers' folder layout, as the trainer takes it."""
    model.unet.save_pretrained(folder / "unet")
    model.text.save_pretrained(folder / "text_encoder")
    vae.save_pretrained(folder / "vae")
    unet.scheduler().save_pretrained(folder / "scheduler")
    text.tokenizer(tokenizer).save_pretrained(folder / "tokenizer")


def save_encoder(path: Path, encoder: Any) -> None:
    """An image encoder as ComfyUI's Load CLIP Vision takes it."""
    save_file({name: value.half().contiguous() for name, value in encoder.state_dict().items() if "position_ids" not in name}, path)


def load_encoder(path: Path) -> Any:
    encoder = vision.new()
    encoder.load_state_dict(load_file(path))
    return encoder.eval().requires_grad_(False)


def restore(models: Path, folder: Path) -> None:
    """`folder`/base and `folder`/encoder, as diffusers and transformers read them, from the files for ComfyUI in `models`."""
    tokens = text.tokenizer(models / "tokenizer")
    model, vae = load_checkpoint(models / "checkpoints" / "tiny-world.safetensors", tokens)
    save_diffusers(folder / "base", model, vae, models / "tokenizer")
    load_encoder(models / "clip_vision" / "tiny-world.safetensors").save_pretrained(folder / "encoder")
