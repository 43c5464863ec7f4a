"""The FaceID nodes: identity from a face recogniser, look from the encoder."""

from __future__ import annotations

from typing import Any

from . import inputs as i
from .apply import IPAdapterAdvanced
from .host.apply.apply_adapter import apply_faces
from .host.apply.apply_inputs import ApplyInputs

FACE_IMAGE_OUT = "The face as the encoder sees it: look here when the likeness is off."


def _inputs(kolors: bool = False) -> dict[str, Any]:
    required = {
        **i.BASE,
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
        **i.WINDOW_AND_SCALING,
    }
    return {
        "required": required,
        "optional": {
            **i.OPTIONAL,
            "insightface": i.INSIGHTFACE,
        },
    }


class IPAdapterFaceID(IPAdapterAdvanced):
    DESCRIPTION = "Steers a model by the identity of a face."
    RETURN_TYPES = ("MODEL", "IMAGE")
    RETURN_NAMES = ("MODEL", "face_image")
    OUTPUT_TOOLTIPS = (i.MODEL_OUT, FACE_IMAGE_OUT)

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


class IPAdapterApplyFaceEmbeds:
    DESCRIPTION = "Steers a model by faces that were read before: averaged, saved or loaded ones. Needs no face recogniser."
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = (i.MODEL_OUT,)
    FUNCTION = "apply_faces"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        faces = "The faces, from IPAdapter Face Embeds, Combine Face Embeds or Load Face Embeds. Several stand side by side."
        middle = "Lets the face act in the UNet's middle block too, as the adapter was trained. Off is as the FaceID node does it."
        required = _inputs()["required"]
        del required["model"], required["ipadapter"], required["image"]
        return {
            "required": {
                **i.BASE,
                "face_embeds": ("FACE_EMBEDS", {"tooltip": faces}),
                **required,
                "middle_block": ("BOOLEAN", {"default": True, "tooltip": middle}),
            },
            "optional": {**i.OPTIONAL},
        }

    def apply_faces(self, model, ipadapter, face_embeds, middle_block=True, **settings):
        return (apply_faces(model, ipadapter, face_embeds, ApplyInputs(**settings), middle_block),)


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls for cls in (IPAdapterFaceID, IPAdapterFaceIDKolors, IPAAdapterFaceIDBatch, IPAdapterApplyFaceEmbeds)
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "IPAdapterFaceID": "IPAdapter FaceID",
    "IPAdapterFaceIDKolors": "IPAdapter FaceID Kolors",
    "IPAAdapterFaceIDBatch": "IPAdapter FaceID Batch",
    "IPAdapterApplyFaceEmbeds": "IPAdapter Apply Face Embeds",
}
