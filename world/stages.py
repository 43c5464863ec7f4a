"""The stages of making the tiny world, each of which goes on where it was stopped.

What is made on the way stays in .cache/world; the result is world/models.
"""

from __future__ import annotations

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
from .beside import beside
from .pictures import draw_many, pool, to_unit
from .scenes import Scene

REPO = Path(__file__).resolve().parents[1]
WORK, MODELS = REPO / ".cache" / "world", REPO / "world" / "models"
FOLDERS = "checkpoints", "clip_vision", "ipadapter", "loras", "tokenizer"
PICTURES, FRESH = 24_000, 4_000
log = logging.getLogger(__name__)


class World:
    """The stages, each of which takes what the earlier ones left in `work`; the files for ComfyUI come into `models`."""

    def __init__(self, share: float = 1.0, work: Path = WORK, models: Path = MODELS):
        self.share, self.work, self.models = share, work, models
        self.tokenizer, self.latents = models / "tokenizer", work / "latents.pt"
        self.checkpoint, self.clip_vision = (models / folder / "tiny-world.safetensors" for folder in FOLDERS[:2])

    def steps(self, count: int) -> int:
        return max(1, round(count * self.share))

    def timed(self, name: str, stage: Callable[[], Any]) -> Any:
        started = time.monotonic()
        found = stage()
        log.info("%s: %.0f s", name, time.monotonic() - started)
        return found

    def pool(self) -> tuple[list[Scene], torch.Tensor]:
        return pool(self.work, PICTURES)

    def autoencoder(self) -> None:
        """Autoencoder, latents of the pictures, the decoder's second training, and the pictures of the adapters."""
        pictures = self.pool()[1]
        vae = self.timed("autoencoder", lambda: autoencoder.train(pictures, self.work, self.steps(autoencoder.STEPS)))
        if not self.latents.exists():
            found = self.timed("latents", lambda: autoencoder.encode(vae, pictures))
            part = self.latents.with_suffix(".part")
            torch.save(found, part)
            part.replace(self.latents)
        latents = torch.load(self.latents, weights_only=True)
        self.timed("decoder", lambda: autoencoder.refine(vae, pictures, latents, self.work, self.steps(autoencoder.REFINE)))
        self.timed("data of the adapters", lambda: adapters.write_data(self.work / "data"))

    def encoder(self) -> None:
        """The image encoder, and what reads pictures."""
        self.timed("image encoder", lambda: vision.train(*self.pool(), self.work, self.steps(vision.STEPS)))
        self.timed("reader", lambda: reader.train(self.work, steps=self.steps(reader.STEPS)))

    def text_to_image(self) -> unet.Model:
        latents, tokens = torch.load(self.latents, weights_only=True), text.tokenizer(self.tokenizer)
        return unet.train(self.pool()[0], latents, tokens, self.work, self.steps(unet.STEPS))

    def standard(self) -> None:
        self.adapter("standard")
        self.timed("fine-tuned UNet", self.fine_tuned)

    def start_of_plus(self) -> Path:
        tokens = text.tokenizer(self.tokenizer)
        model, encoder = layout.load_checkpoint(self.checkpoint, tokens)[0], layout.load_encoder(self.clip_vision)
        return warm.train(model, tokens, encoder, *self.pool(), self.work, self.steps(warm.STEPS))

    def adapter(self, family: str, start: Path | None = None) -> None:
        count = self.steps(adapters.FAMILIES[family][0])
        train = partial(adapters.train, self.work / "base", self.work / "encoder", self.work, family, count, start)
        shutil.copy(self.timed(family, train), self.models / "ipadapter" / f"tiny-world_{family}.safetensors")

    def fine_tuned(self) -> None:
        """A checkpoint in `work`, too large to be committed, and a LoRA beside the models."""
        tokens, latents = text.tokenizer(self.tokenizer), torch.load(self.latents, weights_only=True)
        before, (after, vae) = layout.load_checkpoint(self.checkpoint, tokens)[0], layout.load_checkpoint(self.checkpoint, tokens)
        outlined.train(after, self.pool()[0], latents, tokens, self.work, self.steps(outlined.STEPS))
        layout.save_checkpoint(self.work / "tiny-world-outlined.safetensors", after, vae)
        outlined.save_lora(self.models / "loras" / "tiny-world-outlined.safetensors", before.unet, after.unet)

    def run(self) -> None:
        for folder in (self.work, *(self.models / name for name in FOLDERS)):
            folder.mkdir(parents=True, exist_ok=True)
        text.write_tokenizer(self.tokenizer)
        self.timed("pictures", self.pool)
        beside(self.autoencoder, self.encoder)
        self.save(self.timed("UNet", self.text_to_image))
        start = self.timed("where plus begins", self.start_of_plus)
        beside(self.standard, partial(self.adapter, "plus", start))

    def save(self, model: unet.Model) -> None:
        """The files for ComfyUI, what they hold once more in diffusers' and transformers' layout for the trainer, and the figures."""
        scenes, pictures = self.pool()
        latents = torch.load(self.latents, weights_only=True)
        vae = autoencoder.refine(autoencoder.new(), pictures, latents, self.work, self.steps(autoencoder.REFINE))
        layout.save_checkpoint(self.checkpoint, model, vae)
        layout.save_encoder(self.clip_vision, vision.train(scenes, pictures, self.work, self.steps(vision.STEPS)))
        layout.restore(self.models, self.work)
        found = reader.train(self.work, steps=self.steps(reader.STEPS))
        state = {key: value.half() if value.is_floating_point() else value for key, value in found.state_dict().items()}
        save_file(state, self.models / "reader.safetensors")
        scenes, pictures = draw_many("test", FRESH)
        right = reader.accuracy(found, reader.labels(scenes), pictures)
        fresh = pictures[:200]
        decoded = autoencoder.decode(vae, autoencoder.encode(vae, fresh))
        off = float((decoded - to_unit(fresh)).abs().mean())
        figures = {"reader": right, "autoencoder, mean difference": off}
        (self.models / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
