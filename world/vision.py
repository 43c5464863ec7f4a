"""The image encoder: CLIP vision's layout at 64 pixels, trained to tell the attributes of a picture from its projected embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ipadapter_core.pictures.preprocess import clip_pixels
from training.loss import generator

from .fit import fit
from .pictures import to_unit
from .reader import CHOICES, labels
from .scenes import Scene

HIDDEN, PROJECTED, LAYERS, HEADS, PATCH, SIDE = 128, 64, 4, 4, 8, 64
BATCH, STEPS, RATE = 64, 4200, 1e-3


def new() -> Any:
    torch.manual_seed(6)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, projection_dim=PROJECTED, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        image_size=SIDE, patch_size=PATCH, hidden_act="quick_gelu",
    ))  # fmt: skip


class Told(nn.Module):
    """The encoder with what reads attributes off its embedding, which is thrown away after training."""

    def __init__(self):
        super().__init__()
        self.encoder = new()
        self.heads = nn.ModuleDict({name: nn.Linear(PROJECTED, len(choices)) for name, choices in CHOICES.items()})


def train(scenes: list[Scene], pictures: Tensor, folder: Path, steps: int = STEPS) -> Any:
    """pictures uint8 [n, 3, 64, 64]."""
    model, told = Told(), labels(scenes)

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(scenes), (BATCH,), generator=generator("vision", step))
        embeds = model.encoder(clip_pixels(to_unit(pictures[rows]).movedim(1, -1), SIDE)).image_embeds
        parts = [cross_entropy(head(embeds), told[name][rows]) for name, head in model.heads.items()]
        return torch.stack(parts).sum() + 1e-3 * embeds.square().mean()

    return fit(folder / "vision.pt", model, loss, steps, RATE).encoder
