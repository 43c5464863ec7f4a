"""The adapters, trained with this repository's own trainer on the frozen UNet.

Every sample has a reference: another drawing of what the picture shows, except for what the caption says, which DIFFERS of the
references show differently. So the text decides what it names, and the picture decides the rest.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.config import Precompute, Settings
from training.loop import train as run
from training.precompute import precompute

from .scenes import ATTRIBUTES, Scene, caption, draw, random_scene

COUNT, BATCH = 9000, 32
DIFFERS = 0.9  # of the references whose caption names something
FAMILIES = {"standard": (3000, 1e-3), "plus": (3000, 3e-4)}  # steps and learning rate; plus goes on from what warm.py made


def sample(index: int) -> tuple[Scene, frozenset[str], Scene]:
    """What is drawn, what the caption says of it, and what the reference shows."""
    rng = random.Random(f"adapter {index}")
    scene = random_scene(rng)
    said = frozenset(rng.sample(ATTRIBUTES, rng.choice((0, 0, 1, 1, 2, 3))))
    if rng.random() >= DIFFERS:
        return scene, said, scene
    other = random_scene(rng)
    shown = replace(scene, **{name: getattr(other, name) for name in said})
    return scene, said, scene if shown.colour == shown.background else shown


def write_data(folder: Path, count: int = COUNT) -> None:
    """A data folder as the trainer takes it; nothing where it is whole."""
    if (folder / "metadata.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        scene, said, shown = sample(i)
        for name, one in (("a", scene), ("b", shown)):
            draw(one, random.Random(f"adapter {i} {name}")).save(folder / f"{i:05d}{name}.png")
        lines.append(json.dumps({"file_name": f"{i:05d}a.png", "reference": f"{i:05d}b.png", "text": caption(scene, said)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def train(base: Path, encoder: Path, folder: Path, family: str, steps: int, start: Path | None = None) -> Path:
    """Precomputes the features of the data in `folder`/data, trains, new or on from the file `start`, and gives the file."""
    write_data(folder / "data")
    common: dict[str, Any] = dict(base=str(base), image_encoder=str(encoder), family=family, resolution=64, batch_size=BATCH)
    features = folder / f"features_{family}"
    if not (features / "precomputed.safetensors").exists():
        shutil.rmtree(features, ignore_errors=True)
        precompute(Precompute(**common, data=str(folder / "data"), out=str(features)))
    settings = Settings(
        **common, data=str(features), out=str(folder / "adapters"), name=f"world_{family}", steps=steps, learning_rate=FAMILIES[family][1],
        schedule="cosine", warmup=50, min_snr=5.0, ema=0.99, continue_from=str(start or ""), save_every=500, resume=True,
    )  # fmt: skip
    file = run(settings).file
    assert file
    return file
