"""Small random models under the published names and in the published layouts, made with a real ComfyUI.

Run as a script: python models.py COMFYUI FOLDER NAME...  writes FOLDER/checkpoints/NAME and so on; a NAME is FOLDER-relative, such as
"checkpoints/v1-5-pruned-emaonly-fp16.safetensors". ComfyUI's own loaders take the checkpoints and encoders once tiny_models_pack is
among its custom nodes.
"""

import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import lab, onnx_faces, synth
from support.needs import is_sdxl

ENCODER_SHAPES = {  # name contains -> hidden width, projection, input size
    "bigg": (1664, 1280, 224),
    "vit-g": (1664, 1280, 224),
    "336": (1024, 768, 336),
    "large": (1024, 768, 224),
    "": (1280, 1024, 224),
}
ADAPTER_FAMILIES = (  # pattern of the published name -> family of synth.adapter; the first that is found
    (r"[Kk]olors.*FaceID", "kolors_faceid_plus"),
    (r"[Kk]olors|plus_general", "kolors_plus"),
    (r"portrait.*unnorm", "portrait_unnorm"),
    (r"portrait", "portrait"),
    (r"faceid[-_]plus", "faceid_plus"),
    (r"faceid", "faceid"),
    (r"full[-_]face", "full_face"),
    (r"plus", "plus"),
    (r"sdxl(?!.*vit-h)|vit-G", "base_vit_g"),
    (r"", "base"),
)
ATTENTIONS = {  # (diffusers' names of a UNet's transformers, their depth), in the order of an adapter's keys
    "sd15": (
        ([f"down_blocks_{b}_attentions_{a}" for b in (0, 1, 2) for a in (0, 1)], 1),
        ([f"up_blocks_{b}_attentions_{a}" for b in (1, 2, 3) for a in (0, 1, 2)], 1),
        (["mid_block_attentions_0"], 1),
    ),
    "sdxl": (
        ([f"down_blocks_1_attentions_{a}" for a in (0, 1)], 2),
        ([f"down_blocks_2_attentions_{a}" for a in (0, 1)], 10),
        ([f"up_blocks_0_attentions_{a}" for a in (0, 1, 2)], 10),
        ([f"up_blocks_1_attentions_{a}" for a in (0, 1, 2)], 2),
        (["mid_block_attentions_0"], 10),
    ),
}


def fill(module: torch.nn.Module, seed: int) -> None:
    """Random weights that keep activations near unit size: matrices by their fan-in, norms one, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if p.dim() > 1:
            scale = 1.0 if "embedding" in name else p[0].numel() ** -0.5
            p.data = torch.randn(p.shape, generator=generator).mul_(scale).to(p.dtype)
        elif name.endswith("weight"):
            p.data.fill_(1.0)
        elif p.dim():
            p.data.zero_()


def small_vae(latent_scale: float):
    """A TAESD whose pictures are grey with a deviation of 0.2, for latents of that scale factor."""
    import comfy.taesd.taesd

    model = comfy.taesd.taesd.TAESD()
    fill(model, 3)
    out = model.taesd_decoder(torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3)))
    last, gain = model.taesd_decoder[-1], 0.2 / out.std()
    last.weight.mul_(gain)
    last.bias.copy_(0.5 - out.mean((0, 2, 3)) * gain)
    model.vae_scale.fill_(latent_scale)
    return model


def checkpoint(path: Path, pack) -> None:
    """A narrow UNet, short text encoders and a TAESD in ComfyUI's own checkpoint layout."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sd

    arch, narrow = ("sdxl", pack.NarrowSDXL) if is_sdxl(path.name) else ("sd15", pack.NarrowSD15)
    config = narrow({**lab.CONF[arch], "model_channels": pack.WIDTH, "dtype": torch.float16})
    config.set_inference_dtype(torch.float16, None)
    unet = config.get_model({}, "")
    if "kolors" in path.name.lower():  # a stand-in for Kolors, which ComfyUI cannot load: SDXL's layout with Kolors' text projection
        unet.diffusion_model.encoder_hid_proj = torch.nn.Linear(4096, 2048, dtype=torch.float16)
    fill(unet.diffusion_model, 1)
    clip = comfy.sd.CLIP(config.clip_target({}))
    fill(clip.cond_stage_model, 2)
    vae = comfy.sd.VAE(sd=small_vae(config.latent_format.scale_factor).state_dict())
    device = comfy.model_management.get_torch_device()
    comfy.sd.save_checkpoint(str(path), comfy.model_patcher.ModelPatcher(unet, device, device), clip, vae)


def encoder(path: Path, pack) -> None:
    """A CLIP Vision encoder with the published widths and two layers."""
    width, projection, size = next(shape for part, shape in ENCODER_SHAPES.items() if part in path.name.lower())
    config = dict(model_type="clip_vision_model", num_channels=3, patch_size=14, num_hidden_layers=2, intermediate_size=width)
    config |= dict(hidden_size=width, projection_dim=projection, image_size=size, **pack.ENCODERS[width])
    model = pack.make_encoder(config).model
    fill(model, 4)
    save_file({key: value.half().contiguous() for key, value in model.state_dict().items()}, path)


def adapter(path: Path, pack) -> None:
    """An adapter of the family that its published name means, as wide as the narrow UNet."""
    family = next(family for pattern, family in ADAPTER_FAMILIES if re.search(pattern, path.name))
    state = synth.adapter(family, "sdxl" if is_sdxl(path.name) else "sd15")
    synth.save_adapter({group: {key: value.half() for key, value in part.items()} for group, part in state.items()}, path)


def lora(path: Path, pack) -> None:
    """A LoRA of rank 8 on every attention, such as is published beside a FaceID adapter, in the kohya layout."""
    arch = "sdxl" if is_sdxl(path.name) else "sd15"
    blocks = [f"{name}_transformer_blocks_{i}" for names, depth in ATTENTIONS[arch] for name in names for i in range(depth)]
    state = {}
    for key, value in synth.ip_layers(arch, synth.TINY, lora=8).items():
        if match := re.fullmatch(r"(\d+)\.to_(\w+)_lora\.(up|down)\.weight", key):
            number, linear = int(match[1]), "out_0" if match[2] == "out" else match[2]
            layer = f"lora_unet_{blocks[number // 2]}_attn{1 + number % 2}_to_{linear}"
            state[f"{layer}.lora_{match[3]}.weight"] = value.half()
    save_file(state, path)


def vae(path: Path, pack) -> None:
    state = small_vae(0.13025 if is_sdxl(path.name) else 0.18215).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, path)


def faces(path: Path, pack) -> None:
    """A detector and an embedder in the folder of an insightface model package."""
    onnx_faces.write_models(path, path.name.removeprefix("part-"))


MAKERS = {"checkpoints": checkpoint, "clip_vision": encoder, "insightface": faces, "ipadapter": adapter, "loras": lora, "vae": vae}


def make(folder: Path, names: list[str]) -> None:
    """Write those models of `names` (such as "ipadapter/ip-adapter_sd15.safetensors") that `folder` does not hold yet."""
    pack = lab.load_module("tiny_models_pack", Path(__file__).parent / "tiny_models_pack")
    for name in names:
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"part-{path.name}")
            with torch.no_grad():
                MAKERS[Path(name).parts[0]](part, pack)
            part.rename(path)


if __name__ == "__main__":
    target = Path(sys.argv[2]).resolve()
    lab.boot(Path(sys.argv[1]).resolve(), target.parent)
    make(target, sys.argv[3:])
