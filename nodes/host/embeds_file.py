"""Encoded pictures as .ipadpt files: safetensors inside, in ComfyUI's output and input folders."""

from __future__ import annotations

import os
import pickle

import folder_paths
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ...ipadapter_core.errors import IPAdapterError

SUFFIX = ".ipadpt"


def list_embeds() -> list[str]:
    """Names of the .ipadpt files in the input folder, with their subfolder."""
    root = folder_paths.get_input_directory()
    found = []
    for folder, _, files in os.walk(root):
        found += [os.path.relpath(os.path.join(folder, name), root) for name in files if name.endswith(SUFFIX)]
    return sorted(name.replace(os.sep, "/") for name in found)


def save_embeds(embeds: Tensor, prefix: str) -> str:
    """Writes [n, ...] to the output folder under the next free number; returns the file's name."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    file = f"{name}_{counter:05}{SUFFIX}"
    while os.path.exists(os.path.join(folder, file)):
        counter += 1
        file = f"{name}_{counter:05}{SUFFIX}"
    safetensors.torch.save_file({"embeds": embeds.detach().cpu().contiguous()}, os.path.join(folder, file))
    return f"{subfolder}/{file}" if subfolder else file


def load_embeds(name: str) -> Tensor:
    """The embeds of a file in the input folder. Raises IPAdapterError for files that hold none, or code."""
    path = folder_paths.get_annotated_filepath(name)
    if not os.path.isfile(path):
        raise IPAdapterError(f"There is no file {name} in the input folder: move the saved embeds there from the output folder.")
    try:
        embeds = safetensors.torch.load_file(path)["embeds"]
    except (SafetensorError, KeyError):
        embeds = _load_pickled(path, name)
    if not isinstance(embeds, Tensor) or embeds.ndim not in (2, 3) or not torch.isfinite(embeds).all():
        raise IPAdapterError(f"{name} holds no usable embeds: encode the picture again and save it.")
    return embeds.float()


def _load_pickled(path: str, name: str) -> Tensor:
    """Files of ComfyUI_IPAdapter_plus: a pickled tensor, read without running what is in it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        raise IPAdapterError(
            f"{name} is no embeds file, or it holds code, which is not run: encode the picture again and save it."
        ) from None
