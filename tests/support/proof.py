"""The tiny world in a real ComfyUI: pictures are made with the pack's own nodes, and a reader says what they show."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support import lab
from support.world_models import MODELS, REPO, import_world, reader

STEPS, GUIDANCE, BATCH = 20, 4.0, 50


@dataclass(frozen=True)
class Share:
    """How many of n were right, with Wilson's 95 % interval."""

    right: int
    n: int

    @property
    def value(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        z, p, n = 1.96, self.value, self.n
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.0f} to {100 * high:.0f}, n = {self.n})"


class World:
    """Models, reader and references. Needs a ComfyUI that lab.boot has started."""

    def __init__(self, pack: Mapping[str, Any]):
        import_world()
        import folder_paths

        import nodes
        from world import pictures, scenes

        lab.load_module("tiny_models_pack", Path(__file__).parent / "tiny_models_pack")
        for kind in ("checkpoints", "clip_vision", "ipadapter", "loras"):
            folder_paths.add_model_folder_path(kind, str(MODELS / kind))
        core: Any = nodes
        self.scenes, self.pictures, self.nodes, self.pack = scenes, pictures, core, pack
        self.model, self.clip, self.vae = lab.call(core.CheckpointLoaderSimple, ckpt_name="tiny-world.safetensors")
        (self.encoder,) = lab.call(core.CLIPVisionLoader, clip_name="tiny-world.safetensors")
        self.reader = reader()
        self._adapters: dict[str, Any] = {}

    def node(self, name: str) -> Any:
        return self.pack[name]

    def adapter(self, family: str) -> Any:
        if family not in self._adapters:
            file = f"tiny-world_{family}.safetensors"
            (self._adapters[family],) = lab.call(self.node("IPAdapterModelLoader"), ipadapter_file=file)
        return self._adapters[family]

    def references(self, split: str, count: int) -> tuple[list[Any], Tensor]:
        """Scenes and pictures [n, 64, 64, 3] in 0..1 that no training step saw."""
        found, drawn = self.pictures.draw_many(f"proof {split}", count)
        return found, drawn.movedim(1, -1).float() / 255

    def text(self, captions: Sequence[str]) -> list[Any]:
        """A CONDITIONING with a row for each caption."""
        rows = {caption: self.clip.encode_from_tokens(self.clip.tokenize(caption)) for caption in dict.fromkeys(captions)}
        return [[torch.cat([rows[caption] for caption in captions]), {}]]

    def apply(
        self, family: str, image: Tensor, weight: float = 1.0, model: Any = None, node: str = "IPAdapterBatch", **options: Any
    ) -> Any:
        """A model with the adapter on it; by default a reference for each latent."""
        given = dict(weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only", clip_vision=self.encoder)
        given |= dict(encode_batch_size=0) if node == "IPAdapterBatch" else dict(combine_embeds="concat")
        return lab.call(self.node(node), model=model or self.model, ipadapter=self.adapter(family), image=image, weight=weight,
                        **given | options)[0]  # fmt: skip

    def sample(self, model: Any, captions: Sequence[str], seed: int, negative: str = "", halves: int = 1, steps: int = STEPS) -> Tensor:
        """Pictures [n, 64, 64, 3] in 0..1, or twice as wide ones with two halves: one for each caption."""
        n = len(captions)
        latent = {"samples": torch.zeros(n, 4, 8, 8 * halves)}
        texts = self.text(captions), self.text([negative])
        (found,) = self.nodes.common_ksampler(model, seed, steps, GUIDANCE, "ddim", "normal", *texts, latent)
        return self.vae.decode(found["samples"]).reshape(n, 64, 64 * halves, 3).clamp(0, 1)

    def made(
        self, references: Tensor, captions: Sequence[str], model_of: Any, batch: int = BATCH, halves: int = 1, steps: int = STEPS
    ) -> Tensor:
        """Pictures for references [n, ...] and captions, `batch` at a time; model_of(references, first) gives the model of a batch."""
        parts = []
        for first in range(0, len(captions), batch):
            part = references[first : first + batch]
            parts.append(self.sample(model_of(part, first), captions[first : first + batch], 1 + first, halves=halves, steps=steps))
        return torch.cat(parts)

    def read(self, made: Tensor) -> list[dict[str, str]]:
        """What pictures [n, 64, 64, 3] show."""
        return self.reader.read(made.movedim(-1, 1))

    def agreement(self, made: Tensor, wanted: Sequence[Any], attributes: Sequence[str]) -> dict[str, Share]:
        """For each attribute, in how many pictures it is that of the wanted scene (or dict of attributes)."""
        found = self.read(made)
        want = [one if isinstance(one, dict) else {name: getattr(one, name) for name in self.scenes.ATTRIBUTES} for one in wanted]
        return {name: Share(sum(a[name] == b[name] for a, b in zip(found, want, strict=True)), len(found)) for name in attributes}

    def random_scenes(self, seed: str, count: int) -> list[Any]:
        rng = random.Random(seed)
        return [self.scenes.random_scene(rng) for _ in range(count)]


def start(comfy: Path, base: Path) -> World:
    """Boots ComfyUI and the pack in this process."""
    lab.boot(comfy, base)
    return World(lab.load_module("ipadapter_pack", REPO).NODE_CLASS_MAPPINGS)
