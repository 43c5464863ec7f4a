"""The Image Prompt Loader's work: the adapter that fits a model, and in words what was taken and what does not fit."""

from __future__ import annotations

import os
from typing import Any

from ....ipadapter_core.errors import IPAdapterError
from ..engine.base import base_of
from ..files.find import adapter_path, best_adapter, identify_file, short_labels
from .pipeline import described, is_kolors, with_file

AUTO = "auto"


def load_fitting(model: Any, adapter: str, lora_strength: float, provider: str) -> tuple[Any, dict, str]:
    """(model, pipeline, report) for a file of the ipadapter folders, or the best for the model where `adapter` is AUTO.

    Raises IPAdapterError for a file that is for other models.
    """
    base = base_of(model)
    several = {"SDXL": ("Kolors", "SDXL") if is_kolors(model) else ("SDXL", "Kolors"), "Chroma": ("Flux",)}
    bases = several.get(base, (base,))
    path = best_adapter(bases) if adapter == AUTO else adapter_path(adapter)
    info = identify_file(path)
    if info.supported and info.base not in bases:
        raise IPAdapterError(
            f"{adapter} is {info.label}, and the connected model is {bases[0]}. Choose {AUTO}, or a file for {bases[0]}; "
            f"fitting here: {', '.join(_names(bases, True)) or 'none'}."
        )
    model, pipeline = with_file(model, path, info.base, lora_strength, provider)
    return model, pipeline, _report(path, bases, pipeline)


def _report(path: str, bases: tuple[str, ...], pipeline: dict) -> str:
    lines = [described(pipeline)]
    others = [name for name in _names(bases, True) if os.path.basename(name) != os.path.basename(path)]
    lines += [f"fits too: {', '.join(others)}"] if others else []
    lines += [f"does not fit {bases[0]}: {', '.join(wrong)}"] if (wrong := _names(bases, False)) else []
    return "\n".join(lines)


def _names(bases: tuple[str, ...], fitting: bool) -> list[str]:
    """Files that are for one of the bases, or those that are for none of them; those of which that is not known are in neither."""
    return [name for name, label in short_labels().items() if label and any(base in label.split(", ") for base in bases) == fitting]
