"""The image encoders that adapters were trained with, told by widths: what an adapter needs, and what an encoder file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]
PROJECTED = "image_embeds"
HIDDEN = "penultimate_hidden_states"
POOLED = "pooler_output"  # of SigLIP's attention pooling head


@dataclass(frozen=True)
class Tower:
    """A vision tower: its widths (projected 0: no projection), input size in pixels (0: unknown), tokens with the class token."""

    name: str
    hidden: int
    projected: int
    size: int
    tokens: int
    file: str = ""


TOWERS = {
    tower.name: tower
    for tower in (
        Tower("ViT-H", 1280, 1024, 224, 257, "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"),
        Tower("ViT-bigG", 1664, 1280, 224, 257, "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors"),
        Tower("ViT-L", 1024, 768, 224, 257, "clip-vit-large-patch14.safetensors"),
        Tower("ViT-L-336", 1024, 768, 336, 577, "clip-vit-large-patch14-336.bin"),
        Tower("SigLIP-so400m", 1152, 0, 384, 729, "sigclip_vision_patch14_384.safetensors"),
    )
}


@dataclass(frozen=True)
class Encoder:
    """What an adapter takes from an image encoder: `feature` is the encoder output's name, `width` its last dimension, `size` in pixels."""

    name: str
    feature: str
    width: int
    size: int
    file: str = ""


def needed(feature: str, width: int, tower: str = "") -> Encoder:
    """The encoder whose `feature` is `width` wide; `tower` names it where two share the width. No file for an unknown width."""
    for known in TOWERS.values():
        wide = {PROJECTED: known.projected, HIDDEN: known.hidden, POOLED: 0 if known.projected else known.hidden}
        if width == wide[feature] and tower in ("", known.name):
            return Encoder(known.name, feature, width, known.size, known.file)
    return Encoder(f"an encoder {width} wide", feature, width, 224)


def name_of(feature: str, width: int) -> str:
    """The published encoder whose `feature` is `width` wide, by name; "" where there is none."""
    found = needed(feature, width)
    return found.name if found.file else ""


def tower_of(shapes: Shapes) -> Tower | None:
    """The vision tower of a file's shapes (Hugging Face or OpenCLIP key names), known or not; None if it holds none."""
    position = shapes.get("vision_model.embeddings.position_embedding.weight") or shapes.get("visual.positional_embedding")
    if position is None or len(position) != 2:
        return None
    tokens, hidden = position
    projected = 0
    if len(shape := shapes.get("visual_projection.weight", ())) == 2:
        projected = shape[0]
    elif len(shape := shapes.get("visual.proj", ())) == 2:
        projected = shape[1]
    for known in TOWERS.values():
        if (known.hidden, known.projected, known.tokens) == (hidden, projected, tokens):
            return known
    name = f"an encoder with hidden width {hidden}, projected width {projected or 'none'} and {tokens} tokens"
    return Tower(name, hidden, projected, 0, tokens)


def fits(tower: Tower, encoder: Encoder) -> bool:
    """Whether `tower` gives what `encoder` asks for: the feature's width, and the token count of the published encoder if it is one."""
    if encoder.width != (tower.projected if encoder.feature == PROJECTED else tower.hidden):
        return False
    known = TOWERS.get(encoder.name)
    return known is None or (tower.hidden, tower.tokens) == (known.hidden, known.tokens)
