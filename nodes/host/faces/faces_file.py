"""Face embeddings as files: safetensors in ComfyUI's output and input folders."""

from __future__ import annotations

import safetensors.torch
import torch
from safetensors import SafetensorError

from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.pictures.face_embeds import FaceEmbeds
from ..files.saved_files import save_new, saved_path

SUFFIX = ".faces.safetensors"


def save_faces(faces: FaceEmbeds, prefix: str) -> str:
    """Writes to the output folder under a new number; returns the file's name with its subfolder."""
    return save_new({"embedding": faces.embedding, "crops": (faces.crops * 255).round().byte()}, prefix, SUFFIX)


def load_faces(name: str) -> FaceEmbeds:
    """The faces of a file in the input folder. Raises IPAdapterError for a file that holds none."""
    path = saved_path(name, "faces")
    try:
        tensors = safetensors.torch.load_file(path)
        embedding, crops = tensors["embedding"].float(), tensors["crops"].float() / 255
    except (SafetensorError, KeyError):
        raise IPAdapterError(f"{name} holds no face embeddings: recreate them with IPAdapter Face Embeds and save them.") from None
    if not torch.isfinite(embedding).all():
        raise IPAdapterError(f"The face embeddings in {name} have values that are not numbers: recreate them.")
    return FaceEmbeds(embedding, crops)
