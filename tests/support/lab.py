"""Boots a real ComfyUI in process, loads the pack the way ComfyUI does, and builds tiny UNets and encoders.

`synth.py`, this file, `world.py`, `cases.py` and `node_cases.py` made golden.safetensors and golden.json: the same calls, run with
ComfyUI_IPAdapter_plus 2.0.0 on ComfyUI 0.3.75 (0.33 gave the same latents bit for bit), CPU, float32, --use-pytorch-cross-attention.
"""

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from support import synth


def boot(root: Path, base: Path) -> None:
    """Import the ComfyUI in `root` on the CPU, with `base` as the folder of its models, inputs and outputs."""
    sys.path.insert(0, str(root))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import comfy.options

    comfy.options.enable_args_parsing()
    before, sys.argv = sys.argv, ["main.py", "--cpu", "--use-pytorch-cross-attention", "--base-directory", str(base)]
    import comfy.cli_args

    sys.argv = before
    import comfy.model_management

    import nodes  # noqa: F401


def load_module(name: str, folder: Path):
    """Import the package in `folder` as module `name`, as ComfyUI imports a pack: without its parent on sys.path."""
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def call(cls, **kw) -> tuple:
    """Run a node class with keyword inputs and return its outputs."""
    return tuple(getattr(cls(), cls.FUNCTION)(**kw))


CONF = {
    "sd15": dict(
        use_checkpoint=False,
        image_size=32,
        out_channels=4,
        use_spatial_transformer=True,
        legacy=False,
        adm_in_channels=None,
        in_channels=4,
        num_res_blocks=[2, 2, 2, 2],
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        channel_mult=[1, 2, 4, 4],
        transformer_depth_middle=1,
        use_linear_in_transformer=False,
        context_dim=768,
        num_heads=8,
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        use_temporal_attention=False,
        use_temporal_resblock=False,
    ),
    "sdxl": dict(
        use_checkpoint=False,
        image_size=32,
        out_channels=4,
        use_spatial_transformer=True,
        legacy=False,
        num_classes="sequential",
        adm_in_channels=2816,
        in_channels=4,
        num_res_blocks=[2, 2, 2],
        transformer_depth=[0, 0, 2, 2, 10, 10],
        channel_mult=[1, 2, 4],
        transformer_depth_middle=10,
        use_linear_in_transformer=True,
        context_dim=2048,
        transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
        use_temporal_attention=False,
        use_temporal_resblock=False,
    ),
}


def unet(arch, width=32, dtype=torch.float32, seed="unet"):
    """A ModelPatcher over a real ComfyUI UNet of SD1.5's or SDXL's layout, `width` channels wide, filled with synthetic weights.

    Without a seed the weights are left as memory gives them: for what is not sampled.
    """
    import comfy.model_base
    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy.supported_models as sm

    conf = dict(CONF[arch], model_channels=width, dtype=dtype)
    cls = {"sd15": sm.SD15, "sdxl": sm.SDXL}[arch]
    cfg = cls(conf)
    if arch == "sdxl":
        cfg.unet_config["num_head_channels"] = 64 if width == 320 else 8
        cfg.unet_config["num_heads"] = -1
    cfg.set_inference_dtype(dtype, None)
    with torch.no_grad():
        model = cfg.get_model({}, "", device=None) if arch == "sdxl" else comfy.model_base.BaseModel(cfg, device=None)
    if seed:
        synth.fill(model.diffusion_model, seed + arch)
    with torch.no_grad():  # keep the prediction near unit size, so that sampling does not blow up small differences
        model.diffusion_model.out[2].weight.mul_(0.03)
    model.diffusion_model.to(dtype)
    return comfy.model_patcher.ModelPatcher(model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())


def clip_vision(hidden=1280, proj=1024, layers=2, size=224, heads=16):
    """A real ComfyUI ClipVisionModel with `layers` layers of ViT-H's (or the given) width and synthetic weights."""
    import comfy.clip_vision as cv

    conf = dict(
        attention_dropout=0.0,
        dropout=0.0,
        hidden_act="gelu",
        hidden_size=hidden,
        image_size=size,
        intermediate_size=hidden * 2,
        layer_norm_eps=1e-05,
        model_type="clip_vision_model",
        num_attention_heads=heads,
        num_channels=3,
        num_hidden_layers=layers,
        patch_size=14,
        projection_dim=proj,
        torch_dtype="float32",
    )
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as f:
        json.dump(conf, f)
    m = cv.ClipVisionModel(f.name)
    synth.fill(m.model, f"clip{hidden}.{proj}")
    m.model.to(torch.float32)
    return m


def images(n=1, h=96, w=128, tag="img"):
    """Smooth synthetic pictures [n, h, w, 3] in 0..1 (low-frequency waves, so that resizing them is well behaved)."""
    y = torch.linspace(0, 1, h)[:, None, None]
    x = torch.linspace(0, 1, w)[None, :, None]
    out = []
    for i in range(n):
        p = synth.noise(f"{tag}{i}", (6, 3), 6.0)
        im = 0.5 + 0.25 * torch.sin(p[0] * x + p[1] * y + p[2]) + 0.25 * torch.sin(p[3] * x - p[4] * y + p[5])
        out.append(im)
    return torch.stack(out).clamp(0, 1)


def cond(arch, n=1, tag="pos", tokens=77):
    ctx = synth.TINY[arch]["ctx"]
    t = synth.noise("cond" + tag, (n, tokens, ctx), 1.0)
    d = {"pooled_output": synth.noise("pool" + tag, (n, 1280), 1.0)} if arch == "sdxl" else {}
    return [[t, d]]


def sample(model, arch, steps=3, cfg=4.0, batch=1, hw=(8, 8), seed=1, sampler="euler", scheduler="normal", positive=None, negative=None):
    """Run ComfyUI's real KSampler path and return the latent [batch, 4, *hw]."""
    import comfy.sample

    latent = torch.zeros(batch, 4, *hw)
    noise = synth.noise(f"noise{seed}", tuple(latent.shape), 1.7)
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        sampler,
        scheduler,
        positive or cond(arch),
        negative or cond(arch, tag="neg"),
        latent,
        denoise=1.0,
        disable_pbar=True,
        seed=seed,
    )
