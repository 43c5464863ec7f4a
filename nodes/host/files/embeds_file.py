"""Encoded pictures as .ipadpt files: safetensors inside, in ComfyUI's output and input folders."""

from __future__ import annotations

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ....ipadapter_core.errors import IPAdapterError
from .saved_files import save_new, saved_path

SUFFIX = ".ipadpt"


def save_embeds(embeds: Tensor, prefix: str) -> str:
    """Writes [n, ...] to the output folder under a new number; returns the file's name with its subfolder."""
    return save_new({"embeds": embeds}, prefix, SUFFIX)


def load_embeds(name: str) -> Tensor:
    """The embeds of a file in the input folder. Raises IPAdapterError for files that hold none, or code."""
    path = saved_path(name, "embeds")
    try:
        embeds = safetensors.torch.load_file(path).get("embeds")
    except SafetensorError:
        embeds = _load_pickled(path, name)
    if not isinstance(embeds, Tensor) or embeds.ndim not in (2, 3) or not torch.isfinite(embeds.float()).all():
        raise IPAdapterError(f"{name} holds no usable embeds: encode the picture again and save it.")
    return embeds.float()


def _load_pickled(path: str, name: str) -> Tensor:
    """Files of ComfyUI_IPAdapter_plus: a pickled tensor, read without running what is in it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load has no common error class for damaged files
        raise IPAdapterError(
            f"{name} is not an embeds file, or it holds code, which is not run: encode the picture again and save it."
        ) from None
