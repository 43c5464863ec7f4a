"""The frozen base model: UNet and noise schedule of a diffusers folder or a single file, told by its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from ipadapter_core.adapter.layers import layers
from ipadapter_core.errors import IPAdapterError

from .adapter import KVs, attach, place
from .config import Common
from .loss import Features

_CONTEXT = {768: "SD1.5", 2048: "SDXL"}
PRECISION = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FAULTS = (OSError, ValueError, KeyError, RuntimeError, TypeError)  # what diffusers and transformers raise for folders that are none


def load(kind: Any, settings: Common, part: str, **options: Any) -> Any:
    """A part (unet, vae, scheduler, ...) of the base model through `kind`'s own loader; nothing is downloaded.

    Raises IPAdapterError where it cannot be loaded.
    """
    path = Path(settings.base)
    try:
        if path.is_dir():
            return kind.from_pretrained(path, subfolder=part, local_files_only=True, **options)
        if hasattr(kind, "from_single_file"):
            return kind.from_single_file(str(path), config=settings.base_config, subfolder=part, local_files_only=True, **options)
        return kind.from_pretrained(settings.base_config, subfolder=part, local_files_only=True, **options)
    except FAULTS as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise IPAdapterError(f"The {part} of {settings.base} cannot be loaded ({reason}): check that it is complete.") from error


def configured_layout(settings: Common) -> str:
    """ "SD1.5" or "SDXL", by the UNet's configuration alone."""
    told = Path(settings.base_config or settings.base) / "unet" / "config.json"
    try:
        context = json.loads(told.read_text(encoding="utf-8"))["cross_attention_dim"]
        return _CONTEXT[context]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IPAdapterError(f"{told} cannot be read or is neither SD1.5's nor SDXL's: check --base.") from error


def layout_of(unet: UNet2DConditionModel, name: str) -> str:
    """ "SD1.5" or "SDXL". Raises IPAdapterError for a UNet whose cross-attentions are others."""
    context: Any = unet.config["cross_attention_dim"]
    count = sum(key.endswith("attn2.processor") for key in unet.attn_processors)
    base = _CONTEXT.get(context, "") if isinstance(context, int) else ""
    names = {f"{place(layer)}.processor" for layer in layers(base)} if base else set()
    if not names or names != {key for key in unet.attn_processors if key.endswith("attn2.processor")}:
        raise IPAdapterError(
            f"{name} has {count} cross-attentions of context width {context}: "
            "adapters can be trained for SD1.5 (16 of 768) and SDXL (70 of 2048)."
        )
    if unet.config["in_channels"] != unet.config["out_channels"]:
        raise IPAdapterError(f"{name} is an inpainting or editing model: train on the base model that it was made from.")
    return base


class Base:
    """UNet [frozen] with processors for an adapter on it; what `kvs` holds is added to its cross-attentions."""

    def __init__(self, settings: Common, device: torch.device, dtype: torch.dtype, checkpointing: bool = False):
        self.unet = load(UNet2DConditionModel, settings, "unet", torch_dtype=dtype).to(device).requires_grad_(False).eval()
        self.layout = layout_of(self.unet, settings.base)
        config = load(DDPMScheduler, settings, "scheduler")
        self.scheduler: Any = config if isinstance(config, DDPMScheduler) else DDPMScheduler.from_config(config.config)
        kind = self.scheduler.config["prediction_type"]
        if kind not in ("epsilon", "v_prediction"):
            raise IPAdapterError(f"{settings.base} predicts '{kind}': noise prediction and v-prediction can be trained on.")
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.kvs: KVs = attach(self.unet, self.layout)

    def predict(self, kvs: KVs, noisy: Tensor, timesteps: Tensor, features: Features) -> Tensor:
        """The UNet's prediction [b, 4, h, w] for K and V of the picture (none: the base alone).

        They stay in place until the next call, for with gradient checkpointing the backward pass computes the layers again.
        """
        self.kvs.clear()
        self.kvs.update(kvs)
        dtype = self.unet.dtype
        added = None
        if self.layout == "SDXL":
            added = {"text_embeds": features["pooled"].to(dtype), "time_ids": features["time_ids"].to(dtype)}
        return self.unet(noisy.to(dtype), timesteps, features["text"].to(dtype), added_cond_kwargs=added).sample
