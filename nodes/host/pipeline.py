"""The unified loaders' work: find and load all that a preset means."""

from __future__ import annotations

import os
import weakref
from typing import Any

import comfy.clip_vision

from ...ipadapter_core.errors import IPAdapterError
from .adapter import load_adapter
from .files import find_adapter, find_encoder
from .unet import base_of

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


def unified(model: Any, preset: str, lora_strength: float, provider: str, pipeline: dict | None) -> tuple[Any, dict]:
    """(model, pipeline) for a preset of one of the unified loaders."""
    base = "Kolors" if preset == "Kolors" else base_of(model)
    path = find_adapter(preset, base)
    adapter = load_adapter(path)
    loaded: dict[str, dict[str, Any]] = {
        "clipvision": {"file": None, "model": None},
        "ipadapter": {"file": path, "model": adapter},
        "insightface": {"provider": None, "model": None},
    }
    if adapter.info.encoder is not None:
        encoder_path = find_encoder(adapter.info.encoder)
        loaded["clipvision"] = {"file": encoder_path, "model": load_encoder(encoder_path)}
    return model, loaded
