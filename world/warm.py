"""Where plus begins: a projection whose tokens say what the picture's caption says, learned without the UNet.

K and V of a new adapter are copies of the text's, so tokens like the text encoder's states are understood from the first step on. A
Resampler that begins with random tokens has 41 % of the shapes after 3,000 steps of the trainer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from ipadapter_core.files.family import identify
from ipadapter_core.pictures.preprocess import clip_pixels
from training.adapter import Adapter, attentions_of, new_checkpoint, shapes_of
from training.loss import generator

from . import text, unet, vision
from .fit import fit
from .pictures import to_unit
from .scenes import Scene, caption

STEPS, BATCH, RATE = 3000, 128, 1e-3
WIDTH = 64


@torch.no_grad()
def features(encoder: Any, pictures: Tensor) -> Tensor:
    """The encoder's last states but one [n, t, w] (half precision) of pictures [n, 3, h, w] (uint8)."""
    parts = (clip_pixels(to_unit(part).movedim(1, -1), vision.SIDE) for part in pictures.split(256))
    return torch.cat([encoder(part, output_hidden_states=True).hidden_states[-2].half() for part in parts])


@torch.no_grad()
def states(model: unet.Model, tokens: CLIPTokenizer, scenes: list[Scene]) -> Tensor:
    """The states [n, t, w] (half precision) of the scenes' captions: as many tokens as plus has."""
    ids = text.ids(tokens, [caption(scene) for scene in scenes])
    return torch.cat([model.text(part).last_hidden_state.half() for part in ids.split(128)])


class Loss:
    """The square of the difference as a share of the states' variance."""

    def __init__(self, projection: Any, features: Tensor, states: Tensor):
        self.projection, self.features, self.states = projection, features, states

    def __call__(self, step: int) -> Tensor:
        rows = torch.randint(len(self.features), (BATCH,), generator=generator("warm", step))
        wanted = self.states[rows].float()
        return (self.projection(self.features[rows].float()) - wanted).square().mean() / wanted.var()


def train(
    model: unet.Model, tokens: CLIPTokenizer, encoder: Any, scenes: list[Scene], pictures: Tensor, folder: Path, steps: int = STEPS
) -> Path:
    """The file that the trainer goes on from."""
    checkpoint = new_checkpoint("plus", "SD1.5", attentions_of(model.unet, "SD1.5"), vision.HIDDEN, WIDTH, seed=0)
    adapter = Adapter(checkpoint, identify(shapes_of(checkpoint), "plus.safetensors"))
    projection: Any = adapter.image_proj
    projection.norm_out.load_state_dict(model.text.text_model.final_layer_norm.state_dict())
    given = Loss(projection, features(encoder, pictures), states(model, tokens, scenes))
    fit(folder / "warm.pt", projection, given, steps, RATE)
    file = folder / "plus_start.safetensors"
    save_file({name: value.detach().half().contiguous() for name, value in adapter.state_dict().items()}, file)
    return file
