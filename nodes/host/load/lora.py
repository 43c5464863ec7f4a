"""LoRAs as ComfyUI weight patches: the one inside a FaceID file, and the separate file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
from comfy.weight_adapter import LoRAAdapter

from ....ipadapter_core.adapter.lora import LoraLayer
from ....ipadapter_core.errors import IPAdapterError


def weight_key(layer: LoraLayer) -> str:
    """The key of a layer's weight in ComfyUI's UNet; the transformer is the second module of its block."""
    place = "middle_block" if layer.block == "middle" else f"{layer.block}_blocks.{layer.id}"
    return f"diffusion_model.{place}.1.transformer_blocks.{layer.index}.{layer.attention}.{layer.linear}.weight"


def with_lora(model: Any, layers: Iterable[LoraLayer], strength: float) -> Any:
    """A clone of the ModelPatcher whose weights are W + strength * up @ down; the model itself at strength 0.

    Raises IPAdapterError where the LoRA is not made for this model.
    """
    tensors, keys = {}, {}
    for layer in layers:
        key = weight_key(layer)
        name = key.removesuffix(".weight")
        keys[name] = key
        tensors |= {f"{name}.lora_up.weight": layer.up, f"{name}.lora_down.weight": layer.down}
    patches = comfy.lora.load_lora(tensors, keys)
    return _patched(model, patches, strength, "The LoRA in this FaceID file")


def with_lora_file(model: Any, path: str, strength: float) -> Any:
    """A clone of the ModelPatcher with a LoRA file, in any layout that ComfyUI reads; the model itself at strength 0.

    Raises IPAdapterError where the file is no LoRA for this model.
    """
    if strength == 0:
        return model
    lora = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
    patches = comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_unet(model.model, {}))
    if not patches:
        raise IPAdapterError(f"'{path}' has no LoRA for this model. Choose the LoRA of the same name as the FaceID file.")
    return _patched(model, patches, strength, f"The LoRA '{path}'")


def _patched(model: Any, patches: Mapping[str, Any], strength: float, what: str) -> Any:
    if strength == 0 or not patches:
        return model
    for key, patch in patches.items():
        if ".attn" not in key or not isinstance(patch, LoRAAdapter):
            continue
        up, down = patch.weights[:2]
        shape = _shape(model.model, key)
        if shape is not None and shape != (up.shape[0], down.shape[1]):
            raise IPAdapterError(
                f"{what} does not fit the connected model (at {key}). "
                "Connect a model of the base that the FaceID file was made for: SD1.5 for _sd15 files, SDXL for _sdxl files."
            )
    model = model.clone()
    model.add_patches(patches, strength)
    return model


def _shape(model: Any, key: str) -> tuple[int, ...] | None:
    """(out, in) of the layer that has this weight, however it is stored: quantised weights may be packed.

    Empty where there is no such layer; None where nothing tells its shape.
    """
    try:
        layer = comfy.utils.get_attr(model, key.removesuffix(".weight"))
    except AttributeError:
        return ()
    if hasattr(layer, "out_features"):
        return layer.out_features, layer.in_features
    return tuple(layer.weight.shape) if layer.weight.is_floating_point() else None
