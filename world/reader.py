"""Reads what a picture shows: small convolutional networks that share nothing with the image encoder, trained on drawn pictures.

`whole` reads a picture of one thing, `half` reads a half of a picture with a thing in each half.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from training.loss import generator

from .fit import fit
from .pictures import draw_many, to_unit
from .scenes import COLOURS, POSITIONS, SHAPES, SIZES, STYLES, Scene, get

CHOICES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES), "position": tuple(POSITIONS),
    "background": tuple(COLOURS), "style": STYLES,
}  # fmt: skip
HALF = ("shape", "colour", "background", "style")
BATCH, STEPS = 64, 2500


class Reader(nn.Module):
    """Pictures [n, 3, 64, w] in 0..1 -> logits for each attribute; w is 64, or 32 for a half."""

    def __init__(self, width: int, attributes: tuple[str, ...]):
        super().__init__()

        def block(a: int, b: int, kernel: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, kernel, 2, kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

        self.body = nn.Sequential(*block(3, 32, 5), *block(32, 48, 3), *block(48, 64, 3), *block(64, 96, 3), nn.Flatten())
        self.neck = nn.Sequential(nn.Linear(96 * 4 * (width // 16), 192), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(CHOICES[name])) for name in attributes})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        x = self.neck(self.body(pictures * 2 - 1))
        return {name: head(x) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pictures: Tensor) -> list[dict[str, str]]:
        """What each picture shows."""
        found = {name: logits.argmax(-1).tolist() for name, logits in self(pictures).items()}
        return [{name: CHOICES[name][rows[i]] for name, rows in found.items()} for i in range(len(pictures))]


def labels(scenes: list[Scene], attributes: tuple[str, ...], thing: int = 0) -> dict[str, Tensor]:
    """The place of each scene's value in CHOICES, for each attribute."""
    return {name: torch.tensor([CHOICES[name].index(get(scene, name, thing)) for scene in scenes]) for name in attributes}


def shaken(pictures: Tensor, g: torch.Generator) -> Tensor:
    """Pictures in 0..1 with other brightness, noise and sharpness: what a generated picture may have."""
    n = len(pictures)
    gain = 1 + 0.1 * torch.randn(n, 3, 1, 1, generator=g)
    shift = 0.04 * torch.randn(n, 3, 1, 1, generator=g)
    noise = 0.06 * torch.rand(n, 1, 1, 1, generator=g) * torch.randn(pictures.shape, generator=g)
    soft = interpolate(interpolate(pictures, scale_factor=0.5, mode="area"), scale_factor=2, mode="bilinear")
    mix = torch.rand(n, 1, 1, 1, generator=g)
    return ((pictures * (1 - mix) + soft * mix) * gain + shift + noise).clamp(0, 1)


def halves(scenes: list[Scene], pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Labels and halves of pictures with two things: all left halves, then all right ones."""
    both = [labels(scenes, HALF, thing) for thing in (0, 1)]
    side = pictures.shape[-1] // 2
    return {name: torch.cat([part[name] for part in both]) for name in HALF}, torch.cat(list(pictures.split(side, dim=-1)))


def _train(name: str, reader: Reader, told: dict[str, Tensor], pictures: Tensor, folder: Path, steps: int) -> Reader:
    def loss(step: int) -> Tensor:
        g = generator(name, step)
        rows = torch.randint(len(pictures), (BATCH,), generator=g)
        found = reader(shaken(to_unit(pictures[rows]), g))
        return torch.stack([cross_entropy(logits, told[one][rows]) for one, logits in found.items()]).sum()

    fit(folder / f"{name}.pt", reader, loss, steps, 2e-3)
    return reader.eval()


def whole_reader() -> Reader:
    torch.manual_seed(4)
    return Reader(64, tuple(CHOICES))


def half_reader() -> Reader:
    torch.manual_seed(5)
    return Reader(32, HALF)


def train(folder: Path, count: int = 16000, steps: int = STEPS) -> tuple[Reader, Reader]:
    """whole and half, on pictures of their own (split "reader")."""
    scenes, pictures = draw_many("reader", count, pairs=0.0)
    whole = _train("reader_whole", whole_reader(), labels(scenes, tuple(CHOICES)), pictures, folder, steps)
    scenes, pictures = draw_many("reader pairs", count // 2, pairs=1.0)
    half = _train("reader_half", half_reader(), *halves(scenes, pictures), folder, steps)
    return whole, half


def accuracy(reader: Reader, told: dict[str, Tensor], pictures: Tensor) -> dict[str, float]:
    """The share of right readings of uint8 pictures, for each attribute."""
    with torch.no_grad():
        found = reader(to_unit(pictures))
    return {name: float((logits.argmax(-1) == told[name]).float().mean()) for name, logits in found.items()}
