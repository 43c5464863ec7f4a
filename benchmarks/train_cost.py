"""What training costs at SD 1.5's real size, on random weights: memory, samples per second, and what precompute saves.

python benchmarks/train_cost.py FOLDER [--steps N] [--mixed-precision no]: writes the random models (5 GB) into FOLDER once. bf16, batch 1,
512 pixels, gradient checkpointing, a plus adapter. On a CPU without bf16 instructions a step in bf16 takes half an hour: there, make the
features with --mixed-precision no first.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests")]


def make(folder: Path) -> None:
    """SD 1.5's UNet, VAE and text encoder, ViT-H, and eight pictures."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from PIL import Image
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    from support import tiny_base

    torch.manual_seed(1)
    wide = (128, 256, 512, 512)
    vae = dict(block_out_channels=wide, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    vision: dict[str, Any] = dict(hidden_size=1280, projection_dim=1024, intermediate_size=5120, num_hidden_layers=32)
    vision |= dict(patch_size=14, num_attention_heads=16)
    text: dict[str, Any] = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408)
    UNet2DConditionModel(cross_attention_dim=768, sample_size=64).bfloat16().save_pretrained(folder / "base" / "unet")
    AutoencoderKL(**vae, layers_per_block=2, latent_channels=4).save_pretrained(folder / "base" / "vae")  # type: ignore[arg-type]
    DDPMScheduler(**tiny_base.SCHEDULE).save_pretrained(folder / "base" / "scheduler")  # type: ignore[arg-type]
    CLIPTextModel(CLIPTextConfig(**text, eos_token_id=99)).bfloat16().save_pretrained(folder / "base" / "text_encoder")
    tiny_base.tokenizer(folder / "base" / "tokenizer")
    CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)).bfloat16().save_pretrained(folder / "encoder")
    data = folder / "data"
    data.mkdir(exist_ok=True)
    for i in range(8):
        Image.effect_noise((640, 512), 60 + i).convert("RGB").save(data / f"{i}.png")
    tiny_base.write_rows(data, tiny_base.rows(8))


def measure(folder: Path, data: Path, steps: int, precision: str) -> dict[str, float]:
    """Seconds of a step after the first, or of the first where `steps` is 0, and the largest resident memory of this process in GB."""
    from training.config import Settings
    from training.loop import Run

    given = dict(base=str(folder / "base"), image_encoder=str(folder / "encoder"), data=str(data), out=str(folder / "out"), family="plus")
    run = Run(Settings(**given, mixed_precision=precision, checkpointing=True))  # type: ignore[arg-type]
    batches = run.batches()
    began = time.monotonic()
    for step in range(steps + 1):
        if step == 1:
            began = time.monotonic()
        run.advance(batches)
    return {"seconds": (time.monotonic() - began) / max(1, steps), "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main() -> None:
    from training.config import PRECISIONS, Precompute

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2, help="how many after the first; 0: the first is measured")
    parser.add_argument("--mixed-precision", default="bf16", choices=PRECISIONS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)  # one measurement, in a process of its own
    told = parser.parse_args()
    if told.data:
        print(json.dumps(measure(told.folder, told.data, told.steps, told.mixed_precision)))
        return
    if not (told.folder / "features").exists():
        from training.precompute import precompute

        make(told.folder)
        given = dict(base=str(told.folder / "base"), image_encoder=str(told.folder / "encoder"), data=str(told.folder / "data"))
        precompute(Precompute(**given, out=str(told.folder / "features"), family="plus", mixed_precision=told.mixed_precision))  # type: ignore[arg-type]
    found = {}
    for name in ("data", "features"):
        command = [sys.executable, __file__, str(told.folder), "--steps", str(told.steps), "--data", str(told.folder / name)]
        command += ["--mixed-precision", told.mixed_precision]
        found[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        print(f"{name}: {1 / found[name]['seconds']:.4f} samples/s, {found[name]['gigabytes']:.1f} GB")
    print(f"precompute makes a step {found['data']['seconds'] / found['features']['seconds']:.2f} times as fast")


if __name__ == "__main__":
    main()
