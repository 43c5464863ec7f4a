"""Face embeddings as files: safetensors in ComfyUI's output and input folders."""

from __future__ import annotations

import os

import folder_paths
import safetensors.torch
import torch
from safetensors import SafetensorError

from ...ipadapter_core.errors import IPAdapterError
from ...ipadapter_core.faces import FaceEmbeds

SUFFIX = ".faces.safetensors"


def list_faces() -> list[str]:
    """Names of the face files in the input folder, with their subfolder."""
    root = folder_paths.get_input_directory()
    found = [os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names]
    return sorted(name.replace(os.sep, "/") for name in found if name.endswith(SUFFIX))


def save_faces(faces: FaceEmbeds, prefix: str) -> str:
    """Writes to the output folder under the next free number; returns the file's name with its subfolder."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    while os.path.exists(path := os.path.join(folder, f"{name}_{counter:05}{SUFFIX}")):
        counter += 1
    tensors = {"embedding": faces.embedding.contiguous(), "crops": (faces.crops * 255).round().byte().contiguous()}
    safetensors.torch.save_file(tensors, path)
    return f"{subfolder}/{os.path.basename(path)}" if subfolder else os.path.basename(path)


def faces_stamp(name: str) -> float:
    """Changes when the file does; 0 where there is none."""
    path = folder_paths.get_annotated_filepath(name)
    return os.path.getmtime(path) if os.path.isfile(path) else 0.0


def load_faces(name: str) -> FaceEmbeds:
    """The faces of a file in the input folder. Raises IPAdapterError for a file that holds none."""
    path = folder_paths.get_annotated_filepath(name)
    if not os.path.isfile(path):
        raise IPAdapterError(f"There is no file {name} in the input folder: move the saved faces there from the output folder.")
    try:
        tensors = safetensors.torch.load_file(path)
        embedding, crops = tensors["embedding"].float(), tensors["crops"].float() / 255
    except (SafetensorError, KeyError):
        raise IPAdapterError(f"{name} holds no face embeddings: make them anew with IPAdapter Face Embeds and save them.") from None
    if not torch.isfinite(embedding).all():
        raise IPAdapterError(f"The face embeddings in {name} have values that are not numbers: make them anew.")
    return FaceEmbeds(embedding, crops)
