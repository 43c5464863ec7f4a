"""Narrow base models in diffusers' layout with random weights, an image encoder in transformers' layout, and pictures to train on."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from support import lab, reference_unet

WORDS = ("a", "red", "blue", "circle", "square", "on")
TEXT = {"sd15": [(768, None)], "sdxl": [(768, None), (1280, 1280)]}  # hidden width and projection of the text encoders
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
SIDE = 64


def tokenizer(folder: Path) -> None:
    """A CLIP tokenizer that knows letters and WORDS."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocab, merges = [*letters, *(letter + "</w>" for letter in letters)], []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts = [parts[0] + parts[1], *parts[2:]]
            vocab.append(parts[0])
    vocab = list(dict.fromkeys([*vocab, "<|startoftext|>", "<|endoftext|>"]))
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77).save_pretrained(folder)


def base(folder: Path, arch: str, prediction: str = "epsilon", tiny_vae: bool = False) -> Path:
    """A whole base model: unet, vae, text encoders, tokenizers, scheduler."""
    torch.manual_seed(3)
    reference_unet.unet(arch).save_pretrained(folder / "unet")
    if tiny_vae:
        vae: Any = AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
                                   num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1))  # fmt: skip
    else:
        blocks: dict[str, Any] = dict(block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4)
        blocks |= dict(up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4, layers_per_block=1)
        vae = AutoencoderKL(latent_channels=4, scaling_factor=0.18215, **blocks)
    vae.save_pretrained(folder / "vae")
    DDPMScheduler(**SCHEDULE, prediction_type=prediction).save_pretrained(folder / "scheduler")  # type: ignore[arg-type]
    for suffix, (width, projection) in zip(("", "_2"), TEXT[arch], strict=False):
        tokenizer(folder / f"tokenizer{suffix}")
        config = CLIPTextConfig(
            vocab_size=100, hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
            projection_dim=projection or 64, bos_token_id=98, eos_token_id=99, pad_token_id=99,
        )  # fmt: skip
        (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).save_pretrained(folder / f"text_encoder{suffix}")
    return folder


def image_encoder(folder: Path, hidden: int = 1280, projected: int = 1024) -> Path:
    """ViT-H's widths (or the given ones) in two layers of 16 tokens and a class token."""
    torch.manual_seed(4)
    config = CLIPVisionConfig(
        hidden_size=hidden, projection_dim=projected, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
        image_size=56, patch_size=14, hidden_act="gelu",
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def pictures(count: int, tag: str = "img") -> list[Image.Image]:
    """Smooth pictures of different shapes."""
    found = []
    for i, picture in enumerate(lab.images(count, SIDE, SIDE + 32, tag)):
        image = Image.fromarray((picture * 255).round().byte().numpy())
        found.append(image if i % 2 else image.rotate(90, expand=True))
    return found


def rows(count: int, face: int = 0) -> list[dict[str, Any]]:
    """Lines of metadata.jsonl; face: the width of a face embedding in each."""
    found = []
    for i in range(count):
        row: dict[str, Any] = {"file_name": f"{i}.png", "text": f"a {WORDS[1 + i % 2]} {WORDS[3 + i % 2]}"}
        if face:
            row["face_embedding"] = [((i * 7 + j * 3) % 11) / 11 - 0.4 for j in range(face)]
        found.append(row)
    return found


def folder(path: Path, count: int = 6, face: int = 0) -> Path:
    """A folder of pictures with metadata.jsonl."""
    path.mkdir(parents=True)
    for i, picture in enumerate(pictures(count)):
        picture.save(path / f"{i}.png")
    write_rows(path, rows(count, face))
    return path


def write_rows(path: Path, lines: list[dict[str, Any]]) -> None:
    (path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
