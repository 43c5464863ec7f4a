"""One node that loads all that an image prompt needs."""

from __future__ import annotations

from typing import Any

from . import inputs as i
from .host.files.find import adapter_names, lacking_adapter, short_labels
from .host.load.auto_loader import AUTO, load_fitting
from .host.pictures.preview import told
from .loaders import LORA_STRENGTH, PIPELINE_OUT, PROVIDER


class ImagePromptLoader:
    DESCRIPTION = "Loads an adapter that fits the connected model, with its image encoder and whatever else it needs, and says which."
    RETURN_TYPES = ("MODEL", "IPADAPTER")
    RETURN_NAMES = ("model", "ipadapter")
    OUTPUT_TOOLTIPS = ("The model, with the adapter's LoRA where it has one.", PIPELINE_OUT)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        file = (
            "Which file of models/ipadapter, with what it is. 'auto' takes the best that fits the model: plus before standard, "
            "pictures before faces, and what has its image encoder here."
        )
        options = {"tooltip": file, "labels": short_labels()}  # web/labels.js shows them; what is saved is the file's name
        return {
            "required": {
                "model": i.MODEL,
                "adapter": ([AUTO, *adapter_names()], options),
                "lora_strength": LORA_STRENGTH,
                "provider": PROVIDER,
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, adapter=None):
        return lacking_adapter(None if adapter == AUTO else adapter) or True

    @classmethod
    def IS_CHANGED(cls, adapter, **kwargs):
        return repr(short_labels()) if adapter == AUTO else adapter

    def load(self, model, adapter, lora_strength=0.6, provider="CPU"):
        model, pipeline, report = load_fitting(model, adapter, lora_strength, provider)
        return {"ui": told(report), "result": (model, pipeline)}


NODE_CLASS_MAPPINGS = {"ImagePromptLoader": ImagePromptLoader}

NODE_DISPLAY_NAME_MAPPINGS = {"ImagePromptLoader": "Image Prompt Loader"}
