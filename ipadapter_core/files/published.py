"""The published files: one table of adapters, encoders and LoRAs, and the files that each loader preset means.

Sources: the model cards and file lists of the named Hugging Face repositories.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .encoders import HIDDEN, POOLED, PROJECTED, TOWERS, Encoder, needed
from .family import TWINS, Info

_HUB = "https://huggingface.co/"
_FACE_LICENCE = "research only, non-commercial"  # as InsightFace's models, which they are made for
_H, _BIG_G = needed(PROJECTED, 1024), needed(PROJECTED, 1280)
_FLUX_LICENCE = "FLUX.1 dev, non-commercial"
_L, _SIGLIP_POOLED, _SIGLIP_HIDDEN = needed(PROJECTED, 768), needed(POOLED, 1152), needed(HIDDEN, 1152)
_H_HIDDEN, _L336_HIDDEN = needed(HIDDEN, 1280), needed(HIDDEN, 1024, "ViT-L-336")


@dataclass(frozen=True)
class Published:
    """A published file. `variant` tells files of one family and shape apart: "plain", "light", "face" or "composition"."""

    name: str  # the name to save it under
    folder: str  # under ComfyUI's models/
    repository: str
    path: str  # in the repository
    licence: str
    family: str = ""
    base: str = ""
    encoder: Encoder | None = None
    variant: str = "plain"
    lora: str = ""
    sha256: str = ""
    aliases: tuple[str, ...] = ()  # other names it is known by

    @property
    def page(self) -> str:
        return _HUB + self.repository

    @property
    def url(self) -> str:
        return f"{_HUB}{self.repository}/resolve/main/{self.path}"


def _h94(path: str, family: str, base: str, encoder: Encoder, variant: str = "plain", sha256: str = "") -> Published:
    return Published(path.split("/")[1], "ipadapter", "h94/IP-Adapter", path, "Apache-2.0", family, base, encoder, variant, sha256=sha256)


def _face(name: str, family: str, base: str, encoder: Encoder | None = None, lora: str = "", sha256: str = "") -> Published:
    return Published(name, "ipadapter", "h94/IP-Adapter-FaceID", name, _FACE_LICENCE, family, base, encoder, lora=lora, sha256=sha256)


def _face_lora(name: str) -> Published:
    return Published(name, "loras", "h94/IP-Adapter-FaceID", name, _FACE_LICENCE)


def _composition(name: str, base: str) -> Published:
    return Published(name, "ipadapter", "ostris/ip-composition-adapter", name, "Apache-2.0", "plus", base, _H_HIDDEN, "composition")


def _encoder(tower: str, repository: str, path: str, licence: str) -> Published:
    return Published(TOWERS[tower].file, "clip_vision", repository, path, licence)


FILES = (
    _h94("models/ip-adapter_sd15.safetensors", "standard", "SD1.5", _H),
    _h94("models/ip-adapter_sd15_light_v11.bin", "standard", "SD1.5", _H, "light"),
    _h94("models/ip-adapter_sd15_light.safetensors", "standard", "SD1.5", _H, "light"),
    _h94("models/ip-adapter_sd15_vit-G.safetensors", "standard", "SD1.5", _BIG_G),
    _h94("models/ip-adapter-plus_sd15.safetensors", "plus", "SD1.5", _H_HIDDEN),
    _h94("models/ip-adapter-plus-face_sd15.safetensors", "plus", "SD1.5", _H_HIDDEN, "face",
         "1c9edc21af6f737dc1d6e0e734190e976cfacf802d6b024b77aa3be922f7569b"),
    _h94("models/ip-adapter-full-face_sd15.safetensors", "full-face", "SD1.5", _H_HIDDEN),
    _h94("sdxl_models/ip-adapter_sdxl.safetensors", "standard", "SDXL", _BIG_G, "plain",
         "ba1002529e783604c5f326d49f0122025392d1d20ac8d573b3eeb3e6dea4ebb6"),
    _h94("sdxl_models/ip-adapter_sdxl_vit-h.safetensors", "standard", "SDXL", _H, "plain",
         "ebf05d918348aec7abb02a5e9ecef77e0aaea6914a5c4ea13f50d45eb1681831"),
    _h94("sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors", "plus", "SDXL", _H_HIDDEN, "plain",
         "3f5062b8400c94b7159665b21ba5c62acdcd7682262743d7f2aefedef00e6581"),
    _h94("sdxl_models/ip-adapter-plus-face_sdxl_vit-h.safetensors", "plus", "SDXL", _H_HIDDEN, "face",
         "677ad8860204f7d0bfba12d29e6c31ded9beefdf3e4bbd102518357d31a292c1"),
    _composition("ip_plus_composition_sd15.safetensors", "SD1.5"),
    _composition("ip_plus_composition_sdxl.safetensors", "SDXL"),
    _face("ip-adapter-faceid_sd15.bin", "faceid", "SD1.5", None, "ip-adapter-faceid_sd15_lora.safetensors",
          "201344e22e6f55849cf07ca7a6e53d8c3b001327c66cb9710d69fd5da48a8da7"),
    _face("ip-adapter-faceid_sdxl.bin", "faceid", "SDXL", None, "ip-adapter-faceid_sdxl_lora.safetensors",
          "f455fed24e207c878ec1e0466b34a969d37bab857c5faa4e8d259a0b4ff63d7e"),
    _face("ip-adapter-faceid-plus_sd15.bin", "faceid-plus", "SD1.5", _H_HIDDEN, "ip-adapter-faceid-plus_sd15_lora.safetensors",
          TWINS["faceid-plus"]),
    _face("ip-adapter-faceid-plusv2_sd15.bin", "faceid-plus-v2", "SD1.5", _H_HIDDEN, "ip-adapter-faceid-plusv2_sd15_lora.safetensors",
          TWINS["faceid-plus-v2"]),
    _face("ip-adapter-faceid-plusv2_sdxl.bin", "faceid-plus-v2", "SDXL", _H_HIDDEN, "ip-adapter-faceid-plusv2_sdxl_lora.safetensors",
          "c6945d82b543700cc3ccbb98d363b837e9c596281607857c74b713a876daf5fb"),
    _face("ip-adapter-faceid-portrait-v11_sd15.bin", "portrait", "SD1.5",
          sha256="a48cb4f89ed18e02c6000f65aa9efec452e87eaed4a1bc9fcf4a460c8d0e3bc6"),
    _face("ip-adapter-faceid-portrait_sd15.bin", "portrait", "SD1.5",
          sha256="68570f3c14fe125b00d4abf416af33d8b13bb496f4e55af2eb5d0a6017ee99a4"),
    _face("ip-adapter-faceid-portrait_sdxl.bin", "portrait", "SDXL",
          sha256="5631ce7824cdafd2db37c5e85b985730a95ff59c5b4fc80c2b79b0bee5711512"),
    _face("ip-adapter-faceid-portrait_sdxl_unnorm.bin", "portrait-unnorm", "SDXL",
          sha256=TWINS["portrait-unnorm"]),
    Published("Kolors-IP-Adapter-Plus.bin", "ipadapter", "Kwai-Kolors/Kolors-IP-Adapter-Plus", "ip_adapter_plus_general.bin", "Apache-2.0",
              "kolors-plus", "Kolors", _L336_HIDDEN, aliases=("ip_adapter_plus_general.bin",),
              sha256="1983c3f927acb2a2f4285e1e134f302fab8e6d744a3b058e46848aba9957a60f"),
    Published("Kolors-IP-Adapter-FaceID-Plus.bin", "ipadapter", "Kwai-Kolors/Kolors-IP-Adapter-FaceID-Plus", "ipa-faceid-plus.bin",
              "Apache-2.0", "kolors-faceid-plus", "Kolors", _L336_HIDDEN, aliases=("ipa-faceid-plus.bin",)),
    Published("flux-ip-adapter-v2.safetensors", "ipadapter", "XLabs-AI/flux-ip-adapter-v2", "ip_adapter.safetensors", _FLUX_LICENCE,
              "flux-xlabs", "Flux", _L, sha256="8f2bfddaffc4fe2a6667bef24c8ce6075e81d01d0f6b0f9adbe46ad686057ee2"),
    Published("flux-ip-adapter.safetensors", "ipadapter", "XLabs-AI/flux-ip-adapter", "ip_adapter.safetensors", _FLUX_LICENCE,
              "flux-xlabs", "Flux", _L, sha256="750f912149b84bbb0c2a6ce90ffa7e78afd1795821407718724ebcd36372dc2d"),
    Published("instantx-flux-ip-adapter.bin", "ipadapter", "InstantX/FLUX.1-dev-IP-Adapter", "ip-adapter.bin", _FLUX_LICENCE,
              "flux-instantx", "Flux", _SIGLIP_POOLED, sha256="01aaeb0dace9ea4feee1007d30e41c59847041c116db8c2bcc14f9c91d491203"),
    Published("instantx-sd3.5-large-ip-adapter.bin", "ipadapter", "InstantX/SD3.5-Large-IP-Adapter", "ip-adapter.bin",
              "Stability AI Community", "sd3-instantx", "SD3.5", _SIGLIP_HIDDEN),
    _face_lora("ip-adapter-faceid_sd15_lora.safetensors"),
    _face_lora("ip-adapter-faceid_sdxl_lora.safetensors"),
    _face_lora("ip-adapter-faceid-plus_sd15_lora.safetensors"),
    _face_lora("ip-adapter-faceid-plusv2_sd15_lora.safetensors"),
    _face_lora("ip-adapter-faceid-plusv2_sdxl_lora.safetensors"),
    _encoder("ViT-H", "h94/IP-Adapter", "models/image_encoder/model.safetensors", "MIT"),
    _encoder("ViT-bigG", "h94/IP-Adapter", "sdxl_models/image_encoder/model.safetensors", "MIT"),
    _encoder("ViT-L", "openai/clip-vit-large-patch14", "model.safetensors", "MIT"),
    _encoder("ViT-L-336", "Kwai-Kolors/Kolors-IP-Adapter-Plus", "image_encoder/pytorch_model.bin", "MIT"),
    _encoder("SigLIP-so400m", "Comfy-Org/sigclip_vision_384", "sigclip_vision_patch14_384.safetensors", "Apache-2.0"),
)
ADAPTERS = tuple(row for row in FILES if row.family)

# preset: {base: names of the published files, the preferred one first}
Presets = dict[str, dict[str, tuple[str, ...]]]
PICTURE_PRESETS: Presets = {
    "LIGHT - SD1.5 only (low strength)": {"SD1.5": ("ip-adapter_sd15_light_v11.bin", "ip-adapter_sd15_light.safetensors")},
    "STANDARD (medium strength)": {
        "SD1.5": ("ip-adapter_sd15.safetensors",), "SDXL": ("ip-adapter_sdxl_vit-h.safetensors",),
        "Flux": ("flux-ip-adapter-v2.safetensors", "flux-ip-adapter.safetensors")},
    "VIT-G (medium strength)": {"SD1.5": ("ip-adapter_sd15_vit-G.safetensors",), "SDXL": ("ip-adapter_sdxl.safetensors",)},
    "PLUS (high strength)": {
        "SD1.5": ("ip-adapter-plus_sd15.safetensors",), "SDXL": ("ip-adapter-plus_sdxl_vit-h.safetensors",),
        "Flux": ("instantx-flux-ip-adapter.bin",), "SD3.5": ("instantx-sd3.5-large-ip-adapter.bin",)},
    "PLUS FACE (portraits)": {
        "SD1.5": ("ip-adapter-plus-face_sd15.safetensors",), "SDXL": ("ip-adapter-plus-face_sdxl_vit-h.safetensors",)},
    "FULL FACE - SD1.5 only (portraits stronger)": {"SD1.5": ("ip-adapter-full-face_sd15.safetensors",)},
}
FACE_PRESETS: Presets = {
    "FACEID": {"SD1.5": ("ip-adapter-faceid_sd15.bin",), "SDXL": ("ip-adapter-faceid_sdxl.bin",)},
    "FACEID PLUS - SD1.5 only": {"SD1.5": ("ip-adapter-faceid-plus_sd15.bin",)},
    "FACEID PLUS V2": {
        "SD1.5": ("ip-adapter-faceid-plusv2_sd15.bin",), "SDXL": ("ip-adapter-faceid-plusv2_sdxl.bin",),
        "Kolors": ("Kolors-IP-Adapter-FaceID-Plus.bin",)},
    "FACEID PORTRAIT (style transfer)": {
        "SD1.5": ("ip-adapter-faceid-portrait-v11_sd15.bin", "ip-adapter-faceid-portrait_sd15.bin"),
        "SDXL": ("ip-adapter-faceid-portrait_sdxl.bin",)},
    "FACEID PORTRAIT UNNORM - SDXL only (strong)": {"SDXL": ("ip-adapter-faceid-portrait_sdxl_unnorm.bin",)},
}
_KOLORS = ("Kolors-IP-Adapter-Plus.bin",)
COMMUNITY_PRESETS: Presets = {
    "Composition": {"SD1.5": ("ip_plus_composition_sd15.safetensors",), "SDXL": ("ip_plus_composition_sdxl.safetensors",)},
    "Kolors": {"Kolors": _KOLORS, "SDXL": _KOLORS},
}
PRESETS = {**PICTURE_PRESETS, **FACE_PRESETS, **COMMUNITY_PRESETS}

_BY_NAME = {row.name: row for row in FILES}


def file_named(name: str) -> Published:
    """The table's row of a published file name."""
    return _BY_NAME[name]


def stem(name: str) -> str:
    """A file name as it is compared: letters and digits alone, without folder, extension, case and a second download's "(1)"."""
    base = re.sub(r"\.(safetensors|sft|bin|pth|pt2?|ckpt|pkl)$", "", re.split(r"[\\/]", name)[-1], flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\(\d+\)\s*$", "", base).lower())


_BY_STEM = {stem(name): row for row in FILES for name in (row.name, *row.aliases)}


def published_as(name: str) -> Published | None:
    """The published file that a file's name says it is, in any folder, case and punctuation."""
    return _BY_STEM.get(stem(name))


def variant_of(name: str) -> str:
    """ "plain", "light", "face" or "composition" by a file's name; "" where it says nothing."""
    if row := published_as(name):
        return row.variant
    word = stem(name)
    for variant in ("composition", "light"):
        if variant in word:
            return variant
    if "face" in word and "faceid" not in word:
        return "face"
    return "plain" if "plus" in word else ""


def has_variants(row: Published) -> bool:
    """Whether other published files of this one's family and base differ from it in nothing but their numbers."""
    alike = [other for other in ADAPTERS if (other.family, other.base, other.encoder) == (row.family, row.base, row.encoder)]
    return any(other.variant != row.variant for other in alike)


def is_of(row: Published, info: Info) -> bool:
    """Whether a file identified as `info` has the family, base and encoder of the published file."""
    same_encoder = (info.encoder and (info.encoder.name, info.encoder.feature)) == (row.encoder and (row.encoder.name, row.encoder.feature))
    return info.supported and (info.family, info.base) == (row.family, row.base) and same_encoder
