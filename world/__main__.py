"""python3 dev.py world: makes the pictures, reader, models and adapters of the tiny world from nothing; goes on where it was stopped.

Everything comes from fixed seeds. What is made on the way stays in .cache/world; the result is world/models.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from . import adapters, autoencoder, layout, outlined, reader, text, unet, vision, warm
from .pictures import draw_many, pool, to_unit

REPO = Path(__file__).resolve().parents[1]
WORK, MODELS = REPO / ".cache" / "world", REPO / "world" / "models"
PICTURES = 24_000
log = logging.getLogger(__name__)


class World:
    """The stages, each of which takes what the earlier ones left in WORK."""

    def __init__(self, steps: float = 1.0):
        WORK.mkdir(parents=True, exist_ok=True)
        self.share = steps
        self.tokenizer = MODELS / "tokenizer"
        text.write_tokenizer(self.tokenizer)
        self.figures: dict[str, Any] = {}

    def steps(self, count: int) -> int:
        return max(1, round(count * self.share))

    def timed(self, name: str, stage: Callable[[], Any]) -> Any:
        started = time.monotonic()
        found = stage()
        log.info("%s: %.0f s", name, time.monotonic() - started)
        return found

    def reader(self) -> None:
        found = reader.train(WORK, steps=self.steps(reader.STEPS))
        scenes, pictures = draw_many("test", 4000)
        self.figures["reader"] = reader.accuracy(found, reader.labels(scenes), pictures)
        state = {key: value.half() if value.is_floating_point() else value for key, value in found.state_dict().items()}
        save_file(state, MODELS / "reader.safetensors")

    def checkpoint(self, scenes: Any, pictures: torch.Tensor) -> tuple[unet.Model, Any]:
        vae = self.timed("autoencoder", lambda: autoencoder.train(pictures, WORK, self.steps(autoencoder.STEPS)))
        kept = WORK / "latents.pt"
        if not kept.exists():
            torch.save(autoencoder.encode(vae, pictures), kept)
        latents = torch.load(kept, weights_only=True)
        vae = self.timed("decoder", lambda: autoencoder.refine(vae, pictures, latents, WORK, self.steps(autoencoder.REFINE)))
        tokens = text.tokenizer(self.tokenizer)
        model = self.timed("UNet", lambda: unet.train(scenes, latents, tokens, WORK, self.steps(unet.STEPS)))
        fresh = draw_many("test", 200)[1]
        decoded = autoencoder.decode(vae, autoencoder.encode(vae, fresh))
        self.figures["autoencoder, mean difference"] = float((decoded - to_unit(fresh)).abs().mean())
        return model, vae

    def run(self) -> None:
        scenes, pictures = self.timed("pictures", lambda: pool(WORK, PICTURES))
        self.timed("reader", self.reader)
        model, vae = self.checkpoint(scenes, pictures)
        encoder = self.timed("image encoder", lambda: vision.train(scenes, pictures, WORK, self.steps(vision.STEPS)))
        self.save(model, vae, encoder)
        self.adapters(scenes, pictures, encoder)
        self.fine_tuned(scenes)
        (MODELS / "figures.json").write_text(json.dumps(self.figures, indent=1) + "\n")

    def adapters(self, scenes: Any, pictures: torch.Tensor, encoder: Any) -> None:
        tokens, checkpoint = text.tokenizer(self.tokenizer), MODELS / "checkpoints" / "tiny-world.safetensors"
        model = layout.load_checkpoint(checkpoint, tokens)[0]
        begun = self.timed("where plus begins", lambda: warm.train(model, tokens, encoder, scenes, pictures, WORK, self.steps(warm.STEPS)))
        for family, (count, _) in adapters.FAMILIES.items():
            start = begun if family == "plus" else None
            train = partial(adapters.train, WORK / "base", WORK / "encoder", WORK, family, self.steps(count), start)
            (MODELS / "ipadapter").mkdir(exist_ok=True)
            shutil.copy(self.timed(family, train), MODELS / "ipadapter" / f"tiny-world_{family}.safetensors")

    def fine_tuned(self, scenes: Any) -> None:
        """A checkpoint in WORK, too large to be committed, and a LoRA beside the models."""
        tokens, file = text.tokenizer(self.tokenizer), MODELS / "checkpoints" / "tiny-world.safetensors"
        before, (after, vae) = layout.load_checkpoint(file, tokens)[0], layout.load_checkpoint(file, tokens)
        latents = torch.load(WORK / "latents.pt", weights_only=True)
        self.timed("fine-tuned UNet", lambda: outlined.train(after, scenes, latents, tokens, WORK, self.steps(outlined.STEPS)))
        layout.save_checkpoint(WORK / "tiny-world-outlined.safetensors", after, vae)
        (MODELS / "loras").mkdir(exist_ok=True)
        outlined.save_lora(MODELS / "loras" / "tiny-world-outlined.safetensors", before.unet, after.unet)

    def save(self, model: unet.Model, vae: Any, encoder: Any) -> None:
        """The files for ComfyUI, and what they hold once more in diffusers' and transformers' layout for the trainer."""
        (MODELS / "checkpoints").mkdir(exist_ok=True)
        (MODELS / "clip_vision").mkdir(exist_ok=True)
        layout.save_checkpoint(MODELS / "checkpoints" / "tiny-world.safetensors", model, vae)
        layout.save_encoder(MODELS / "clip_vision" / "tiny-world.safetensors", encoder)
        layout.restore(MODELS, WORK)


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py world", description="Make the tiny world's models from nothing.")
    parser.add_argument("--share", type=float, default=1.0, help="the share of the training steps (for a look; 1 makes what is committed)")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    World(parser.parse_args().share).run()


if __name__ == "__main__":
    main()
