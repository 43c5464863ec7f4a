"""What is measured of an adapter beside others: several adapters, a LoRA, a fine-tuned base, the middle block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support import lab
from support.measures import ALL, NEUTRAL, Shares, single, weighted
from support.proof import World
from support.world_models import REPO

FINE_TUNED = REPO / ".cache" / "world" / "tiny-world-outlined.safetensors"


def both_adapters(world: World, n: int, weight: float = 0.5) -> Shares:
    """Standard and plus, one behind the other, with the same reference."""
    return single(world, n, lambda part, first: world.apply("plus", part, weight, world.apply("standard", part, weight)))


def lora(world: World, strength: float = 1.0) -> Any:
    """The model with the LoRA that draws outlines."""
    (found,) = lab.call(world.nodes.LoraLoaderModelOnly, model=world.model, lora_name="tiny-world-outlined.safetensors",
                        strength_model=strength)  # fmt: skip
    return found


def with_lora(world: World, n: int, family: str) -> Shares:
    return weighted(world, n, family, 1.0, lora(world))


def fine_tuned(world: World, n: int, family: str, file: Path = FINE_TUNED) -> Shares:
    """On the UNet that was trained further on outlined pictures: `python3 dev.py world` leaves it in .cache."""
    import comfy.sd

    model = comfy.sd.load_checkpoint_guess_config(str(file), output_clip=False)[0]
    return weighted(world, n, family, 1.0, model)




def published(world: World, n: int, family: str, method: str) -> Shares:
    """Image Prompt, whose methods differ in the middle block and in the picture of the negative side."""
    wanted, pictures = world.references("single", n)
    made = []
    for i in range(n):
        reference = dict(image=pictures[i : i + 1], weight=1.0, role="everything", fit="center crop", tiles=2)
        (chain,) = lab.call(world.node("ImagePromptReference"), **reference)
        given = dict(weight=1.0, join="side by side", method=method, clip_vision=world.encoder)
        (model,) = lab.call(world.node("ImagePrompt"), model=world.model, ipadapter=world.adapter(family), reference=chain, **given)
        made.append(world.sample(model, [NEUTRAL], i))
    return world.agreement(torch.cat(made), wanted, ALL)
