"""Which model files and pictures a workflow asks for, so that small random ones can be made under their names."""

import re
from collections.abc import Iterable
from pathlib import Path

from support.convert import Prompt

LOADERS = {  # node -> (input, models folder)
    "CheckpointLoaderSimple": ("ckpt_name", "checkpoints"),
    "CLIPVisionLoader": ("clip_name", "clip_vision"),
    "IPAdapterInsightFaceLoader": ("model_name", "insightface/models"),
    "IPAdapterInspector": ("ipadapter_file", "ipadapter"),
    "IPAdapterModelLoader": ("ipadapter_file", "ipadapter"),
    "IPAdapterModelLoaderAdvanced": ("ipadapter_file", "ipadapter"),
    "LoraLoader": ("lora_name", "loras"),
    "LoraLoaderModelOnly": ("lora_name", "loras"),
    "VAELoader": ("vae_name", "vae"),
}
PICTURES = {"LoadImage": "image", "LoadImageMask": "image"}
SAVED = {"IPAdapterLoadEmbeds": "embeds", "IPAdapterLoadFaceEmbeds": "face_embeds"}
VIT_H, VIT_G = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors", "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors"
VIT_L_336 = "clip-vit-large-patch14-336.safetensors"
PRESETS = {  # start of a unified loader's preset -> published files for SD 1.5 and SDXL ("" where there is none), encoder
    "LIGHT": ("ip-adapter_sd15_light_v11.bin", "", VIT_H),
    "STANDARD": ("ip-adapter_sd15.safetensors", "ip-adapter_sdxl_vit-h.safetensors", VIT_H),
    "VIT-G": ("ip-adapter_sd15_vit-G.safetensors", "ip-adapter_sdxl.safetensors", VIT_G),
    "PLUS FACE": ("ip-adapter-plus-face_sd15.safetensors", "ip-adapter-plus-face_sdxl_vit-h.safetensors", VIT_H),
    "PLUS (KOLORS)": ("", "Kolors-IP-Adapter-Plus.bin", VIT_L_336),
    "PLUS": ("ip-adapter-plus_sd15.safetensors", "ip-adapter-plus_sdxl_vit-h.safetensors", VIT_H),
    "FULL FACE": ("ip-adapter-full-face_sd15.safetensors", "", VIT_H),
    "FACEID PLUS V2": ("ip-adapter-faceid-plusv2_sd15.bin", "ip-adapter-faceid-plusv2_sdxl.bin", VIT_H),
    "FACEID PLUS": ("ip-adapter-faceid-plus_sd15.bin", "", VIT_H),
    "FACEID PORTRAIT UNNORM": ("", "ip-adapter-faceid-portrait_sdxl_unnorm.bin", ""),
    "FACEID PORTRAIT": ("ip-adapter-faceid-portrait-v11_sd15.bin", "ip-adapter-faceid-portrait_sdxl.bin", ""),
    "FACEID": ("ip-adapter-faceid_sd15.bin", "ip-adapter-faceid_sdxl.bin", ""),
    "Composition": ("ip_plus_composition_sd15.safetensors", "ip_plus_composition_sdxl.safetensors", VIT_H),
    "Kolors": ("", "Kolors-IP-Adapter-Plus.bin", VIT_L_336),
}
WITH_LORA = ("FACEID", "FACEID PLUS", "FACEID PLUS V2")
KOLORS_FACE = ("ipadapter/Kolors-IP-Adapter-FaceID-Plus.bin", f"clip_vision/{VIT_L_336}", "insightface/models/antelopev2")


def is_sdxl(name: str) -> bool:
    """Whether a file's name means SDXL (or Kolors, which has its shape) rather than SD 1.5."""
    return re.search(r"xl|proteus|kolors|plus_general|pony|illustrious", name, re.IGNORECASE) is not None


def arch_of(name: str) -> str:
    """ "flux", "sd35", "sdxl" or "sd15", by a file's name."""
    found = re.search(r"flux|sd3\.5", name, re.IGNORECASE)
    return found[0].lower().replace(".", "") if found else "sdxl" if is_sdxl(name) else "sd15"


def models(prompt: Prompt) -> list[str]:
    """The files under models/ that the prompt names, such as "ipadapter/ip-adapter_sd15.safetensors", presets included."""
    found = []
    for node in prompt.values():
        if node["class_type"] in LOADERS:
            name, folder = LOADERS[node["class_type"]]
            found.append(f"{folder}/{node['inputs'][name]}")
    checkpoints = [name for name in found if name.startswith("checkpoints/")]
    sdxl = any(is_sdxl(name) for name in checkpoints)
    for node in prompt.values():
        face = node["class_type"] == "IPAdapterUnifiedLoaderFaceID"
        if face and any("kolors" in name.lower() for name in checkpoints):
            found.extend(KOLORS_FACE)
        elif node["class_type"] == "ImagePromptLoader":
            found.extend(_loaded(node["inputs"]["adapter"], sdxl))
        elif node["class_type"].startswith("IPAdapterUnifiedLoader"):
            found.extend(_preset_files(node["inputs"]["preset"], sdxl))
            found.extend(["insightface/models/buffalo_l"] if face else [])
    return sorted(set(found))


def _loaded(adapter: str, sdxl: bool) -> Iterable[str]:
    """What Image Prompt Loader takes: for "auto" what the preset PLUS means."""
    files = list(_preset_files("PLUS (", sdxl))
    return files if adapter == "auto" else [f"ipadapter/{adapter}", *files[1:]]


def _preset_files(preset: str, sdxl: bool) -> Iterable[str]:
    start = next(start for start in PRESETS if preset.startswith(start))
    adapter, encoder = PRESETS[start][sdxl], PRESETS[start][2]
    if adapter:
        yield f"ipadapter/{adapter}"
    if encoder:
        yield f"clip_vision/{encoder}"
    if adapter and start in WITH_LORA:
        yield f"loras/{Path(adapter).stem}_lora.safetensors"


def pictures(prompt: Prompt) -> list[str]:
    """The pictures under input/ that the prompt names."""
    return _named(prompt, PICTURES)


def saved(prompt: Prompt) -> list[str]:
    """The saved embeds and faces under input/ that the prompt names."""
    return _named(prompt, SAVED)


def _named(prompt: Prompt, inputs: dict[str, str]) -> list[str]:
    return sorted({node["inputs"][inputs[node["class_type"]]] for node in prompt.values() if node["class_type"] in inputs})
