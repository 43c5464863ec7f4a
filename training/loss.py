"""The training objective: what is drawn for each sample, what is left out, and the weighted error of the prediction.

Every random number is a function of the seed and the sample's place in the stream. So nothing random has to be saved, and the
numbers do not depend on how many processes share the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .config import Settings

Features = dict[str, Tensor]


def generator(*numbers: int | str) -> torch.Generator:
    """A generator that is seeded by all of `numbers`."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class Draws:
    """timesteps [b], share [b] in 0..1 (which samples lose what), posterior and noise [b, c, h, w], offset [b, c, 1, 1]."""

    timesteps: Tensor
    share: Tensor
    posterior: Tensor
    noise: Tensor
    offset: Tensor


def draw(seed: int, positions: Sequence[int], shape: tuple[int, ...], timesteps: int) -> Draws:
    """Numbers for the samples at these places of the stream; shape: of one latent [c, h, w]."""
    rows = []
    for position in positions:
        g = generator(seed, "sample", position)
        rows.append((
            torch.randint(timesteps, (), generator=g), torch.rand((), generator=g), torch.randn(shape, generator=g),
            torch.randn(shape, generator=g), torch.randn((shape[0], 1, 1), generator=g),
        ))  # fmt: skip
    return Draws(*(torch.stack(column) for column in zip(*rows, strict=True)))


def drop(features: Features, none: Mapping[str, Tensor], share: Tensor, settings: Settings) -> Features:
    """Puts what `none` has (no picture, no text) in place of a sample's own where its share falls to the image, the text or both."""
    image, text, both = (getattr(settings, f"drop_{name}") for name in ("image", "text", "both"))
    without_image = (share < image) | (share >= 1 - both)
    without_text = ((share >= image) & (share < image + text)) | (share >= 1 - both)
    rows = {"image": without_image, "face": without_image, "text": without_text, "pooled": without_text}

    def chosen(name: str, value: Tensor) -> Tensor:
        if name not in rows:
            return value
        mask = rows[name].to(value.device).view(-1, *[1] * (value.ndim - 1))
        return torch.where(mask, none[name].to(value), value)

    return {name: chosen(name, value) for name, value in features.items()}


def loss_weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """min-SNR weights [b] (arXiv 2303.09556): min(SNR, gamma) / SNR for noise prediction, / (SNR + 1) for v-prediction."""
    alpha = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].double()
    snr = alpha / (1 - alpha)
    over = snr + 1 if scheduler.config.prediction_type == "v_prediction" else snr
    return (snr.clamp(max=gamma) / over).float()


def training_loss(
    predict: Callable[[Tensor, Tensor, Features], Tensor],
    scheduler: Any,
    features: Features,
    none: Mapping[str, Tensor],
    draws: Draws,
    settings: Settings,
) -> Tensor:
    """The mean loss of a batch. predict(noisy latents, timesteps, features) is the UNet with the adapter on it.

    features: latents [b, c, h, w], deviation (of the VAE's posterior, or none), text, pooled, time_ids, image, face.
    """
    latents = features["latents"]
    device = latents.device
    if "deviation" in features:
        latents = latents + features["deviation"] * draws.posterior.to(device)
    noise = draws.noise.to(device) + settings.noise_offset * draws.offset.to(device)
    timesteps = draws.timesteps.to(device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    predicted = predict(noisy, timesteps, drop(features, none, draws.share, settings))
    errors = (predicted.float() - target).pow(2).mean(dim=(1, 2, 3))
    if settings.min_snr:
        errors = errors * loss_weights(scheduler, timesteps, settings.min_snr)
    return errors.mean()
