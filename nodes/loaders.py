"""Nodes that load adapters, and with the unified ones all that goes with them."""

from __future__ import annotations

from typing import Any

from ..ipadapter_core.published import COMMUNITY_PRESETS, FACE_PRESETS, PICTURE_PRESETS
from . import inputs as i
from .host.adapter import load_adapter
from .host.files import adapter_names, adapter_path
from .host.pipeline import unified
from .host.recogniser import MODELS, PROVIDERS, load_insightface

PIPELINE_OUT = "The adapter with the image encoder it needs: connect it to any IPAdapter node, or to another unified loader."
CHAINED = ("IPADAPTER", {"tooltip": "Another unified loader's output: what it has loaded already is not loaded again."})
LORA_STRENGTH = (
    "FLOAT",
    {
        "default": 0.6, "min": 0, "max": 1, "step": 0.01,
        "tooltip": "How strongly the LoRA that belongs to the adapter acts. 0.6 is usual; higher is closer to the face and stiffer."
    },
)
PROVIDER = (list(PROVIDERS), {"tooltip": "What the face recogniser runs on. CPU always works and is fast enough."})
_VERSIONS = {
    "as the file says": "",
    "FaceID plus v1": "faceid-plus",
    "FaceID plus v2": "faceid-plus-v2",
    "FaceID portrait unnorm": "portrait-unnorm",
}


class IPAdapterModelLoader:
    DESCRIPTION = "Loads an adapter file from the models/ipadapter folder."
    RETURN_TYPES = ("IPADAPTER",)
    OUTPUT_TOOLTIPS = ("The adapter. Nodes after it need its image encoder as well.",)
    FUNCTION = "load_ipadapter_model"
    CATEGORY = "ipadapter/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A file in models/ipadapter. It must be made for the model's base: SD1.5 adapters for SD1.5, SDXL ones for SDXL."
        return {"required": {"ipadapter_file": (adapter_names(), {"tooltip": tooltip})}}

    def load_ipadapter_model(self, ipadapter_file):
        return (load_adapter(adapter_path(ipadapter_file)),)


class IPAdapterModelLoaderAdvanced:
    DESCRIPTION = "Loads an adapter file and lets you say which version it is, where files of two versions look alike."
    RETURN_TYPES = ("IPADAPTER",)
    OUTPUT_TOOLTIPS = IPAdapterModelLoader.OUTPUT_TOOLTIPS
    FUNCTION = "load_ipadapter_model"
    CATEGORY = "ipadapter/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = (
            "Which version the file is. 'as the file says' goes by the published file's fingerprint, else by the name; choose another "
            "only for a renamed or converted file whose faces come out wrong."
        )
        required = IPAdapterModelLoader.INPUT_TYPES()["required"]
        return {"required": {**required, "version": (list(_VERSIONS), {"tooltip": tooltip})}}

    def load_ipadapter_model(self, ipadapter_file, version):
        return (load_adapter(adapter_path(ipadapter_file), _VERSIONS[version]),)


class IPAdapterUnifiedLoader:
    DESCRIPTION = "Finds and loads the adapter and the image encoder that a preset means for the connected model."
    RETURN_TYPES = ("MODEL", "IPADAPTER")
    RETURN_NAMES = ("model", "ipadapter")
    OUTPUT_TOOLTIPS = ("The model, ready for IPAdapter nodes.", PIPELINE_OUT)
    FUNCTION = "load_models"
    CATEGORY = "ipadapter"

    @classmethod
    def INPUT_TYPES(cls):
        tooltip = (
            "Which adapter. PLUS follows the picture closely, STANDARD loosely, LIGHT least; the FACE ones are for portraits; "
            "VIT-G uses the larger encoder."
        )
        presets = (list(PICTURE_PRESETS), {"tooltip": tooltip})
        return {"required": {"model": i.MODEL, "preset": presets}, "optional": {"ipadapter": CHAINED}}

    def load_models(self, model, preset, lora_strength=0.0, provider="CPU", ipadapter=None):
        return unified(model, preset, lora_strength, provider)


class IPAdapterUnifiedLoaderFaceID(IPAdapterUnifiedLoader):
    DESCRIPTION = "Finds and loads a FaceID adapter with its image encoder, its LoRA and the face recogniser."
    RETURN_NAMES = ("MODEL", "ipadapter")
    OUTPUT_TOOLTIPS = ("The model with the adapter's LoRA.", PIPELINE_OUT)
    CATEGORY = "ipadapter/faceid"

    @classmethod
    def INPUT_TYPES(cls):
        tooltip = (
            "Which FaceID adapter. PLUS V2 is the usual choice: identity and look of the face. PORTRAIT needs no LoRA and takes "
            "several faces."
        )
        return {
            "required": {
                "model": i.MODEL,
                "preset": (list(FACE_PRESETS), {"tooltip": tooltip}),
                "lora_strength": LORA_STRENGTH,
                "provider": PROVIDER,
            },
            "optional": {"ipadapter": CHAINED},
        }


class IPAdapterUnifiedLoaderCommunity(IPAdapterUnifiedLoader):
    DESCRIPTION = "Finds and loads adapters made by others: composition (ostris) and Kolors."
    CATEGORY = "ipadapter/loaders"

    @classmethod
    def INPUT_TYPES(cls):
        tooltip = "Composition takes the layout of the picture and leaves style and content to the prompt. Kolors is for Kolors models."
        return {
            "required": {"model": i.MODEL, "preset": (list(COMMUNITY_PRESETS), {"tooltip": tooltip})},
            "optional": {"ipadapter": CHAINED},
        }


class IPAdapterInsightFaceLoader:
    DESCRIPTION = "Loads the face recogniser that FaceID adapters need."
    RETURN_TYPES = ("INSIGHTFACE",)
    OUTPUT_TOOLTIPS = ("The face recogniser, for the IPAdapter FaceID nodes.",)
    FUNCTION = "load_insightface"
    CATEGORY = "ipadapter/loaders"

    @classmethod
    def INPUT_TYPES(cls):
        name = "Which models, in models/insightface/models. buffalo_l for all but Kolors, which was trained with antelopev2."
        return {
            "required": {
                "provider": (list(PROVIDERS)[:3], PROVIDER[1]),
                "model_name": (list(MODELS), {"tooltip": name}),
            },
        }

    def load_insightface(self, provider, model_name):
        return (load_insightface(provider, model_name),)


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls
    for cls in (
        IPAdapterModelLoader,
        IPAdapterModelLoaderAdvanced,
        IPAdapterUnifiedLoader,
        IPAdapterUnifiedLoaderFaceID,
        IPAdapterUnifiedLoaderCommunity,
        IPAdapterInsightFaceLoader,
    )
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "IPAdapterModelLoader": "IPAdapter Model Loader",
    "IPAdapterModelLoaderAdvanced": "IPAdapter Model Loader Advanced",
    "IPAdapterUnifiedLoader": "IPAdapter Unified Loader",
    "IPAdapterUnifiedLoaderFaceID": "IPAdapter Unified Loader FaceID",
    "IPAdapterUnifiedLoaderCommunity": "IPAdapter Unified Loader Community",
    "IPAdapterInsightFaceLoader": "IPAdapter InsightFace Loader",
}
