"""Nodes of the first releases of ComfyUI_IPAdapter_plus that are still in shared workflows."""

from __future__ import annotations

from typing import Any

from ..ipadapter_core.pictures.noise import noise as make_noise
from . import inputs as i
from .host.apply.apply_adapter import apply_inputs
from .host.apply.apply_inputs import ApplyInputs

SCALINGS = {"original": "V only", "linear": "K+V", "channel penalty": "K+mean(V) w/ C penalty"}


class IPAdapterApply:
    DESCRIPTION = "The apply node of old workflows. Use IPAdapter Advanced in new ones."
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = (i.MODEL_OUT,)
    FUNCTION = "apply_ipadapter"
    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        stronger = "More than 0 makes a noisy picture of the reference and uses it for the negative side: bolder results. Try 0.3."
        kind = (
            "What the weight is applied to: 'original' the picture's contribution, 'linear' also how sharply it is attended to, "
            "'channel penalty' holds back narrow layers."
        )
        unfold = "One picture for each latent of the batch, instead of all pictures for all."
        return {
            "required": {
                "ipadapter": i.IPADAPTER,
                "clip_vision": i.CLIP_VISION,
                "image": i.IMAGE,
                "model": i.MODEL,
                "weight": i.weight(3),
                "noise": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": stronger}),
                "weight_type": (list(SCALINGS), {"tooltip": kind}),
                "start_at": i.START_AT,
                "end_at": i.END_AT,
                "unfold_batch": ("BOOLEAN", {"default": False, "tooltip": unfold}),
            },
            "optional": {"attn_mask": i.MASK},
        }

    def apply_ipadapter(
        self,
        ipadapter,
        model,
        weight,
        clip_vision=None,
        image=None,
        weight_type="original",
        noise=0.0,
        start_at=0.0,
        end_at=1.0,
        unfold_batch=False,
        attn_mask=None,
    ):
        inputs = ApplyInputs(
            image=image,
            image_negative=make_noise("shuffle", noise, image=image) if noise > 0 else None,
            clip_vision=clip_vision,
            weight=weight,
            embeds_scaling=SCALINGS[weight_type],
            start_at=start_at,
            end_at=end_at,
            attn_mask=attn_mask,
        )
        return apply_inputs(model, ipadapter, inputs, per_latent=unfold_batch)[:1]


NODE_CLASS_MAPPINGS = {"IPAdapterApply": IPAdapterApply}
NODE_DISPLAY_NAME_MAPPINGS = {"IPAdapterApply": "IPAdapter Apply (deprecated)"}
