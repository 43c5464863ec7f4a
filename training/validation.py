"""The validation grid: reference, without and with the adapter, from the same noise each time; and how far they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor

from ipadapter_core.pictures.preprocess import CLIP_MEAN, CLIP_STD, clip_pixels

from .adapter import KVs
from .base import Base
from .config import Settings
from .data import Sample
from .encoders import decode
from .loss import Features, generator
from .output import whole


@torch.no_grad()
def sample(base: Base, kvs: KVs, features: Features, none: Features, settings: Settings) -> Tensor:
    """Latents [n, 4, h, w] by DDIM from the settings' seed; kvs: K and V for [without the picture, with it], 2 n rows, or none."""
    scheduler: Any = DDIMScheduler.from_config(base.scheduler.config)
    scheduler.set_timesteps(settings.validation_steps)
    shape = features["latents"].shape
    noise = torch.stack([torch.randn(shape[1:], generator=generator(settings.seed, "validation", i)) for i in range(shape[0])])
    x = noise.to(features["latents"].device) * scheduler.init_noise_sigma
    both = {name: doubled(none[name], value) for name, value in features.items() if name in none}
    if "time_ids" in features:
        both["time_ids"] = torch.cat([features["time_ids"]] * 2)
    for t in scheduler.timesteps:
        steps = torch.full((2 * shape[0],), int(t), device=x.device)
        without, text = base.predict(kvs, torch.cat([x, x]), steps, both).float().chunk(2)
        x = scheduler.step(without + settings.guidance * (text - without), t, x).prev_sample
    return x


def doubled(none: Tensor, value: Tensor) -> Tensor:
    """[1, ...] and [n, ...] -> [2 n, ...], the rows without before those with."""
    return torch.cat([none.to(value).expand_as(value), value])


@dataclass
class Validation:
    """features [n, ...] of the validation pictures; references [n, h, w, 3] in 0..1, None to show the decoded latents;
    vae and encoder give the models (the encoder may be None), which are let go after each grid if nothing else holds them."""

    base: Base
    features: Features
    none: Features
    references: Tensor | None
    settings: Settings
    vae: Callable[[], Any]
    encoder: Callable[[], Any]

    def run(self, project: Callable[[Features], KVs], path: Path) -> dict[str, float]:
        """Writes the grid; gives the agreement (mean cosine of the image encoder's projected features of reference and result,
        -1..1) with and without the adapter, nothing where there is no encoder."""
        vae, features = self.vae(), self.features
        names = [name for name in ("image", "face") if name in features]
        with torch.no_grad():
            kvs = project({name: doubled(self.none[name], features[name]) for name in names})
        found = [decode(vae, sample(self.base, part, features, self.none, self.settings)) for part in ({}, kvs)]
        references = decode(vae, features["latents"]) if self.references is None else self.references
        save_grid([references, *found], path)
        encoder = self.encoder()
        if encoder is None:
            return {}
        shown, without, with_it = (embed(encoder, pictures) for pictures in (references, *found))
        return {"agreement": float((shown * with_it).sum(-1).mean()), "agreement_without": float((shown * without).sum(-1).mean())}


@torch.no_grad()
def embed(encoder: Any, pictures: Tensor) -> Tensor:
    """Unit vectors [n, e] of pictures [n, h, w, 3] in 0..1."""
    pixels = clip_pixels(pictures, encoder.config.image_size).to(encoder.device, encoder.dtype)
    return torch.nn.functional.normalize(encoder(pixels).image_embeds.float(), dim=-1).cpu()


def shown(samples: Sequence[Sample]) -> Tensor:
    """The references [n, h, w, 3] as the encoder sees them, or the pictures themselves where it sees none."""
    if "clip" not in samples[0]:
        return torch.stack([one["pixels"] for one in samples]).movedim(1, -1) / 2 + 0.5
    pixels = torch.stack([one["clip"] for one in samples]).movedim(1, -1)
    return (pixels * torch.tensor(CLIP_STD) + torch.tensor(CLIP_MEAN)).clamp(0, 1)


def save_grid(columns: Sequence[Tensor], path: Path) -> None:
    """A PNG with a row for each picture; columns: [n, h, w, 3] each."""
    side = columns[-1].shape[1]
    grid = Image.new("RGB", (len(columns) * side, len(columns[0]) * side))
    for x, column in enumerate(columns):
        for y, picture in enumerate(column):
            tile = Image.fromarray((picture.clamp(0, 1) * 255).round().byte().numpy())
            grid.paste(tile.resize((side, side), Image.Resampling.BICUBIC), (x * side, y * side))
    with whole(path, "free some space and go on with --resume") as part:
        grid.save(part, format="PNG")
