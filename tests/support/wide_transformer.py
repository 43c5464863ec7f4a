"""Flux and SD3.5 Large at their published sizes, of whose blocks only the chosen ones have weights, and adapters of the published sizes."""

import zlib
from typing import Any
from unittest import mock

import torch

from support import synth
from support import whole_transformer as whole

SIZES = {"flux": whole.Sizes(24, 128, 4096, 768, (16, 56, 56)), "sd3": whole.Sizes(38, 64, 4096, 2048)}
WEIGHTS = {"flux": 11_901_408_320, "sd3": 8_056_627_520}  # of all parts that learn, as the publishers count
NUMBERS = 1 << 20  # of noise, which is repeated where a weight has more: drawing billions takes minutes


def noise(name, shape, scale=1.0, dtype=torch.bfloat16):
    """In place of synth.noise."""
    drawn = torch.empty(NUMBERS, dtype=dtype).uniform_(-scale, scale, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    made = torch.empty(shape, dtype=dtype)
    for part in made.view(-1).split(NUMBERS):
        part.copy_(drawn[: len(part)])
    return made


def transformer(arch, *chosen: str) -> Any:
    """A ModelPatcher in bf16; chosen: "double_blocks.3" and the like."""
    built = whole.model_of(arch, SIZES[arch], torch.bfloat16, device="meta")
    inner = built.diffusion_model
    assert sum(weight.numel() for weight in inner.parameters()) == WEIGHTS[arch]
    whole.leave(inner, *chosen)
    inner.to_empty(device="cpu")
    for buffer in inner.buffers():
        buffer.zero_()
    with mock.patch.object(synth, "noise", noise):
        synth.fill(inner, f"wide {arch}")
    return whole.patcher(built, torch.bfloat16)


def adapter(family) -> dict[str, dict[str, torch.Tensor]]:
    """The state dicts of a published file, in bf16."""
    with mock.patch.object(synth, "noise", noise):
        if family == "flux-xlabs":  # the second version
            return whole.xlabs(16, 768, SIZES["flux"].text, 3072)
        if family == "flux-instantx":
            return whole.instantx(128, 1152, SIZES["flux"].text, 3072)
        return whole.sd3(64, 1152, 1280, 2432)


FEATURES = {"flux-xlabs": (1, 768), "flux-instantx": (1, 1152), "sd3-instantx": (1, 729, 1152)}


def features(family, tag="a") -> torch.Tensor:
    """What an encoder gives for one picture."""
    return synth.noise(f"features {tag}", FEATURES[family], 1.5)


def given(arch, rows=1, size=(32, 32)) -> dict[str, torch.Tensor]:
    """Latents, text and pooled text of a call."""
    return whole.given(arch, rows, size, SIZES[arch])
