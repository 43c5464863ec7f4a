"""What is measured of an adapter beside others: several adapters, a LoRA, a fine-tuned base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support import lab
from support.measures import Shares, single, weighted
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
