"""The tiny world's trained models, which are committed in world/models, and what reads its pictures."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from support import lab
from support.server import link

REPO = Path(__file__).resolve().parents[2]
MODELS = REPO / "world" / "models"
PUBLISHED = {  # the published name that workflows ask for -> the world's file
    "checkpoints/v1-5-pruned-emaonly-fp16.safetensors": "checkpoints/tiny-world.safetensors",
    "clip_vision/CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors": "clip_vision/tiny-world.safetensors",
    "ipadapter/ip-adapter_sd15.safetensors": "ipadapter/tiny-world_standard.safetensors",
    "ipadapter/ip-adapter-plus_sd15.safetensors": "ipadapter/tiny-world_plus.safetensors",
}


def world_models(base: Path) -> Path:
    """A models folder with the tiny world's files under the published names that workflows ask for."""
    folder = base / "world-models"
    for name, file in PUBLISHED.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link(MODELS / file, target)
    return folder


def import_world() -> None:
    """Makes `world` importable without the repo root on sys.path, where its nodes/ would hide ComfyUI's nodes.py."""
    for name in ("ipadapter_core", "training", "world"):
        if name not in sys.modules:
            lab.load_module(name, REPO / name)


def scenes_module() -> Any:
    import_world()
    from world import scenes

    return scenes


@cache
def reader() -> Any:
    import_world()
    from world.reader import Reader

    found = Reader().eval()
    found.load_state_dict(load_file(MODELS / "reader.safetensors"))
    return found
