"""The nodes that apply an adapter to a model."""

from __future__ import annotations

from typing import Any, ClassVar

from . import inputs as i
from .host.apply.apply_adapter import apply_inputs
from .host.apply.apply_inputs import ApplyInputs

BOOST = {"min": -5, "max": 5, "step": 0.05}


class IPAdapterAdvanced:
    DESCRIPTION = "Steers a model by a reference picture, with every setting at hand."
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("MODEL",)
    OUTPUT_TOOLTIPS: ClassVar[tuple[str, ...]] = (i.MODEL_OUT,)
    FUNCTION = "apply_ipadapter"
    per_latent = False  # one picture, weight and mask for each latent instead of all for all

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                **i.BASE,
                "image": i.IMAGE,
                "weight": i.weight(5),
                "weight_type": i.WEIGHT_TYPE,
                "combine_embeds": i.COMBINE,
                **i.WINDOW_AND_SCALING,
            },
            "optional": {**i.OPTIONAL},
        }

    def apply_ipadapter(
        self,
        model,
        ipadapter,
        start_at=0.0,
        end_at=1.0,
        weight=1.0,
        weight_style=1.0,
        weight_composition=1.0,
        expand_style=False,
        weight_type="linear",
        combine_embeds="concat",
        weight_faceidv2=None,
        image=None,
        image_style=None,
        image_composition=None,
        image_negative=None,
        clip_vision=None,
        attn_mask=None,
        insightface=None,
        embeds_scaling="V only",
        layer_weights=None,
        ipadapter_params=None,
        encode_batch_size=0,
        style_boost=None,
        composition_boost=None,
        enhance_tiles=1,
        enhance_ratio=1.0,
        weight_kolors=1.0,
    ):
        inputs = ApplyInputs(
            start_at=start_at,
            end_at=end_at,
            weight=weight,
            weight_style=weight_style,
            weight_composition=weight_composition,
            expand_style=expand_style,
            weight_type=weight_type,
            combine_embeds=combine_embeds,
            weight_faceidv2=weight_faceidv2,
            image=image,
            image_style=image_style,
            image_composition=image_composition,
            image_negative=image_negative,
            clip_vision=clip_vision,
            attn_mask=attn_mask,
            insightface=insightface,
            embeds_scaling=embeds_scaling,
            layer_weights=layer_weights,
            ipadapter_params=ipadapter_params,
            encode_batch_size=encode_batch_size,
            style_boost=style_boost,
            composition_boost=composition_boost,
            enhance_tiles=enhance_tiles,
            enhance_ratio=enhance_ratio,
            weight_kolors=weight_kolors,
        )
        return apply_inputs(model, ipadapter, inputs, per_latent=self.per_latent)


class IPAdapter:
    DESCRIPTION = "Steers a model by a reference picture, with the settings most people need."
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = (i.MODEL_OUT,)
    FUNCTION = "apply_ipadapter"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = (
            "'standard' spreads the weight evenly; 'prompt is more important' holds the picture back in the first layers; "
            "'style transfer' takes colours and look only (not on Flux and SD3.5)."
        )
        return {
            "required": {
                **i.BASE,
                "image": i.IMAGE,
                "weight": i.weight(3),
                "start_at": i.START_AT,
                "end_at": i.END_AT,
                "weight_type": (["standard", "prompt is more important", "style transfer"], {"tooltip": tooltip}),
            },
            "optional": {"attn_mask": i.MASK},
        }

    def apply_ipadapter(self, model, ipadapter, image, weight, start_at, end_at, weight_type, attn_mask=None):
        names = {"standard": "linear", "prompt is more important": "ease out"}
        kind = names[weight_type] if weight_type in names else weight_type
        inputs = ApplyInputs(image=image, weight=weight, start_at=start_at, end_at=end_at, weight_type=kind, attn_mask=attn_mask)
        return apply_inputs(model, ipadapter, inputs)


class IPAdapterBatch(IPAdapterAdvanced):
    DESCRIPTION = "One reference picture, weight and mask for each latent of the batch: for animations."
    per_latent = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                **i.BASE,
                "image": i.IMAGE_PER_LATENT,
                "weight": i.weight(5),
                "weight_type": i.WEIGHT_TYPE,
                **i.WINDOW_AND_SCALING,
                "encode_batch_size": i.ENCODE_BATCH_SIZE,
            },
            "optional": {**i.OPTIONAL},
        }


def _style_composition_inputs(combine: bool) -> dict[str, Any]:
    required = {
        **i.BASE,
        "image_style": ("IMAGE", {"tooltip": "The picture whose colours, light and texture are taken."}),
        "image_composition": ("IMAGE", {"tooltip": "The picture whose layout is taken: what stands where."}),
        "weight_style": i.weight(5, "the style picture"),
        "weight_composition": i.weight(5, "the composition picture"),
        "expand_style": (
            "BOOLEAN",
            {"default": False, "tooltip": "Lets the style act in more layers: stronger, and it may bring along some content."},
        ),
    }
    if combine:
        required["combine_embeds"] = (i.COMBINE[0], {"default": "average", **i.COMBINE[1]})
    required |= i.WINDOW_AND_SCALING
    return {
        "required": required,
        "optional": {**i.OPTIONAL},
    }


class IPAdapterStyleComposition(IPAdapterAdvanced):
    DESCRIPTION = "Takes the style of one picture and the composition of another (SDXL)."

    @classmethod
    def INPUT_TYPES(cls):
        return _style_composition_inputs(combine=True)


class IPAdapterStyleCompositionBatch(IPAdapterStyleComposition):
    DESCRIPTION = "Style of one picture and composition of another, a pair for each latent of the batch (SDXL)."
    per_latent = True

    @classmethod
    def INPUT_TYPES(cls):
        return _style_composition_inputs(combine=False)


class IPAdapterMS(IPAdapterAdvanced):
    DESCRIPTION = "Every setting of every IPAdapter node, and a weight for each layer by hand."

    @classmethod
    def INPUT_TYPES(cls):
        tooltip = (
            "A weight for each layer by hand, as layer:weight pairs with commas, such as 3:2.5, 6:1. SD1.5 has layers 0 to 15, "
            "SDXL 0 to 10, Flux 0 to 56 (XLabs' adapter 0 to 18), SD3.5 0 to 37. "
            "Layers not named are off. Empty: weight_type decides."
        )
        return {
            "required": {
                **i.BASE,
                "image": i.IMAGE,
                "weight": i.weight(5),
                "weight_faceidv2": i.weight_faceidv2(),
                "weight_type": i.WEIGHT_TYPE,
                "combine_embeds": i.COMBINE,
                **i.WINDOW_AND_SCALING,
                "layer_weights": ("STRING", {"default": "", "multiline": True, "tooltip": tooltip}),
            },
            "optional": {
                **i.OPTIONAL,
                "insightface": i.INSIGHTFACE,
            },
        }


def _enhancer_inputs(batch: bool) -> dict[str, Any]:
    required = {
        **i.BASE,
        "image": i.IMAGE_PER_LATENT if batch else i.IMAGE,
        "weight": i.weight(5),
        "weight_type": i.WEIGHT_TYPE,
    }
    if not batch:
        required["combine_embeds"] = i.COMBINE
    tiles = (
        "Cuts the picture in this many parts each way and encodes them singly, so that fine detail is seen. 2 is a good start; 1 is off."
    )
    ratio = "How much the whole picture counts against its tiles: 1 counts the whole picture fully, less favours detail."
    required |= {
        **i.WINDOW_AND_SCALING,
        "enhance_tiles": ("INT", {"default": 2, "min": 1, "max": 16, "tooltip": tiles}),
        "enhance_ratio": ("FLOAT", {"default": 0.5 if batch else 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": ratio}),
    }
    if batch:
        required["encode_batch_size"] = i.ENCODE_BATCH_SIZE
    return {
        "required": required,
        "optional": {**i.OPTIONAL},
    }


class IPAdapterClipVisionEnhancer(IPAdapterAdvanced):
    DESCRIPTION = "Encodes the reference whole and in tiles, so that small details count."

    @classmethod
    def INPUT_TYPES(cls):
        return _enhancer_inputs(batch=False)


class IPAdapterClipVisionEnhancerBatch(IPAdapterAdvanced):
    DESCRIPTION = "Encodes each latent's reference whole and in tiles, so that small details count."
    per_latent = True

    @classmethod
    def INPUT_TYPES(cls):
        return _enhancer_inputs(batch=True)


def _precise_inputs(name: str, default: float, tooltip: str) -> dict[str, Any]:
    return {
        "required": {
            **i.BASE,
            "image": i.IMAGE,
            "weight": i.weight(5),
            name: ("FLOAT", {"default": default, **BOOST, "tooltip": tooltip}),
            "combine_embeds": i.COMBINE,
            **i.WINDOW_AND_SCALING,
        },
        "optional": {**i.OPTIONAL},
    }


class IPAdapterPreciseStyleTransfer(IPAdapterAdvanced):
    DESCRIPTION = "Takes the style of the picture and works against its composition."

    @classmethod
    def INPUT_TYPES(cls):
        tooltip = "How strongly the reference's composition is kept out. Higher: purer style. 1 is a good start."
        return _precise_inputs("style_boost", 1.0, tooltip)


class IPAdapterPreciseStyleTransferBatch(IPAdapterPreciseStyleTransfer):
    DESCRIPTION = "Takes the style of each latent's picture and works against its composition."
    per_latent = True


class IPAdapterPreciseComposition(IPAdapterAdvanced):
    DESCRIPTION = "Takes the composition of the picture and works against its style."

    @classmethod
    def INPUT_TYPES(cls):
        tooltip = "How strongly the reference's style is kept out. 0 takes the composition only; try 0.5 when its colours still show."
        return _precise_inputs("composition_boost", 0.0, tooltip)


class IPAdapterPreciseCompositionBatch(IPAdapterPreciseComposition):
    DESCRIPTION = "Takes the composition of each latent's picture and works against its style."
    per_latent = True


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls
    for cls in (
        IPAdapter,
        IPAdapterAdvanced,
        IPAdapterBatch,
        IPAdapterStyleComposition,
        IPAdapterStyleCompositionBatch,
        IPAdapterMS,
        IPAdapterClipVisionEnhancer,
        IPAdapterClipVisionEnhancerBatch,
        IPAdapterPreciseStyleTransfer,
        IPAdapterPreciseStyleTransferBatch,
        IPAdapterPreciseComposition,
        IPAdapterPreciseCompositionBatch,
    )
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "IPAdapter": "IPAdapter",
    "IPAdapterAdvanced": "IPAdapter Advanced",
    "IPAdapterBatch": "IPAdapter Batch (Adv.)",
    "IPAdapterStyleComposition": "IPAdapter Style & Composition SDXL",
    "IPAdapterStyleCompositionBatch": "IPAdapter Style & Composition Batch SDXL",
    "IPAdapterMS": "IPAdapter Mad Scientist",
    "IPAdapterClipVisionEnhancer": "IPAdapter ClipVision Enhancer",
    "IPAdapterClipVisionEnhancerBatch": "IPAdapter ClipVision Enhancer Batch",
    "IPAdapterPreciseStyleTransfer": "IPAdapter Precise Style Transfer",
    "IPAdapterPreciseStyleTransferBatch": "IPAdapter Precise Style Transfer Batch",
    "IPAdapterPreciseComposition": "IPAdapter Precise Composition",
    "IPAdapterPreciseCompositionBatch": "IPAdapter Precise Composition Batch",
}
