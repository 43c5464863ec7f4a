"""The FaceID nodes: identity from a face recogniser, look from the encoder."""

from __future__ import annotations

from typing import Any

from . import inputs as i
from .apply import IPAdapterAdvanced

FACE_IMAGE_OUT = "The face as the encoder sees it: look here when the likeness is off."


def _inputs(kolors: bool = False) -> dict[str, Any]:
    required = {
        "model": i.MODEL,
        "ipadapter": i.IPADAPTER,
        "image": i.IMAGE,
        "weight": i.weight(3, "the face"),
        "weight_faceidv2": i.weight_faceidv2(),
    }
    if kolors:
        tooltip = "How strongly the face's tokens pass through Kolors' text projection. 1 is as trained."
        required["weight_kolors"] = ("FLOAT", {"default": 1.0, "min": -1, "max": 5.0, "step": 0.05, "tooltip": tooltip})
    required |= {
        "weight_type": i.WEIGHT_TYPE,
        "combine_embeds": i.COMBINE,
        "start_at": i.START_AT,
        "end_at": i.END_AT,
        "embeds_scaling": i.SCALING,
    }
    return {
        "required": required,
        "optional": {
            "image_negative": i.IMAGE_NEGATIVE,
            "attn_mask": i.MASK,
            "clip_vision": i.CLIP_VISION,
            "insightface": i.INSIGHTFACE,
        },
    }


class IPAdapterFaceID(IPAdapterAdvanced):
    DESCRIPTION = "Steers a model by the identity of a face."
    RETURN_TYPES = ("MODEL", "IMAGE")
    RETURN_NAMES = ("MODEL", "face_image")
    OUTPUT_TOOLTIPS = (i.MODEL_OUT, FACE_IMAGE_OUT)
    CATEGORY = "ipadapter/faceid"

    @classmethod
    def INPUT_TYPES(cls):
        return _inputs()


class IPAdapterFaceIDKolors(IPAdapterFaceID):
    DESCRIPTION = "Steers a Kolors model by the identity of a face."

    @classmethod
    def INPUT_TYPES(cls):
        return _inputs(kolors=True)


class IPAAdapterFaceIDBatch(IPAdapterFaceID):
    DESCRIPTION = "Steers each latent of the batch by the identity of its own face."
    per_latent = True


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (IPAdapterFaceID, IPAdapterFaceIDKolors, IPAAdapterFaceIDBatch)}

NODE_DISPLAY_NAME_MAPPINGS = {
    "IPAdapterFaceID": "IPAdapter FaceID",
    "IPAdapterFaceIDKolors": "IPAdapter FaceID Kolors",
    "IPAAdapterFaceIDBatch": "IPAdapter FaceID Batch",
}
