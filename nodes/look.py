"""Nodes that show what happens: what the encoder sees, how weights are spread, what a file is."""

from __future__ import annotations

from typing import Any

import torch

from ..ipadapter_core.look.plot import Panel, Series, encoder_view, plot, seen_squares
from ..ipadapter_core.pictures.fit import fit
from ..ipadapter_core.pictures.images import rgb
from . import inputs as i
from .host.apply.apply_inputs import check_mask
from .host.apply.settings import weights_of
from .host.files.find import adapter_choices, lacking_adapter
from .host.load.inspection import report
from .host.look.panels import panels, schedulers
from .host.pictures.encoder import seen_as
from .host.pictures.preview import shown, told

PLOT_OUT = "The plot, to be saved or previewed elsewhere; the node shows it too."


class IPAdapterReferenceView:
    DESCRIPTION = "Shows what the image encoder sees of a reference: which part is cut out, the tiles, and the mask on them."
    RETURN_TYPES = ("IMAGE", "IMAGE")
    RETURN_NAMES = ("squares", "view")
    OUTPUT_TOOLTIPS = (
        "The squares as the encoder sees them. They can be connected to the image input of any IPAdapter node.",
        "The picture with the squares drawn in, and the squares beside it; the node shows it too.",
    )
    FUNCTION = "look"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        encoder = "The image encoder, for its size and colours. Without it: 224 pixels, as nearly all adapters have."
        return {
            "required": {"image": i.IMAGE_TO_FIT, "fit": i.FIT, "tiles": i.TILES, "size": i.PIXELS},
            "optional": {"mask": i.ENCODER_MASK, "clip_vision": ("CLIP_VISION", {"tooltip": encoder})},
        }

    def look(self, image, fit, tiles, size, mask=None, clip_vision=None):
        squares, views = reference_view(rgb(image), fit, tiles, size, check_mask(mask, "mask"), clip_vision)
        return {"ui": shown(views), "result": (squares, views)}


def reference_view(image, how, tiles, size, mask, clip_vision):
    """(squares [n, s, s, 3], views [b, h, w, 3]) of pictures [b, h, w, 3]."""
    size, mean = seen_as(clip_vision, size)
    fitted = fit(image, how, tiles, size, mask, mean)
    squares = seen_squares(fitted, mean)
    views = [encoder_view(one, fitted, some) for one, some in zip(image, squares.split(len(fitted.boxes)), strict=True)]
    return squares, torch.cat(views)


class IPAdapterPlotModel:
    DESCRIPTION = "Draws how strongly each adapter on a model acts: over the model's layers, over the steps, and over frames."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("plot",)
    OUTPUT_TOOLTIPS = (PLOT_OUT,)
    FUNCTION = "plot"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model behind the IPAdapter nodes, as it goes into the sampler."}),
                "steps": (
                    "INT",
                    {"default": 20, "min": 1, "max": 1000, "tooltip": "How many steps the sampling has: as on your sampler."},
                ),
                "scheduler": (
                    schedulers(),
                    {"tooltip": "The scheduler of your sampler: it decides in which step start_at and end_at are reached."},
                ),
            }
        }

    def plot(self, model, steps, scheduler):
        image = plot(panels(model, steps, scheduler))
        return {"ui": shown(image), "result": (image,)}


class IPAdapterPlotWeights:
    DESCRIPTION = "Draws weights that change from frame to frame, as a curve."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("plot",)
    OUTPUT_TOOLTIPS = (PLOT_OUT,)
    FUNCTION = "plot"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        first = "The weights, one for each frame, from an IPAdapter Weights or IPAdapter Combine Weights node."
        second = "A second curve in the same plot, such as weights_invert."
        return {
            "required": {"weights": ("FLOAT", {"forceInput": True, "tooltip": first})},
            "optional": {"weights_2": ("FLOAT", {"forceInput": True, "tooltip": second})},
        }

    def plot(self, weights, weights_2=None):
        given = {"weights": weights_of(weights)}
        if weights_2 is not None:
            given["weights_2"] = weights_of(weights_2)
        labels = [str(frame + 1) for frame in range(max(map(len, given.values())))]
        image = plot([Panel("Weight over frames", labels, [Series(name, values) for name, values in given.items()], "line")])
        return {"ui": shown(image), "result": (image,)}


class IPAdapterInspector:
    DESCRIPTION = "Says what an adapter file is, which models, image encoder and LoRA it needs, and whether they are installed."
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("What was found, line by line, for a Preview Any node; the node shows it too.",)
    FUNCTION = "inspect"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        file = "A file in models/ipadapter. Only its header is read, so large files are quick to look at too."
        return {"required": {"ipadapter_file": (adapter_choices(), {"tooltip": file})}}

    @classmethod
    def VALIDATE_INPUTS(cls, ipadapter_file=None):
        return lacking_adapter(ipadapter_file) or True

    @classmethod
    def IS_CHANGED(cls, ipadapter_file):
        return float("nan")  # an encoder may have been put in place since

    def inspect(self, ipadapter_file):
        text = report(ipadapter_file)
        return {"ui": told(text), "result": (text,)}


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (IPAdapterReferenceView, IPAdapterPlotModel, IPAdapterPlotWeights, IPAdapterInspector)}

NODE_DISPLAY_NAME_MAPPINGS = {
    "IPAdapterReferenceView": "IPAdapter Reference View",
    "IPAdapterPlotModel": "IPAdapter Plot Model",
    "IPAdapterPlotWeights": "IPAdapter Plot Weights",
    "IPAdapterInspector": "IPAdapter Inspector",
}
