"""Minimal nodes under the ids of other packs that shared IP-Adapter workflows use, so that those workflows run without the packs."""

import torch

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "cyan": (0, 1, 1), "magenta": (1, 0, 1), "yellow": (1, 1, 0)}


class MaskFromColours:
    RETURN_TYPES = ("MASK",) * 8
    RETURN_NAMES = (*COLOURS, "black", "white")
    FUNCTION = "masks"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        threshold = ("FLOAT", {"default": 0.15, "min": 0.0, "max": 1.0, "step": 0.01})
        names = ("threshold_r", "threshold_g", "threshold_b")
        others = {"remove_isolated_pixels": ("INT", {"default": 0}), "fill_holes": ("BOOLEAN", {"default": False})}
        return {"required": {"image": ("IMAGE",), **dict.fromkeys(names, threshold), **others}}

    def masks(self, image, threshold_r, threshold_g, threshold_b, remove_isolated_pixels, fill_holes):
        low = image[..., :3] < torch.tensor([threshold_r, threshold_g, threshold_b])
        targets = [*COLOURS.values(), (0, 0, 0), (1, 1, 1)]
        return tuple((low != torch.tensor(colour, dtype=torch.bool)).all(-1).float() for colour in targets)


class CombineConditionings:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "combine"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        names = [f"conditioning_{i}" for i in range(1, 6)]
        kind = ("CONDITIONING",)
        return {"required": dict.fromkeys(names[:2], kind), "optional": dict.fromkeys(names[2:], kind)}

    def combine(self, **conditionings):
        return ([entry for conditioning in conditionings.values() for entry in conditioning or []],)


NODE_CLASS_MAPPINGS = {"MaskFromRGBCMYBW+": MaskFromColours, "ConditioningCombineMultiple+": CombineConditionings}
