"""The unified loaders' work: find and load all that a preset means."""

from __future__ import annotations

import os
import weakref
from typing import Any

import comfy.clip_vision

from ....ipadapter_core.adapter.lora import lora_layers
from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.files.checkpoint import read_checkpoint
from ....ipadapter_core.files.published import PRESETS
from ..engine.base import base_of
from ..faces.recogniser import load_insightface, models_for
from ..files.find import find_adapter, find_encoder, find_lora
from .adapter import Adapter, load_adapter
from .lora import with_lora, with_lora_file

_encoders: weakref.WeakValueDictionary[tuple, Any] = weakref.WeakValueDictionary()


def load_encoder(path: str) -> Any:
    """A clip_vision file as ComfyUI's model, loaded once while anything holds it."""
    stat = os.stat(path)
    key = (path, stat.st_size, stat.st_mtime_ns)
    encoder = _encoders.get(key)
    if encoder is None:
        encoder = comfy.clip_vision.load(path)
        if encoder is None:
            raise IPAdapterError(f"ComfyUI cannot read the image encoder {os.path.basename(path)}: download it again.")
        _encoders[key] = encoder
    return encoder


def unified(model: Any, preset: str, lora_strength: float, provider: str) -> tuple[Any, dict]:
    """(model, pipeline) for a preset of one of the unified loaders. Raises IPAdapterError for a preset that is none."""
    if preset not in PRESETS:
        raise IPAdapterError(f"There is no preset '{preset}'. The presets are: {', '.join(PRESETS)}.")
    base = base_of(model).replace("Chroma", "Flux")
    if is_kolors(model) and "Kolors" in PRESETS[preset]:
        base = "Kolors"
    return with_file(model, find_adapter(preset, base), base, lora_strength, provider)


def is_kolors(model: Any) -> bool:
    """Whether a ModelPatcher of SDXL's layout brings Kolors' text projection along."""
    return hasattr(model.model.diffusion_model, "encoder_hid_proj")


def with_file(model: Any, path: str, base: str, lora_strength: float, provider: str) -> tuple[Any, dict]:
    """(model, pipeline) for an adapter file and all that goes with it on a model of `base`.

    What another pipeline holds already is not loaded again: adapters, encoders and recognisers are kept by file.
    """
    adapter = load_adapter(path)
    loaded: dict[str, dict[str, Any]] = {
        "clipvision": {"file": None, "model": None},
        "ipadapter": {"file": path, "model": adapter},
        "insightface": {"provider": None, "model": None},
    }
    if adapter.info.encoder is not None:
        encoder_path = find_encoder(adapter.info.encoder)
        loaded["clipvision"] = {"file": encoder_path, "model": load_encoder(encoder_path)}
    if adapter.info.face:
        loaded["insightface"] = {"provider": provider, "model": load_insightface(provider, models_for(base))}
        model = _with_face_lora(model, adapter, lora_strength)
    return model, loaded


def described(pipeline: dict) -> str:
    """In lines, which files were taken and what the adapter is."""
    path, encoder = pipeline["ipadapter"]["file"], pipeline["clipvision"]["file"]
    found = os.path.basename(encoder) if encoder else "none needed"
    label = pipeline["ipadapter"]["model"].info.label
    return f"adapter: {os.path.basename(path)}\nis: {label}\nimage encoder: {found}"


def _with_face_lora(model: Any, adapter: Adapter, strength: float) -> Any:
    """The separate LoRA file where it is there, else the one in the adapter file, else (or at strength 0) the model itself."""
    if strength == 0:
        return model
    path = find_lora(adapter.info)
    if path is not None:
        return with_lora_file(model, path, strength)
    if adapter.info.lora and adapter.path is not None:
        return with_lora(model, lora_layers(read_checkpoint(adapter.path).ip_adapter, base_of(model)), strength)
    return model
