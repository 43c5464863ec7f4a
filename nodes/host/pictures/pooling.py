"""The pooling head of a SigLIP encoder: ComfyUI leaves it out when it loads one, so it is read from the encoder's file."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import comfy.utils
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ....ipadapter_core.adapter.pooling import head_of
from ....ipadapter_core.errors import IPAdapterError
from ..files.find import siglip_files

_NORM = "vision_model.post_layernorm.weight"
_heads: MutableMapping[Any, dict[str, Tensor]] = WeakIdKeyDictionary()  # encoder -> its head


def pooling_head(clip_vision: Any) -> dict[str, Tensor]:
    """Of the file that the encoder was loaded from, told by a norm's weights. Raises IPAdapterError where no clip_vision file has it."""
    if clip_vision not in _heads:
        norm = clip_vision.model.vision_model.post_layernorm.weight.detach().float().cpu()
        for path in siglip_files():
            sd = comfy.utils.load_torch_file(path, safe_load=True)
            head, theirs = head_of(sd), sd.get(_NORM)
            if head is not None and theirs is not None and torch.equal(theirs.to(clip_vision.dtype).float().cpu(), norm):
                _heads[clip_vision] = head
                return head
        raise IPAdapterError(
            "InstantX's Flux adapter reads a picture through the pooling head of SigLIP, and no file in the clip_vision folders has "
            "the one of the connected image encoder. Get sigclip_vision_patch14_384.safetensors "
            "(https://huggingface.co/Comfy-Org/sigclip_vision_384), put it there and load it with Load CLIP Vision."
        )
    return _heads[clip_vision]
