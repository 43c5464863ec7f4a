"""Test-only node pack: lets ComfyUI's own loaders take narrow SD 1.5, SDXL, Flux and SD3.5 checkpoints and short image encoders.

A narrow model has the blocks, key names and text width of the published one, and sees a large latent at a lower resolution, so that
workflow files run unmodified within seconds.
"""

import json
import logging
import os
import tempfile

import comfy.clip_vision
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.taesd.taesd
import torch
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders.flux import FluxClipModel, FluxTokenizer
from comfy.text_encoders.sd3_clip import SD3ClipModel, SD3Tokenizer

from . import world
from .stand_ins import NODE_CLASS_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS"]

WIDTH = 32  # channels of the UNet's first block; 320 in the published models
LATENT = 16  # the largest side of the latent that a narrow UNet is run on
DECODED = 16  # the largest side of the latent that a TAESD decodes
ANSWER = 0.1  # how much of a narrow UNet's random answer counts
FLUX = {"hidden_size": 64, "num_heads": 4, "axes_dim": [4, 6, 6], "context_in_dim": 64}
SD35_DEPTH = 2  # heads, each 64 wide
SHORT_TEXT = {"num_hidden_layers": 3, "intermediate_size": 512}
SHORT_T5 = {"num_layers": 1, "d_model": FLUX["context_in_dim"], "d_kv": 16, "num_heads": 4, "d_ff": 64}
ENCODERS = {  # hidden width -> what the tensors' shapes do not tell
    128: {"num_attention_heads": 4, "hidden_act": "quick_gelu"},
    1024: {"num_attention_heads": 16, "hidden_act": "quick_gelu"},
    1152: {
        "model_type": "siglip_vision_model", "num_attention_heads": 16, "hidden_act": "gelu_pytorch_tanh",
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    },
    1280: {"num_attention_heads": 16, "hidden_act": "gelu"},
    1664: {"num_attention_heads": 16, "hidden_act": "gelu"},
}  # fmt: skip

_decode = comfy.taesd.taesd.TAESD.decode
_load_clip_vision = comfy.clip_vision.load_clipvision_from_sd


def short_text_options(model_options: dict) -> dict:
    return {**model_options, "clip_l_model_config": SHORT_TEXT, "clip_g_model_config": SHORT_TEXT, "t5xxl_model_config": SHORT_T5}


class NarrowSD15Clip(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options=short_text_options(model_options or {}))


class NarrowSDXLClip(comfy.sdxl_clip.SDXLClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options=short_text_options(model_options or {}))


class NarrowFluxClip(FluxClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options=short_text_options(model_options or {}))


class NarrowSD35Clip(SD3ClipModel):
    """CLIP-L alone; ComfyUI puts zeros where the others would be."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        options = short_text_options(model_options or {})
        super().__init__(clip_g=False, t5=False, device=device, dtype=dtype, model_options=options)


def shrunk(x: torch.Tensor, side: int) -> torch.Tensor:
    """x [b, c, h, w] averaged down by a whole factor until neither side exceeds `side`."""
    factor = -(-max(x.shape[-2:]) // side)
    return torch.nn.functional.interpolate(x, [max(1, size // factor) for size in x.shape[-2:]], mode="area")


def tame(unet: torch.nn.Module) -> None:
    """Let a random `unet` see a latent [b, 4, h, w] at most LATENT large, and add little of its answer to the noise it was given.

    A model that took its whole input for noise would sample grey; the random part on top gives a picture that is not all black and white.
    """
    forward = unet.forward

    def tamed(x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return x + ANSWER * torch.nn.functional.interpolate(forward(shrunk(x, LATENT), *args, **kwargs), x.shape[-2:])

    unet.forward = tamed


def quick_decode(self, x: torch.Tensor) -> torch.Tensor:
    """TAESD's decode on a latent at most DECODED large, its picture scaled up."""
    return torch.nn.functional.interpolate(_decode(self, shrunk(x, DECODED)), [8 * size for size in x.shape[-2:]])


class NarrowSD15(comfy.supported_models.SD15):
    unet_config = {**comfy.supported_models.SD15.unet_config, "model_channels": WIDTH}  # noqa: RUF012 (the host's interface)
    unet_extra_config = {"num_heads": 2, "num_head_channels": -1}  # noqa: RUF012

    def get_model(self, state_dict, prefix="", device=None):
        model = super().get_model(state_dict, prefix, device)
        tame(model.diffusion_model)
        return model

    def clip_target(self, state_dict=None):
        return ClipTarget(comfy.sd1_clip.SD1Tokenizer, NarrowSD15Clip)


class NarrowSDXL(comfy.supported_models.SDXL):
    unet_config = {**comfy.supported_models.SDXL.unet_config, "model_channels": WIDTH}  # noqa: RUF012

    def get_model(self, state_dict, prefix="", device=None):
        model = super().get_model(state_dict, prefix, device)
        if f"{prefix}encoder_hid_proj.weight" in state_dict:  # Kolors' text projection, as Kolors loaders keep it
            model.diffusion_model.encoder_hid_proj = torch.nn.Linear(4096, 2048, dtype=model.get_dtype(), device=device)
        tame(model.diffusion_model)
        return model

    def clip_target(self, state_dict=None):
        return ClipTarget(comfy.sdxl_clip.SDXLTokenizer, NarrowSDXLClip)


class NarrowFlux(comfy.supported_models.Flux):
    """Nothing has to tame it: what a flow model takes for noise is as large as the noise."""

    unet_config = {**comfy.supported_models.Flux.unet_config, "hidden_size": FLUX["hidden_size"]}  # noqa: RUF012
    unet_extra_config = {key: FLUX[key] for key in ("num_heads", "axes_dim")}  # noqa: RUF012 (ComfyUI has them fixed)

    def clip_target(self, state_dict=None):
        return ClipTarget(FluxTokenizer, NarrowFluxClip)


class NarrowSD35(comfy.supported_models.SD3):
    unet_config = {**comfy.supported_models.SD3.unet_config, "depth": SD35_DEPTH}  # noqa: RUF012
    unet_extra_config = {"num_blocks": 38}  # noqa: RUF012 (ComfyUI takes as many as there are heads)

    def clip_target(self, state_dict=None):
        return ClipTarget(SD3Tokenizer, NarrowSD35Clip)


def encoder_config(sd: dict) -> dict:
    """The encoder's configuration, read off the shapes of its state dict in transformers' naming."""
    width, channels, patch, _ = sd["vision_model.embeddings.patch_embedding.weight"].shape
    positions = sd["vision_model.embeddings.position_embedding.weight"].shape[0]
    layers = {key.split(".")[3] for key in sd if key.startswith("vision_model.encoder.layers.")}
    projection = sd.get("visual_projection.weight")
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "image_size": {729: 384}.get(positions, round((positions - 1) ** 0.5) * patch),  # SigLIP has no class token, and 6 pixels over
        "intermediate_size": sd["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_channels": channels,
        "num_hidden_layers": len(layers),
        "patch_size": patch,
        **({} if projection is None else {"projection_dim": projection.shape[0]}),
        **ENCODERS[width],
    }


def make_encoder(config: dict) -> comfy.clip_vision.ClipVisionModel:
    """An encoder of this configuration, its weights not yet set."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.json")
        with open(path, "w") as file:
            json.dump(config, file)
        return comfy.clip_vision.ClipVisionModel(path)


def load_clip_vision(sd: dict, prefix: str = "", convert_keys: bool = False):
    """ComfyUI's own loader where it knows the file, else an encoder of the file's own depth."""
    deep = any(f"{prefix}vision_model.encoder.layers.{layer}.layer_norm1.weight" in sd for layer in (22, 30, 47))
    if convert_keys or deep or "vision_model.encoder.layers.0.layer_norm1.weight" not in sd:
        return _load_clip_vision(sd, prefix, convert_keys)
    encoder = make_encoder(encoder_config(sd))
    encoder.load_sd(sd)
    return encoder


comfy.supported_models.models[:0] = [NarrowSD15, NarrowSDXL, NarrowFlux, NarrowSD35, world.WorldSD15]
comfy.taesd.taesd.TAESD.decode = quick_decode
comfy.clip_vision.load_clipvision_from_sd = load_clip_vision
logging.getLogger(__name__).info("narrow test models can be loaded")
