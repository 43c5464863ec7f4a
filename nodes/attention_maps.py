"""Where in the picture each reference acts: recorded while sampling, shown afterwards."""

from __future__ import annotations

from typing import Any

import torch

from ..ipadapter_core.errors import IPAdapterError
from ..ipadapter_core.look.attention_maps import SCALES, VIEWS, figures, resized, scaled, shown
from ..ipadapter_core.pictures.images import rgb
from ..ipadapter_core.values import check_choice, check_whole
from .host.engine.watch import Record, watched
from .host.look.map_choice import LAYERS, SHOWN, SIDES, chosen_maps
from .host.pictures import preview


class WatchImagePrompt:
    DESCRIPTION = "Records where in the picture each reference acts while the model samples, for Image Prompt Attention to show."
    RETURN_TYPES = ("MODEL", "IMAGE_PROMPT_RECORD")
    RETURN_NAMES = ("model", "record")
    OUTPUT_TOOLTIPS = (
        "The model that records: connect it to the sampler. The picture that it makes is the same.",
        "What is recorded, for Image Prompt Attention behind the sampler.",
    )
    FUNCTION = "watch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        model = "The model with the references on it, from an IPAdapter or Image Prompt node. Nodes behind this one are recorded too."
        tokens = (
            "Also keeps a map for each token that a reference became (4 to 257 of them), for 'tokens' on Image Prompt Attention. Leave it "
            "off otherwise: it needs more memory."
        )
        return {"required": {"model": ("MODEL", {"tooltip": model}), "tokens": ("BOOLEAN", {"default": False, "tooltip": tokens})}}

    def watch(self, model, tokens=False):
        record = Record(bool(tokens))
        return watched(model, record), record


class ImagePromptAttention:
    DESCRIPTION = "Shows where in the picture each reference acted, as heat maps and as masks."
    RETURN_TYPES = ("IMAGE", "MASK", "STRING")
    RETURN_NAMES = ("image", "mask", "text")
    OUTPUT_TOOLTIPS = (
        "The maps as pictures, in the order of the text; the node shows them too.",
        "The maps as masks in the same order, white where a reference acts most. They can be the attn_mask of the next pass.",
        "A line for each map: adapter, reference, latent, and how high it is. The node shows it too.",
    )
    FUNCTION = "show"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        what = (
            "'influence' is how much the reference adds beside the text: 0.5 is as much as the text. 'attention' is its share among the "
            "references of one adapter, so a reference that is alone has 1 everywhere. 'tokens' is one map for each of its tokens."
        )
        reference = "Which reference, in the order in which they are applied, counted over all adapters. 0 shows all of them."
        layers = "Which layers the maps are the average of: all, or those on the UNet's way down, in its middle or on its way up."
        side = "Whose maps: 'positive' is the positive prompt's side and nearly always what you want; 'negative' is the other one's."
        scale = (
            "How the maps become 0 to 1. 'each map' goes from each one's lowest to its highest value and shows most; 'all maps alike' "
            "divides all by their highest value, so that references can be compared; 'as measured' changes nothing."
        )
        view = "How the image output shows the maps: over the picture, beside it, or without it."
        image = "The finished picture, from VAE Decode, to draw the maps on. Without it the maps are shown alone."
        return {
            "required": {
                "record": ("IMAGE_PROMPT_RECORD", {"tooltip": "The record of the Watch Image Prompt node whose model was sampled."}),
                "latent": ("LATENT", {"tooltip": "The sampler's output as it is: it tells which sampling is to be shown."}),
                "show": (list(SHOWN), {"tooltip": what}),
                "reference": ("INT", {"default": 0, "min": 0, "max": 999, "tooltip": reference}),
                "layers": (list(LAYERS), {"tooltip": layers}),
                "side": (list(SIDES), {"tooltip": side}),
                "scale": (list(SCALES), {"tooltip": scale}),
                "view": (list(VIEWS), {"tooltip": view}),
            },
            "optional": {"image": ("IMAGE", {"tooltip": image})},
        }

    def show(self, record, latent, show, reference, layers, side, scale, view, image=None):
        for value, name, choices in ((scale, "scale", SCALES), (view, "view", VIEWS)):
            check_choice(value, name, choices)
        check_whole(reference, "reference", 0, 999)
        if not isinstance(record, Record):
            raise IPAdapterError("The record input holds no record: connect the record output of Watch Image Prompt.")
        recording = record.find(latent.get("samples") if isinstance(latent, dict) else None)
        found = chosen_maps(recording, show, reference, layers, side)
        latents = recording.samples.shape[0]
        pictures = None if image is None else rgb(image)
        if pictures is not None and len(pictures) != latents:
            raise IPAdapterError(
                f"The image input has {len(pictures)} pictures and the latent {latents}: connect the picture that this latent became."
            )
        height, width = (8 * recording.size[0], 8 * recording.size[1]) if pictures is None else pictures.shape[1:3]
        maps = torch.stack([one.map for one in found])
        masks = scaled(resized(maps, height, width), scale)
        below = torch.zeros(len(found), height, width, 3) if pictures is None else pictures[[one.latent for one in found]].to(masks)
        images = shown(masks, below, "map alone" if pictures is None else view)
        text = figures(maps.unbind(), [one.name for one in found])
        return {"ui": {**preview.shown(images), **preview.told(text)}, "result": (images, masks, text)}


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (WatchImagePrompt, ImagePromptAttention)}

NODE_DISPLAY_NAME_MAPPINGS = {"WatchImagePrompt": "Watch Image Prompt", "ImagePromptAttention": "Image Prompt Attention"}
