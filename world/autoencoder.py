"""The autoencoder: TAESD's layout at half its width, trained on the world's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, l1_loss

from training.loss import generator

from .fit import fit
from .pictures import to_unit

WIDTH = 32
CROP, BATCH, STEPS, REFINE = 32, 16, 2700, 2500


def new() -> Any:
    torch.manual_seed(1)
    model = AutoencoderTiny(encoder_block_out_channels=(WIDTH,) * 4, decoder_block_out_channels=(WIDTH,) * 4)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if name.endswith("conv.4"):  # the last one of a residual block
                module.weight.data.mul_(0.25)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def crops(pictures: Tensor, step: int) -> Tensor:
    """A batch of crops in 0..1 on the 8 pixel grid of the latents."""
    g = generator("autoencoder", step)
    rows = torch.randint(len(pictures), (BATCH,), generator=g)
    x, y = 8 * torch.randint((pictures.shape[-1] - CROP) // 8 + 1, (2, BATCH), generator=g)
    return to_unit(torch.stack([pictures[r, :, j : j + CROP, i : i + CROP] for r, i, j in zip(rows, x, y, strict=True)]))


def edges(x: Tensor) -> Tensor:
    """Weights [b, 1, h, w] about 1: shapes are told by their edges, which are a small part of a picture."""
    wide = avg_pool2d(x, 5, 1, 2, count_include_pad=False)
    weight = 1 + 8 * (x - wide).abs().mean(1, keepdim=True)
    return weight / weight.mean()


def distance(y: Tensor, x: Tensor) -> Tensor:
    """How far pictures y are from x, edges counting more."""
    return (edges(x) * ((y - x).abs() + 2 * (y - x).square())).mean()


def train(pictures: Tensor, folder: Path, steps: int = STEPS) -> Any:
    """pictures [n, 3, 64, 64], uint8. Latents come out with about unit variance, as a UNet wants them."""
    model = new()

    def loss(step: int) -> Tensor:
        x = crops(pictures, step) * 2 - 1
        z = model.encode(x).latents
        noise = 0.05 * torch.randn(z.shape, generator=generator("latent noise", step))
        y = model.decode(z + noise).sample
        coarse = l1_loss(interpolate(y, scale_factor=0.25, mode="area"), interpolate(x, scale_factor=0.25, mode="area"))
        spread = z.mean((0, 2, 3)).square().mean() + (z.std((0, 2, 3)) - 1).square().mean()
        return distance(y, x) + coarse + 0.05 * spread

    return fit(folder / "autoencoder.pt", model, loss, steps, 2e-3, decay=0.99, every=100)


def refine(model: Any, pictures: Tensor, latents: Tensor, folder: Path, steps: int = REFINE) -> Any:
    """Trains the decoder further on whole pictures [n, 3, h, w] and the latents [n, 4, h/8, w/8] that the encoder, left as it is, gives."""

    def loss(step: int) -> Tensor:
        g = generator("decoder", step)
        rows = torch.randint(len(pictures), (BATCH // 2,), generator=g)
        x, z = to_unit(pictures[rows]) * 2 - 1, latents[rows]
        return distance(model.decode(z + 0.05 * torch.randn(z.shape, generator=g)).sample, x)

    model.requires_grad_(True).encoder.requires_grad_(False)
    return fit(folder / "decoder.pt", model, loss, steps, 1e-3, decay=0.99)


@torch.no_grad()
def encode(model: Any, pictures: Tensor) -> Tensor:
    """uint8 pictures [n, 3, h, w] -> latents [n, 4, h/8, w/8]."""
    return torch.cat([model.encode(to_unit(part) * 2 - 1).latents for part in pictures.split(64)])


@torch.no_grad()
def decode(model: Any, latents: Tensor) -> Tensor:
    """Latents -> pictures in 0..1."""
    return torch.cat([(model.decode(part).sample / 2 + 0.5).clamp(0, 1) for part in latents.split(64)])
