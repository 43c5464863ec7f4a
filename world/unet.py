"""The text-to-image UNet in SD 1.5's layout, trained together with the text encoder on latents of the world's pictures."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import CLIPTokenizer

from training.loss import generator

from . import text
from .fit import fit
from .scenes import Scene, caption, random_said

WIDTHS = (64, 64, 64, 64)
HEADS = 4
BATCH, STEPS, RATE = 32, 9000, 8e-4
TEXT_STEPS = 1000  # after these the text encoder stays as it is, which saves a quarter of the time
SETTLED = 2 / 3  # after this share of the steps the side of the text is as the file's 8 bits have it, and the rest learns with that
NO_TEXT = 0.1
EIGHT_BITS = torch.float8_e4m3fn
OF_TEXT = "attn2.to_k.weight", "attn2.to_v.weight"  # what projects the text, in diffusers' names and the file's
# every third batch, later every second, is of two pictures side by side, each with its own text, as masks of halves have it
WIDE, WIDE_SETTLED = 3, 2


class Model(nn.Module):
    """UNet and text encoder, which learn together."""

    def __init__(self, tokens: CLIPTokenizer):
        super().__init__()
        self.text = text.new(tokens)
        torch.manual_seed(3)
        down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
        up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
        self.unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=WIDTHS, cross_attention_dim=text.CONTEXT, attention_head_dim=HEADS,
            down_block_types=down, up_block_types=up,
        )  # fmt: skip
        for name, part in self.unet.named_modules():
            if name.endswith("attn2"):
                part.set_processor(HalvesProcessor())


class HalvesProcessor:
    """Cross-attention in which, where there are twice as many texts as pictures, each half of a wide picture attends to a text of its own.

    As with masks of regions. The first texts are those of the left halves.
    """

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None) -> Tensor:
        n, positions, _ = hidden_states.shape
        halves = len(encoder_hidden_states) // n
        side = math.isqrt(positions // halves)
        # a picture of two halves -> two pictures
        x = rearrange(hidden_states, "n (y half x) c -> (half n) (y x) c", half=halves, x=side)
        parts = attn.to_q(x), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts)
        out = attn.to_out[0](scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return rearrange(out, "(half n) (y x) c -> n (y half x) c", half=halves, x=side)


def scheduler() -> Any:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


class Loss:
    """Noise prediction; which picture, noise, time and caption is drawn depends on the step alone.

    The loss grows about with the root of the signal-to-noise ratio, so weights of one over it give every noise level an equal share, as
    the learned ones of EDM2 do (arXiv 2312.02696). What a shape is, is decided where the ratio is low.
    """

    def __init__(
        self, model: Model, tokens: CLIPTokenizer, scenes: list[Scene], latents: Tensor, seed: str, text_steps: int = TEXT_STEPS
    ):
        self.text_steps = text_steps
        self.model, self.tokens, self.scenes, self.latents, self.seed = model, tokens, scenes, latents, seed
        self.schedule = scheduler()
        alphas = self.schedule.alphas_cumprod
        weights = ((1 - alphas) / alphas).sqrt()
        self.weights = weights / weights.mean()

    def __call__(self, step: int, wide: int = WIDE) -> Tensor:
        g, rng = generator(self.seed, step), random.Random(f"{self.seed} {step}")
        rows = torch.randint(len(self.latents), (BATCH,), generator=g)
        captions = ["" if rng.random() < NO_TEXT else caption(self.scenes[row], random_said(rng)) for row in rows.tolist()]
        with torch.set_grad_enabled(step < self.text_steps):
            states = self.model.text(text.ids(self.tokens, captions)).last_hidden_state
        # one time in each of BATCH equal parts of the schedule
        times = ((torch.arange(BATCH) + torch.rand(BATCH, generator=g)) * (1000 / BATCH)).long()[torch.randperm(BATCH, generator=g)]
        clean = self.latents[rows]
        if step % wide == wide - 1:
            clean, times = torch.cat(clean.chunk(2), -1), times[: BATCH // 2]
        noise = torch.randn(clean.shape, generator=g)
        found = self.model.unet(self.schedule.add_noise(clean, noise, times), times, states).sample
        return ((found - noise).square().mean((1, 2, 3)) * self.weights[times]).mean()


def settle(model: Model) -> None:
    """Brings the matrices of the side of the text to what 8 bits have of them, which stays; nothing where that was done."""
    matrices = [weight for weight in model.text.parameters() if weight.ndim == 2]
    for weight in matrices + [weight for name, weight in model.unet.named_parameters() if name.endswith(OF_TEXT)]:
        if weight.requires_grad:
            weight.requires_grad_(False).copy_(weight.to(EIGHT_BITS))


def train(scenes: list[Scene], latents: Tensor, tokens: CLIPTokenizer, folder: Path, steps: int = STEPS) -> Model:
    """latents [n, 4, 8, 8] of the scenes' pictures."""
    model = Model(tokens)
    batch, settled = Loss(model, tokens, scenes, latents, "unet"), round(steps * SETTLED)

    def loss(step: int) -> Tensor:
        if step < settled:
            return batch(step)
        settle(model)
        return batch(step, WIDE_SETTLED)

    found: Any = fit(folder / "unet.pt", model, loss, steps, RATE, decay=0.998)
    # the running mean of the side of the text would lag behind what the rest learned with
    found.text = model.text.eval()
    for name, weight in found.unet.named_parameters():
        if name.endswith(OF_TEXT):
            weight.copy_(model.unet.get_parameter(name).detach())
    return found.requires_grad_(False)
