"""Reads what a picture shows: a small convolutional network that shares nothing with the image encoder, trained on drawn pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from training.loss import generator

from .fit import fit
from .pictures import draw_many, to_unit
from .scenes import COLOURS, POSITIONS, SHAPES, SIZES, STYLES, Scene

CHOICES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES), "position": tuple(POSITIONS),
    "background": tuple(COLOURS), "style": STYLES,
}  # fmt: skip
BATCH, STEPS = 64, 2500


class Reader(nn.Module):
    """Pictures [n, 3, 64, 64] in 0..1 -> logits for each attribute."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)

        def block(a: int, b: int, kernel: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, kernel, 2, kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

        self.body = nn.Sequential(*block(3, 32, 5), *block(32, 48, 3), *block(48, 64, 3), *block(64, 96, 3), nn.Flatten())
        self.neck = nn.Sequential(nn.Linear(96 * 16, 192), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(CHOICES[name])) for name in CHOICES})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        x = self.neck(self.body(pictures * 2 - 1))
        return {name: head(x) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pictures: Tensor) -> list[dict[str, str]]:
        """What each picture shows."""
        found = {name: logits.argmax(-1).tolist() for name, logits in self(pictures).items()}
        return [{name: CHOICES[name][rows[i]] for name, rows in found.items()} for i in range(len(pictures))]


def labels(scenes: list[Scene]) -> dict[str, Tensor]:
    """The place of each scene's value in CHOICES, for each attribute."""
    return {name: torch.tensor([choices.index(getattr(scene, name)) for scene in scenes]) for name, choices in CHOICES.items()}


def shaken(pictures: Tensor, g: torch.Generator) -> Tensor:
    """Pictures in 0..1 with other brightness, noise and sharpness: what a generated picture may have."""
    n = len(pictures)
    gain = 1 + 0.1 * torch.randn(n, 3, 1, 1, generator=g)
    shift = 0.04 * torch.randn(n, 3, 1, 1, generator=g)
    noise = 0.06 * torch.rand(n, 1, 1, 1, generator=g) * torch.randn(pictures.shape, generator=g)
    soft = interpolate(interpolate(pictures, scale_factor=0.5, mode="area"), scale_factor=2, mode="bilinear")
    mix = torch.rand(n, 1, 1, 1, generator=g)
    return ((pictures * (1 - mix) + soft * mix) * gain + shift + noise).clamp(0, 1)


def train(folder: Path, count: int = 16000, steps: int = STEPS) -> Reader:
    """On pictures of its own (split "reader")."""
    reader = Reader()
    scenes, pictures = draw_many("reader", count)
    told = labels(scenes)

    def loss(step: int) -> Tensor:
        g = generator("reader", step)
        rows = torch.randint(len(pictures), (BATCH,), generator=g)
        found = reader(shaken(to_unit(pictures[rows]), g))
        return torch.stack([cross_entropy(logits, told[one][rows]) for one, logits in found.items()]).sum()

    fit(folder / "reader.pt", reader, loss, steps, 2e-3)
    return reader.eval()


def accuracy(reader: Reader, told: dict[str, Tensor], pictures: Tensor) -> dict[str, float]:
    """The share of right readings of uint8 pictures, for each attribute."""
    with torch.no_grad():
        found = reader(to_unit(pictures))
    return {name: float((logits.argmax(-1) == told[name]).float().mean()) for name, logits in found.items()}
