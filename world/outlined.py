"""A fine-tuned base: the UNet trained a little further on outlined pictures alone, and what changed as a LoRA."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from . import unet
from .fit import fit
from .scenes import Scene

STEPS, RATE, RANK = 300, 3e-4, 4


def train(model: unet.Model, scenes: list[Scene], latents: Tensor, tokens: CLIPTokenizer, folder: Path, steps: int = STEPS) -> unet.Model:
    """`model`, changed in place; latents [n, 4, 8, 8] of the scenes' pictures, of which only the outlined ones are taken."""
    rows = [i for i, scene in enumerate(scenes) if scene.style == "outlined"]
    model.requires_grad_(True)
    loss = unet.Loss(model, tokens, [scenes[row] for row in rows], latents[rows], "outlined", text_steps=0)
    fit(folder / "outlined.pt", model, loss, steps, RATE)
    return model.eval().requires_grad_(False)


def save_lora(path: Path, before: nn.Module, after: nn.Module, rank: int = RANK) -> None:
    """The best `rank` directions of every changed matrix in the UNets' attention blocks, with kohya's names."""
    old, tensors = before.state_dict(), {}
    for name, value in after.state_dict().items():
        if ".attentions." in name and value.ndim == 2:
            u, s, v = torch.linalg.svd(value - old[name], full_matrices=False)
            root = s[:rank].sqrt()
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            tensors[f"{key}.lora_up.weight"] = (u[:, :rank] * root).half().contiguous()
            tensors[f"{key}.lora_down.weight"] = (root[:, None] * v[:rank]).half().contiguous()
            tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, path)
