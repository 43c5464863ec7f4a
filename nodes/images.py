"""Nodes that make or prepare reference pictures."""

from __future__ import annotations

from ..ipadapter_core.pictures.images import CROP_POSITIONS, INTERPOLATIONS, prepare
from ..ipadapter_core.pictures.noise import NOISE_TYPES, noise


class PrepImageForClipVision:
    DESCRIPTION = (
        "Makes a reference picture square and 224 pixels wide, as the image encoder sees it, so that you decide which part is kept. "
        "Without this node the encoder takes the square in the middle."
    )
    FUNCTION = "prep_image"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The square picture, 224 x 224. Connect it to the image input of an IPAdapter node, or preview it.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The picture to prepare. Several in a batch are prepared alike; transparency is dropped."}),
                "interpolation": (
                    list(INTERPOLATIONS),
                    {"tooltip": "How the picture is resized: LANCZOS keeps the most detail, BOX and BILINEAR are softer, NEAREST is hard."},
                ),
                "crop_position": (
                    list(CROP_POSITIONS),
                    {"tooltip": "Which side is kept when the picture is cut to a square. 'pad' keeps everything and adds black bars."},
                ),
                "sharpening": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0,
                        "max": 1,
                        "step": 0.05,
                        "tooltip": "Sharpens the small picture, more where there is little contrast. 0 is off; try 0.1 to 0.3.",
                    },
                ),
            }
        }

    def prep_image(self, image, interpolation="LANCZOS", crop_position="center", sharpening=0.0):
        return (prepare(image, interpolation, crop_position, sharpening),)


class IPAdapterNoise:
    DESCRIPTION = (
        "Makes a noise picture for the image_negative input, which lets the model add detail and contrast. "
        "The same picture and settings always give the same noise."
    )
    FUNCTION = "make_noise"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The noise picture, 224 x 224. Connect it to the image_negative input of an IPAdapter node.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "type": (
                    list(NOISE_TYPES),
                    {
                        "tooltip": "'fade' blends the picture into noise; 'dissolve' replaces some of its pixels; 'gaussian' adds grain; "
                        "'shuffle' warps and mirrors the picture and adds grain: a good start for image_negative."
                    },
                ),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0,
                        "max": 1,
                        "step": 0.05,
                        "tooltip": "How much noise there is: 0 leaves the picture, 1 is the most.",
                    },
                ),
                "blur": (
                    "INT",
                    {"default": 0, "min": 0, "max": 32, "step": 1, "tooltip": "How many pixels wide the noise is blurred. 0 is off."},
                ),
            },
            "optional": {
                "image_optional": (
                    "IMAGE",
                    {"tooltip": "The picture to put the noise on, often the reference itself. Without it the noise stands on black."},
                ),
            },
        }

    def make_noise(self, type, strength, blur, image_optional=None):
        return (noise(type, strength, blur, image_optional),)


NODE_CLASS_MAPPINGS = {
    "PrepImageForClipVision": PrepImageForClipVision,
    "IPAdapterNoise": IPAdapterNoise,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PrepImageForClipVision": "Prep Image For ClipVision",
    "IPAdapterNoise": "IPAdapter Noise",
}
