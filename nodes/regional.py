"""Nodes for regions: each with its picture, prompts and mask."""

from __future__ import annotations

from typing import Any

from ..ipadapter_core.errors import IPAdapterError
from . import inputs as i
from .apply import IPAdapterAdvanced
from .host.apply.apply_inputs import REGION_KEYS, check_mask, is_params


class IPAdapterRegionalConditioning:
    DESCRIPTION = "One region: its reference picture, its prompts and the mask that bounds both."
    RETURN_TYPES = ("IPADAPTER_PARAMS", "CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("IPADAPTER_PARAMS", "POSITIVE", "NEGATIVE")
    OUTPUT_TOOLTIPS = (
        "The region, for IPAdapter Combine Params or IPAdapter from Params.",
        "The positive prompt, bound to the mask.",
        "The negative prompt, bound to the mask.",
    )
    FUNCTION = "conditioning"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prompt_weight = "How strongly this region's prompts count. 1 is usual."
        return {
            "required": {
                "image": i.IMAGE,
                "image_weight": i.weight(3.0, minimum=-1.0),
                "prompt_weight": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05, "tooltip": prompt_weight}),
                "weight_type": i.WEIGHT_TYPE,
                "start_at": i.START_AT,
                "end_at": i.END_AT,
            },
            "optional": {
                "mask": i.MASK,
                "positive": ("CONDITIONING", {"tooltip": "What should be in this region."}),
                "negative": ("CONDITIONING", {"tooltip": "What should not be in this region."}),
            },
        }

    def conditioning(self, image, image_weight, prompt_weight, weight_type, start_at, end_at, mask=None, positive=None, negative=None):
        check_mask(mask, "mask")
        params = dict(zip(REGION_KEYS, ([image], [mask], [image_weight], [weight_type], [start_at], [end_at]), strict=True))
        return params, _bound(positive, mask, prompt_weight), _bound(negative, mask, prompt_weight)


def _bound(conditioning, mask, strength):
    """The conditioning with the region's mask on every prompt; None stays None."""
    if conditioning is None or mask is None:
        return conditioning
    if not isinstance(conditioning, list):
        raise IPAdapterError(f"A prompt of the region is a {type(conditioning).__name__}. Connect a CONDITIONING output.")
    region = {"mask": mask if mask.ndim == 3 else mask.unsqueeze(0), "mask_strength": strength, "set_area_to_bounds": False}
    return [[prompt[0], {**prompt[1], **region}, *prompt[2:]] for prompt in conditioning]


class IPAdapterCombineParams:
    DESCRIPTION = "Joins up to five regions."
    RETURN_TYPES = ("IPADAPTER_PARAMS",)
    OUTPUT_TOOLTIPS = ("All regions, for IPAdapter from Params.",)
    FUNCTION = "combine"

    @classmethod
    def INPUT_TYPES(cls):
        region = ("IPADAPTER_PARAMS", {"tooltip": "A region, from IPAdapter Regional Conditioning."})
        names = [f"params_{n}" for n in range(1, 6)]
        return {"required": dict.fromkeys(names[:2], region), "optional": dict.fromkeys(names[2:], region)}

    def combine(self, params_1, params_2, params_3=None, params_4=None, params_5=None):
        given = [params for params in (params_1, params_2, params_3, params_4, params_5) if params is not None]
        if not given or not all(map(is_params, given)):
            raise IPAdapterError("An input holds no region: connect an IPAdapter Regional Conditioning node.")
        return ({key: [entry for params in given for entry in params[key]] for key in REGION_KEYS},)


class IPAdapterFromParams(IPAdapterAdvanced):
    DESCRIPTION = "Steers a model by the regions of IPAdapter Regional Conditioning, one after another."

    @classmethod
    def INPUT_TYPES(cls):
        params = "The regions, from IPAdapter Combine Params, or a single one."
        return {
            "required": {
                **i.BASE,
                "ipadapter_params": ("IPADAPTER_PARAMS", {"tooltip": params}),
                "combine_embeds": i.COMBINE,
                "embeds_scaling": i.SCALING,
            },
            "optional": {"image_negative": i.IMAGE_NEGATIVE, "clip_vision": i.CLIP_VISION},
        }


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (IPAdapterRegionalConditioning, IPAdapterCombineParams, IPAdapterFromParams)}

NODE_DISPLAY_NAME_MAPPINGS = {
    "IPAdapterRegionalConditioning": "IPAdapter Regional Conditioning",
    "IPAdapterCombineParams": "IPAdapter Combine Params",
    "IPAdapterFromParams": "IPAdapter from Params",
}
