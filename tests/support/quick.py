"""Models of any size with random weights, made in seconds: torch's own noise in place of synth's, which is slow for a billion of them."""

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from support import lab, synth


@contextmanager
def noise():
    """synth and lab fill what they build with torch's uniform noise, the same at each run on one machine."""
    generator = torch.Generator().manual_seed(1)

    def uniform(name, shape, scale=1.0):
        return torch.empty(tuple(shape)).uniform_(-scale, scale, generator=generator)

    with mock.patch.object(synth, "noise", uniform):
        yield


def unet(arch, width=32, dtype=torch.float32):
    """lab.unet with quick noise; 320 channels wide it has the size and the layout of the published checkpoints."""
    with noise():
        return lab.unet(arch, width, dtype)


def clip_vision(layers=32):
    """ComfyUI's own ViT-H with `layers` layers (32: the published size, 632 million weights), in the dtype ComfyUI picks."""
    import comfy.clip_vision

    config = json.loads((Path(comfy.clip_vision.__file__).parent / "clip_vision_config_h.json").read_text())
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump({**config, "num_hidden_layers": layers}, file)
    made = comfy.clip_vision.ClipVisionModel(file.name)
    Path(file.name).unlink()
    with noise():
        synth.fill(made.model, "clip")
    return made


def save_adapter(path: Path, family, arch, width=32, dtype=torch.float32) -> int:
    """Write an adapter for a UNet of that width; returns the bytes of its weights."""
    with noise():
        state = synth.adapter(family, arch, synth.TINY if width == 32 else synth.FULL)
    state = {part: {key: value.to(dtype) for key, value in tensors.items()} for part, tensors in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    synth.save_adapter(state, path)
    return sum(value.nbytes for tensors in state.values() for value in tensors.values())
