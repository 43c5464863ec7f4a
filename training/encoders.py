"""What pictures and captions become before the UNet sees them: latents, text states, image features. All frozen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.files.encoders import PROJECTED, Encoder
from ipadapter_core.files.family import ARCFACE

from .base import FAULTS, load
from .config import Common
from .data import Sample
from .loss import Features


def load_image_encoder(settings: Common, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> CLIPVisionModelWithProjection:
    """The image encoder of --image-encoder. Raises IPAdapterError where it is missing or is none."""
    if not settings.image_encoder:
        raise IPAdapterError("--image-encoder is missing: this kind of adapter is trained on what an image encoder gives.")
    try:
        told = json.loads((Path(settings.image_encoder) / "config.json").read_text(encoding="utf-8"))
        if "vision" not in str(told.get("model_type", "")) and "vision_config" not in told:
            raise ValueError(f"it is of the kind {told.get('model_type')}")
        model: Any = CLIPVisionModelWithProjection.from_pretrained(settings.image_encoder, local_files_only=True)
    except FAULTS as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise IPAdapterError(f"{settings.image_encoder} is no CLIP image encoder in transformers' layout ({reason}).") from error
    return model.to(device, dtype).requires_grad_(False).eval()


def load_vae(settings: Common, device: Any) -> Any:
    """The VAE in fp32, which SDXL's needs. TAESD's layout is told by its config."""
    config = Path(settings.base_config or settings.base) / "vae" / "config.json"
    tiny = config.is_file() and '"AutoencoderTiny"' in config.read_text(encoding="utf-8")
    vae = load(AutoencoderTiny if tiny else AutoencoderKL, settings, "vae", torch_dtype=torch.float32)
    return vae.to(device).requires_grad_(False).eval()


class Encoders:
    """VAE, text encoders and image encoder. image: what the adapter takes from the image encoder (None: nothing, faces alone)."""

    def __init__(self, settings: Common, layout: str, image: Encoder | None, device: torch.device, dtype: torch.dtype):
        self.image, self.device, self.dtype = image, device, dtype
        self.vae = load_vae(settings, device)
        self.encoder = load_image_encoder(settings, device, dtype) if image else None
        kinds = [("", CLIPTextModel), *([("_2", CLIPTextModelWithProjection)] if layout == "SDXL" else [])]
        if Path(settings.base).is_dir():
            self.text_encoders = [load(kind, settings, f"text_encoder{suffix}") for suffix, kind in kinds]
            self.tokenizers = [load(CLIPTokenizer, settings, f"tokenizer{suffix}") for suffix, _ in kinds]
        else:
            pipeline = StableDiffusionXLPipeline if layout == "SDXL" else StableDiffusionPipeline
            parts = load(_Whole(pipeline), settings, "text_encoder")
            self.text_encoders = [getattr(parts, f"text_encoder{suffix}") for suffix, _ in kinds]
            self.tokenizers = [getattr(parts, f"tokenizer{suffix}") for suffix, _ in kinds]
        for model in self.text_encoders:
            model.to(device, dtype).requires_grad_(False).eval()

    @torch.no_grad()
    def encode(self, samples: Sequence[Sample]) -> Features:
        """latents (and deviation), text, pooled, time_ids, image and face, whichever there are; float32."""
        features = self._latents(torch.stack([sample["pixels"] for sample in samples]))
        features |= self.text([sample["text"] for sample in samples])
        features["time_ids"] = torch.stack([sample["time_ids"] for sample in samples])
        if self.image:
            features["image"] = self.picture(torch.stack([sample["clip"] for sample in samples]))
        if "face" in samples[0]:
            features["face"] = torch.stack([sample["face"] for sample in samples])
        return {name: value.to(self.device, torch.float32) for name, value in features.items()}

    @torch.no_grad()
    def none(self) -> Features:
        """What stands for no picture and no text, each [1, ...]: zeros for projected features and faces, else an encoded
        picture of zeros in normalised space, as the authors' trainer has it; the text is empty."""
        features = self.text([""]) | {"face": torch.zeros(1, ARCFACE)}
        if self.image and self.encoder is not None:
            size = self.encoder.config.image_size
            black = self.picture(torch.zeros(1, 3, size, size))
            features["image"] = torch.zeros_like(black) if self.image.feature == PROJECTED else black
        return {name: value.to(self.device, torch.float32) for name, value in features.items()}

    def _latents(self, pixels: Tensor) -> Features:
        scale = self.vae.config.scaling_factor
        encoded = self.vae.encode(pixels.to(self.device, torch.float32))
        if not hasattr(encoded, "latent_dist"):
            return {"latents": encoded.latents * scale}
        return {"latents": encoded.latent_dist.mean * scale, "deviation": encoded.latent_dist.std * scale}

    def picture(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [b, 3, s, s] -> the feature that the adapter takes: [b, e] or [b, n, e]."""
        assert self.encoder is not None and self.image is not None
        if self.image.feature == PROJECTED:
            return self.encoder(pixels.to(self.device, self.dtype)).image_embeds
        return self.encoder(pixels.to(self.device, self.dtype), output_hidden_states=True).hidden_states[-2]

    @torch.no_grad()
    def text(self, captions: list[str]) -> Features:
        """text [b, 77, d]; SDXL's: the last states but one of both encoders side by side, and pooled [b, p]."""
        states, pooled = [], None
        for tokenizer, model in zip(self.tokenizers, self.text_encoders, strict=True):
            tokens = tokenizer(captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
            found = model(tokens.input_ids.to(self.device), output_hidden_states=True)
            if len(self.text_encoders) == 1:
                return {"text": found.last_hidden_state}
            states.append(found.hidden_states[-2])
            pooled = found[0]
        assert pooled is not None
        return {"text": torch.cat(states, dim=-1), "pooled": pooled}


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents [b, 4, h, w] -> pictures [b, H, W, 3] in 0..1 on the CPU."""
    pixels = vae.decode(latents.to(vae.device, torch.float32) / vae.config.scaling_factor).sample
    return (pixels / 2 + 0.5).clamp(0, 1).movedim(1, -1).float().cpu()


class _Whole:
    """A pipeline's loader under the name that `load` calls: text encoders have no single-file loader of their own."""

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    def from_single_file(self, path: str, subfolder: str, **options: Any) -> Any:
        return self.pipeline.from_single_file(path, **options)
