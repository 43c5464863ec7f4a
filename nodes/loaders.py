"""Nodes that load adapters, and with the unified ones all that goes with them."""

from __future__ import annotations

from typing import Any

from ..ipadapter_core.files.published import COMMUNITY_PRESETS, FACE_PRESETS, PICTURE_PRESETS
from . import inputs as i
from .host.faces.recogniser import MODELS, PROVIDERS, load_insightface
from .host.files.find import adapter_choices, adapter_path, lacking_adapter, lacking_preset
from .host.load.adapter import load_adapter
from .host.load.pipeline import described, unified
from .host.pictures.preview import told

PIPELINE_OUT = "The adapter with the image encoder it needs: connect it to any IPAdapter node, or to another unified loader."
CHAINED = ("IPADAPTER", {"tooltip": "Another unified loader's output: what it has loaded already is not loaded again."})
LORA_STRENGTH = (
    "FLOAT",
    {
        "default": 0.6, "min": 0, "max": 1, "step": 0.01,
        "tooltip": "How strongly the LoRA that belongs to the adapter acts. 0.6 is usual; higher is closer to the face and stiffer."
    },
)
_RUNS_ON = "What the face recogniser runs on. CPU always works and is fast enough."
PROVIDER = (list(PROVIDERS), {"advanced": True, "tooltip": _RUNS_ON})
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

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A file in models/ipadapter. It must be made for the model's base: SD1.5 adapters for SD1.5, Flux ones for Flux, etc."
        return {"required": {"ipadapter_file": (adapter_choices(), {"tooltip": tooltip})}}

    @classmethod
    def VALIDATE_INPUTS(cls, ipadapter_file=None):
        return lacking_adapter(ipadapter_file) or True

    def load_ipadapter_model(self, ipadapter_file):
        return (load_adapter(adapter_path(ipadapter_file)),)


class IPAdapterModelLoaderAdvanced(IPAdapterModelLoader):
    DESCRIPTION = "Loads an adapter file and lets you say which version it is, where files of two versions look alike."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = (
            "Which version the file is. 'as the file says' goes by the published file's fingerprint, else by the name; choose another "
            "only for a renamed or converted file whose faces come out wrong."
        )
        required = super().INPUT_TYPES()["required"]
        return {"required": {**required, "version": (list(_VERSIONS), {"tooltip": tooltip})}}

    def load_ipadapter_model(self, ipadapter_file, version):
        return (load_adapter(adapter_path(ipadapter_file), _VERSIONS[version]),)


class IPAdapterUnifiedLoader:
    DESCRIPTION = "Finds and loads the adapter and the image encoder that a preset means for the connected model."
    RETURN_TYPES = ("MODEL", "IPADAPTER")
    RETURN_NAMES = ("model", "ipadapter")
    OUTPUT_TOOLTIPS = ("The model, ready for IPAdapter nodes.", PIPELINE_OUT)
    FUNCTION = "load_models"

    @classmethod
    def INPUT_TYPES(cls):
        tooltip = (
            "Which adapter. PLUS follows the picture closely, STANDARD loosely, LIGHT least; the FACE ones are for portraits; "
            "VIT-G uses the larger encoder. Flux has STANDARD (XLabs) and PLUS (InstantX), SD3.5 has PLUS."
        )
        presets = (list(PICTURE_PRESETS), {"tooltip": tooltip})
        return {"required": {"model": i.MODEL, "preset": presets}, "optional": {"ipadapter": CHAINED}}

    @classmethod
    def VALIDATE_INPUTS(cls, preset=None):
        """Before the run, and in place of ComfyUI's own check of the choice; a preset that is linked is not known yet."""
        presets = cls.INPUT_TYPES()["required"]["preset"][0]
        if preset is not None and preset not in presets:
            return f"There is no preset {preset!r} on this loader. Choose one of: {', '.join(presets)}."
        return (preset is not None and lacking_preset(preset)) or True

    def load_models(self, model, preset, lora_strength=0.0, provider="CPU", ipadapter=None):
        """The pair alone, without a `ui`: nodes of other packs call this. What was taken is told as text of the node that runs."""
        model, pipeline = unified(model, preset, lora_strength, provider)
        told(described(pipeline))
        return model, pipeline


class IPAdapterUnifiedLoaderFaceID(IPAdapterUnifiedLoader):
    DESCRIPTION = "Finds and loads a FaceID adapter with its image encoder, its LoRA and the face recogniser."
    RETURN_NAMES = ("MODEL", "ipadapter")
    OUTPUT_TOOLTIPS = ("The model with the adapter's LoRA.", PIPELINE_OUT)

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

    @classmethod
    def INPUT_TYPES(cls):
        name = "Which models, in models/insightface/models. buffalo_l for all but Kolors, which was trained with antelopev2."
        return {
            "required": {
                "provider": (list(PROVIDERS)[:3], {"tooltip": _RUNS_ON}),
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
