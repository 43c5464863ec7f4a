"""Pictures of the world as tensors, kept in a file because drawing takes its time."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .scenes import Scene, scene_and_picture


def as_tensor(picture: Image.Image) -> Tensor:
    """[3, h, w], uint8."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).movedim(-1, 0)


def draw_many(split: str, count: int) -> tuple[list[Scene], Tensor]:
    """The first `count` scenes and pictures [n, 3, h, w] (uint8) of a split: "train", "test" and so on never share one."""
    drawn = [scene_and_picture(f"{split} {i}") for i in range(count)]
    return [scene for scene, _ in drawn], torch.stack([as_tensor(picture) for _, picture in drawn])


def pool(folder: Path, count: int) -> tuple[list[Scene], Tensor]:
    """The training pictures, drawn once into `folder`."""
    told, kept = folder / "pool.json", folder / "pool.npy"
    if not kept.exists():
        scenes, pictures = draw_many("train", count)
        told.write_text(json.dumps([asdict(scene) for scene in scenes]))
        np.save(kept, pictures.numpy())
    scenes = [Scene(**one) for one in json.loads(told.read_text())]
    return scenes, torch.from_numpy(np.load(kept))


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 -> float in 0..1."""
    return pictures.float() / 255
