"""The trainer without the repo root on sys.path, and narrow models to train on, made once."""

import sys
from pathlib import Path

import pytest
import torch

from support import lab, tiny_base

REPO = Path(__file__).resolve().parents[2]

if "training" not in sys.modules:
    lab.load_module("training", REPO / "training")

torch.set_num_threads(1)


class Models:
    """Paths of base models, an image encoder and data; `settings` makes those of a short run on them."""

    def __init__(self, root: Path):
        self.root = root
        self.sd15 = tiny_base.base(root / "sd15", "sd15")
        self.encoder = tiny_base.image_encoder(root / "encoder", 64, 64)
        self.vit_h = tiny_base.image_encoder(root / "vit_h")
        self.data = tiny_base.folder(root / "data")
        self.faces = tiny_base.folder(root / "faces", face=512)

    def arguments(self, out: Path, **given) -> dict:
        """SD1.5 by default; faces as data where the family needs them."""
        data = self.faces if str(given.get("family", "")).startswith("faceid") else self.data
        kept = dict(base=self.sd15, image_encoder=self.encoder, data=data, out=out, resolution=64, batch_size=2, steps=2)
        kept |= dict(save_dtype="float32", seed=5) | given
        return {key: str(value) if isinstance(value, Path) else value for key, value in kept.items()}

    def settings(self, out: Path, **given):
        from training.config import Settings

        return Settings(**self.arguments(out, **given))


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Models:
    return Models(tmp_path_factory.mktemp("training"))


@pytest.fixture
def settings(models, tmp_path):
    """settings(**changes): those of a short run that writes into this test's own folder."""
    return lambda **given: models.settings(given.pop("out", tmp_path / "out"), **given)
