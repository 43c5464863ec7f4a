"""Nodes that cut a reference into tiles and apply each to its part of the picture."""

from __future__ import annotations

from typing import Any

from ..ipadapter_core.pictures.images import rgb
from ..ipadapter_core.pictures.tiles import reference_tiles
from . import inputs as i
from .host.apply.apply_adapter import apply_inputs
from .host.apply.apply_inputs import ApplyInputs, check_mask


class IPAdapterTiled:
    DESCRIPTION = "Cuts a large or long reference into tiles and lets each steer its part of the picture."
    RETURN_TYPES = ("MODEL", "IMAGE", "MASK")
    RETURN_NAMES = ("MODEL", "tiles", "masks")
    OUTPUT_TOOLTIPS = (i.MODEL_OUT, "The tiles as the encoder sees them.", "Where each tile acts.")
    FUNCTION = "apply_tiled"
    per_latent = False

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                **i.BASE,
                "image": i.IMAGE,
                "weight": i.weight(3),
                "weight_type": i.WEIGHT_TYPE,
                "combine_embeds": i.COMBINE,
                "start_at": i.START_AT,
                "end_at": i.END_AT,
                "sharpening": i.SHARPENING,
                "embeds_scaling": i.SCALING,
            },
            "optional": {**i.OPTIONAL},
        }

    def apply_tiled(
        self,
        model,
        ipadapter,
        image,
        weight,
        weight_type,
        start_at,
        end_at,
        sharpening,
        combine_embeds="concat",
        image_negative=None,
        attn_mask=None,
        clip_vision=None,
        embeds_scaling="V only",
        encode_batch_size=0,
    ):
        tiles, masks = reference_tiles(rgb(image), check_mask(attn_mask), sharpening)
        for tile, mask in zip(tiles, masks, strict=True):
            if not mask.any():
                continue
            inputs = ApplyInputs(
                image=tile,
                attn_mask=mask,
                weight=weight,
                weight_type=weight_type,
                combine_embeds=combine_embeds,
                start_at=start_at,
                end_at=end_at,
                embeds_scaling=embeds_scaling,
                image_negative=image_negative,
                clip_vision=clip_vision,
                encode_batch_size=encode_batch_size,
            )
            model, _ = apply_inputs(model, ipadapter, inputs, self.per_latent, show=False)
        return model, tiles.flatten(0, 1), masks.flatten(0, 1)


class IPAdapterTiledBatch(IPAdapterTiled):
    DESCRIPTION = "Cuts each latent's reference into tiles and lets each steer its part of the picture."
    per_latent = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                **i.BASE,
                "image": i.IMAGE_PER_LATENT,
                "weight": i.weight(3),
                "weight_type": i.WEIGHT_TYPE,
                "start_at": i.START_AT,
                "end_at": i.END_AT,
                "sharpening": i.SHARPENING,
                "embeds_scaling": i.SCALING,
                "encode_batch_size": i.ENCODE_BATCH_SIZE,
            },
            "optional": {**i.OPTIONAL},
        }


NODE_CLASS_MAPPINGS = {"IPAdapterTiled": IPAdapterTiled, "IPAdapterTiledBatch": IPAdapterTiledBatch}
NODE_DISPLAY_NAME_MAPPINGS = {"IPAdapterTiled": "IPAdapter Tiled", "IPAdapterTiledBatch": "IPAdapter Tiled Batch"}
