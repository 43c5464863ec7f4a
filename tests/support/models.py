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

from support import lab, onnx_faces, synth, whole_transformer
from support.needs import arch_of, is_sdxl

ENCODER_SHAPES = {  # name contains -> hidden width, projection, input size
    "bigg": (1664, 1280, 224),
    "vit-g": (1664, 1280, 224),
    "336": (1024, 768, 336),
    "large": (1024, 768, 224),
    "sigclip": (1152, 0, 384),
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
TRANSFORMERS = {  # part of the published name -> what makes a narrow one; the first that is found
    "instantx-flux": lambda: whole_transformer.instantx(features=1152),
    "instantx-sd3.5": lambda: whole_transformer.sd3(features=1152),
    "flux-ip-adapter": lambda: whole_transformer.xlabs(tokens=16, features=768),
}
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
    for name, p in synth.weights(module):
        if p.dim() > 1:
            scale = 1.0 if "embedding" in name or name == "pos_embed" else p[0].numel() ** -0.5
            p.data = torch.randn(p.shape, generator=generator).mul_(scale).to(p.dtype)
        elif name.endswith(("weight", "scale")):
            p.data.fill_(1.0)
        elif p.dim():
            p.data.zero_()


def small_vae(scale: float, shift: float = 0.0, channels: int = 4):
    """A TAESD whose pictures are grey with a deviation of 0.2, for latents of that scale and shift."""
    import comfy.taesd.taesd

    model = comfy.taesd.taesd.TAESD(latent_channels=channels)
    fill(model, 3)
    out = model.taesd_decoder(torch.randn(1, channels, 32, 32, generator=torch.Generator().manual_seed(3)))
    last, gain = model.taesd_decoder[-1], 0.2 / out.std()
    last.weight.mul_(gain)
    last.bias.copy_(0.5 - out.mean((0, 2, 3)) * gain)
    model.vae_scale.fill_(scale)
    model.vae_shift.fill_(shift)
    return model


def configuration(arch: str, pack):
    """ComfyUI's configuration of a narrow model."""
    if arch == "flux":
        sizes = dict(image_model="flux", in_channels=16, out_channels=16, patch_size=2, depth=19, depth_single_blocks=38, mlp_ratio=4.0,
                     theta=10000, qkv_bias=True, guidance_embed=True, vec_in_dim=768)  # fmt: skip
        return pack.NarrowFlux({**sizes, **pack.FLUX, "dtype": torch.float16})
    if arch == "sd35":
        text = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * pack.SD35_DEPTH}}
        sizes = dict(in_channels=16, out_channels=16, patch_size=2, depth=pack.SD35_DEPTH, num_blocks=38, input_size=None, qk_norm="rms",
                     adm_in_channels=2048, context_embedder_config=text, num_patches=64 * 64, pos_embed_max_size=64,
                     pos_embed_scaling_factor=None)  # fmt: skip
        return pack.NarrowSD35({**sizes, "dtype": torch.float16})
    narrow = pack.NarrowSDXL if arch == "sdxl" else pack.NarrowSD15
    return narrow({**lab.CONF[arch], "model_channels": pack.WIDTH, "dtype": torch.float16})


def checkpoint(path: Path, pack) -> None:
    """A narrow UNet or transformer, short text encoders and a TAESD in ComfyUI's own checkpoint layout."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sd

    config = configuration(arch_of(path.name), pack)
    config.set_inference_dtype(torch.float16, None)
    unet = config.get_model({}, "")
    if "kolors" in path.name.lower():  # a stand-in for Kolors, which ComfyUI cannot load: SDXL's layout with Kolors' text projection
        unet.diffusion_model.encoder_hid_proj = torch.nn.Linear(4096, 2048, dtype=torch.float16)
    fill(unet.diffusion_model, 1)
    clip = comfy.sd.CLIP(config.clip_target({}))
    fill(clip.cond_stage_model, 2)
    latents = config.latent_format
    vae = comfy.sd.VAE(sd=small_vae(latents.scale_factor, getattr(latents, "shift_factor", 0.0), latents.latent_channels).state_dict())
    device = comfy.model_management.get_torch_device()
    comfy.sd.save_checkpoint(str(path), comfy.model_patcher.ModelPatcher(unet, device, device), clip, vae)


def encoder(path: Path, pack) -> None:
    """A CLIP Vision encoder, or SigLIP with its pooling head, with the published widths and two layers."""
    width, projection, size = next(shape for part, shape in ENCODER_SHAPES.items() if part in path.name.lower())
    config = dict(model_type="clip_vision_model", num_channels=3, patch_size=14, num_hidden_layers=2, intermediate_size=width)
    config |= dict(hidden_size=width, image_size=size, **({"projection_dim": projection} if projection else {}), **pack.ENCODERS[width])
    model = pack.make_encoder(config).model
    fill(model, 4)
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(state if projection else {**state, **pooling_head(width)}, path)


def pooling_head(width: int) -> dict[str, torch.Tensor]:
    """SigLIP's, which is no part of ComfyUI's model."""
    state: dict[str, torch.Tensor] = {"probe": synth.noise("probe", (1, 1, width), 1.0)}
    synth.linear(state, "attention.out_proj", width, width)
    synth.linear(state, "attention.in_proj", 3 * width, width)
    state = {key.replace("in_proj.", "in_proj_"): value for key, value in state.items()}
    synth.norm(state, "layernorm", width)
    synth.linear(state, "mlp.fc1", width, width)
    synth.linear(state, "mlp.fc2", width, width)
    return {f"vision_model.head.{key}": value.half() for key, value in state.items()}


def adapter(path: Path, pack) -> None:
    """An adapter of the family that its published name means, as wide as the narrow model."""
    make = next((make for part, make in TRANSFORMERS.items() if part in path.name), None)
    family = next(family for pattern, family in ADAPTER_FAMILIES if re.search(pattern, path.name))
    state = make() if make else synth.adapter(family, "sdxl" if is_sdxl(path.name) else "sd15")
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
