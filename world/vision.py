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
ONE, TWO = tuple(CHOICES), ("shape", "colour", "size", "background")


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
        self.one = nn.ModuleDict({name: nn.Linear(PROJECTED, len(CHOICES[name])) for name in ONE})
        self.two = nn.ModuleDict({f"{side} {name}": nn.Linear(PROJECTED, len(CHOICES[name])) for side in "01" for name in TWO})


def train(scenes: list[Scene], pictures: Tensor, folder: Path, steps: int = STEPS) -> Any:
    """pictures uint8 [n, 3, 64, 64] of one thing or two."""
    model = Told()
    pairs = torch.tensor([len(scene.things) == 2 for scene in scenes])
    one = labels(scenes, ONE)
    two = {f"{side} {name}": values for side in (0, 1) for name, values in labels(
        [Scene(scene.things * (2 // len(scene.things)), scene.style) for scene in scenes], TWO, side).items()}  # fmt: skip

    def loss(step: int) -> Tensor:
        g = generator("vision", step)
        rows = torch.randint(len(scenes), (BATCH,), generator=g)
        pixels = clip_pixels(to_unit(pictures[rows]).movedim(1, -1), SIDE)
        embeds = model.encoder(pixels).image_embeds
        single, double = rows[~pairs[rows]], rows[pairs[rows]]
        parts = [cross_entropy(head(embeds[~pairs[rows]]), one[name][single]) for name, head in model.one.items()]
        parts += [cross_entropy(head(embeds[pairs[rows]]), two[name][double]) for name, head in model.two.items()] if len(double) else []
        parts += [cross_entropy(model.one["style"](embeds), one["style"][rows])]
        return torch.stack(parts).sum() + 1e-3 * embeds.square().mean()

    return fit(folder / "vision.pt", model, loss, steps, RATE).encoder
