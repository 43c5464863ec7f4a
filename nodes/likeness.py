"""How alike the result and the references are, as a figure."""

from __future__ import annotations

from typing import Any

from ..ipadapter_core.look.likeness import as_plot, as_text, mean
from ..ipadapter_core.pictures.images import rgb
from ..ipadapter_core.values import check_choice
from .host.look.compare import COMPARED, table
from .host.pictures.preview import shown, told


class ImagePromptLikeness:
    DESCRIPTION = "Says how alike pictures and references are, from 0 to 1, to compare weights, adapters and seeds by a figure."
    RETURN_TYPES = ("FLOAT", "STRING", "IMAGE")
    RETURN_NAMES = ("likeness", "text", "plot")
    OUTPUT_TOOLTIPS = (
        "The mean of all figures: 1 is the same, and pictures that have nothing in common are far below.",
        "A line for each picture with its figure for each reference, and the mean. The node shows it too.",
        "The same as bars; the node shows it too.",
    )
    FUNCTION = "compare"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        compare = (
            "'pictures' compares what the image encoder sees, subject and style alike; 'faces' compares the largest face of each picture, "
            "as the face recogniser tells people apart."
        )
        pipeline = "The adapter from a loader that brings the image encoder along, and for FaceID adapters the face recogniser."
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The pictures to judge, such as the results of several weights in one batch."}),
                "reference": ("IMAGE", {"tooltip": "The references to hold them against. Each picture is compared with each of them."}),
                "compare": (list(COMPARED), {"tooltip": compare}),
            },
            "optional": {
                "ipadapter": ("IPADAPTER", {"tooltip": pipeline}),
                "clip_vision": ("CLIP_VISION", {"tooltip": "The image encoder to compare with. It goes before that of ipadapter."}),
                "insightface": ("INSIGHTFACE", {"tooltip": "The face recogniser, for 'faces'. It goes before that of ipadapter."}),
            },
        }

    def compare(self, image, reference, compare, ipadapter=None, clip_vision=None, insightface=None):
        check_choice(compare, "way to compare", COMPARED)
        found = table(compare, rgb(image), rgb(reference, "reference"), ipadapter, clip_vision, insightface)
        text, plot = as_text(found), as_plot(found, f"Likeness of {compare}, picture by picture")
        return {"ui": {**shown(plot), **told(text)}, "result": (mean(found), text, plot)}


NODE_CLASS_MAPPINGS = {"ImagePromptLikeness": ImagePromptLikeness}

NODE_DISPLAY_NAME_MAPPINGS = {"ImagePromptLikeness": "Image Prompt Likeness"}
