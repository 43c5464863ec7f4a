"""Flux and SD3.5 in two implementations, diffusers' and ComfyUI's, narrow but with all of their blocks, and what each predicts."""

from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from einops import rearrange

from support import synth

HEADS = {"flux": 4, "sd3": 2}
DIM = {"flux": 16, "sd3": 64}  # of a head; SD3.5's is 64 by its construction in ComfyUI
WIDTH = {arch: HEADS[arch] * DIM[arch] for arch in HEADS}
TEXT, POOLED = {"flux": 64, "sd3": 48}, 32
FEATURES = 24
SIGMA = 0.7
TOKENS = 7  # of the text


def reference(arch) -> Any:
    """diffusers' transformer, its weights random, so that text, time and picture all matter."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    torch.manual_seed(1)
    shared: dict[str, Any] = dict(
        attention_head_dim=DIM[arch], num_attention_heads=HEADS[arch], joint_attention_dim=TEXT[arch], pooled_projection_dim=POOLED
    )
    if arch == "flux":
        model = FluxTransformer2DModel(
            num_layers=19, num_single_layers=38, in_channels=64, guidance_embeds=True, axes_dims_rope=(4, 6, 6), **shared
        )
    else:
        model = SD3Transformer2DModel(
            num_layers=38, caption_projection_dim=WIDTH[arch], qk_norm="rms_norm", in_channels=16, sample_size=32, pos_embed_max_size=32,
            **shared,
        )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".norm_" in name and weight.ndim == 1 and "linear" not in name:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
    return model.eval()


def comfyui(arch, model=None, dtype=torch.float32, stored=None) -> Any:
    """A ModelPatcher over ComfyUI's transformer with the weights of diffusers' one, brought over by ComfyUI's own table of keys.

    Without one its weights are noise, for what is counted alone. stored: the weights' dtype where it is not that of the calculation.
    """
    import comfy.model_detection
    import comfy.supported_models

    conf: dict[str, Any]
    if arch == "flux":
        conf = dict(
            image_model="flux", in_channels=16, out_channels=16, hidden_size=WIDTH[arch], num_heads=HEADS[arch], mlp_ratio=4.0, depth=19,
            depth_single_blocks=38, axes_dim=[4, 6, 6], theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True, vec_in_dim=POOLED,
            context_in_dim=TEXT[arch],
        )  # fmt: skip
    else:
        conf = dict(
            in_channels=16, out_channels=16, patch_size=2, depth=HEADS[arch], num_blocks=38, input_size=None, adm_in_channels=POOLED,
            context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": TEXT[arch], "out_features": WIDTH[arch]}},
            num_patches=32 * 32, pos_embed_max_size=32, qk_norm="rms", pos_embed_scaling_factor=None,
        )  # fmt: skip
    kind = comfy.supported_models.Flux if arch == "flux" else comfy.supported_models.SD3
    config = kind({**conf, "dtype": stored or dtype})
    config.set_inference_dtype(stored or dtype, dtype if stored else None)
    built = config.get_model({}, "", device=None)
    if model is None:
        synth.fill(built.diffusion_model, f"whole {arch}")
        return patcher(built, stored or dtype)
    state = comfy.model_detection.convert_diffusers_mmdit({key: value.clone() for key, value in model.state_dict().items()})
    assert state is not None
    if arch == "sd3":  # its table turns scale and shift of the last block, and takes that for block heads - 1, as in the published models
        for number in (37, HEADS[arch] - 1):
            for part in ("weight", "bias"):
                key = f"joint_blocks.{number}.context_block.adaLN_modulation.1.{part}"
                halves = state[key].chunk(2)
                state[key] = torch.cat(halves[::-1])
    built.diffusion_model.load_state_dict(state)
    return patcher(built, stored or dtype)


def patcher(built, dtype) -> Any:
    import comfy.model_management as mm
    import comfy.model_patcher

    built.diffusion_model.to(dtype).eval()
    return comfy.model_patcher.ModelPatcher(built, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())


def given(arch, rows=1, size=(8, 12)) -> dict[str, torch.Tensor]:
    """Latents, text and pooled text of a call."""
    return {
        "x": synth.noise("x", (rows, 16, *size), 1.5),
        "text": synth.noise("text", (rows, TOKENS, TEXT[arch]), 1.0),
        "pooled": synth.noise("pooled", (rows, POOLED), 1.0),
    }


def comfyui_noise(model, arch, call, sigma=SIGMA, options=None, **conds) -> torch.Tensor:
    """ComfyUI's prediction by apply_model, with the wrappers that its sampler would bring."""
    import comfy.patcher_extension

    x = call["x"]
    sigmas = torch.full((len(x),), sigma)
    options = {"cond_or_uncond": [0], **model.model_options["transformer_options"], **(options or {}), "sigmas": sigmas}
    options = comfy.patcher_extension.merge_nested_dicts(options, {"wrappers": model.wrappers})
    if arch == "flux":
        conds = {"guidance": torch.full((len(x),), 3.5), **conds}
    with torch.inference_mode():
        denoised = model.model.apply_model(x, sigmas, c_crossattn=call["text"], y=call["pooled"], transformer_options=options, **conds)
    return (x - denoised) / sigma


def diffusers_noise(model, arch, call, images=None, sigma=SIGMA, **more) -> torch.Tensor:
    """diffusers' prediction; images: what the adapter's projection takes, for each row."""
    x = call["x"]
    rows, _, height, width = x.shape
    how: dict[str, Any] = {} if images is None else {"joint_attention_kwargs": {"ip_adapter_image_embeds": images}}
    shared = dict(encoder_hidden_states=call["text"], pooled_projections=call["pooled"], return_dict=False, **how)
    with torch.no_grad():
        if arch == "sd3":
            return model(hidden_states=x, timestep=torch.full((rows,), sigma * 1000), **shared)[0]
        ids = torch.zeros(height // 2, width // 2, 3)
        ids[..., 1], ids[..., 2] = torch.arange(height // 2)[:, None], torch.arange(width // 2)[None]
        out = model(
            hidden_states=rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2),
            timestep=torch.full((rows,), sigma),
            guidance=torch.full((rows,), 3.5),
            img_ids=ids.flatten(0, 1),
            txt_ids=torch.zeros(TOKENS, 3),
            **shared,
            **more,
        )[0]
    return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, p=2, q=2)


def xlabs(tokens=4, features=FEATURES) -> dict[str, dict[str, torch.Tensor]]:
    """A file of XLabs' layout as its two state dicts; strong, so that what it changes is large."""
    proj: dict[str, torch.Tensor] = {}
    layers: dict[str, torch.Tensor] = {}
    synth.linear(proj, "proj", tokens * TEXT["flux"], features)
    synth.norm(proj, "norm", TEXT["flux"])
    for i in range(19):
        for part in "kv":
            synth.linear(layers, f"{i}.to_{part}_ip", WIDTH["flux"], TEXT["flux"])
    return {"image_proj": proj, "ip_adapter": layers}


def instantx(tokens=8, features=FEATURES) -> dict[str, dict[str, torch.Tensor]]:
    """A file of InstantX's layout for Flux."""
    proj: dict[str, torch.Tensor] = {}
    layers: dict[str, torch.Tensor] = {}
    synth.linear(proj, "proj.0", 2 * features, features)
    synth.linear(proj, "proj.2", tokens * TEXT["flux"], 2 * features)
    synth.norm(proj, "norm", TEXT["flux"])
    for i in range(57):
        for part in "kv":
            synth.linear(layers, f"{i}.to_{part}_ip", WIDTH["flux"], TEXT["flux"], bias=False)
    return {"image_proj": proj, "ip_adapter": layers}


def sd3(tokens=8, features=FEATURES) -> dict[str, dict[str, torch.Tensor]]:
    """A file of InstantX's layout for SD3.5."""
    proj: dict[str, torch.Tensor] = {"latents": synth.noise("latents", (1, tokens, 64), 1.0)}
    layers: dict[str, torch.Tensor] = {}
    width, inner = WIDTH["sd3"], 64
    for key, out, wide in (("proj_in", inner, features), ("proj_out", width, inner)):
        synth.linear(proj, key, out, wide)
    synth.norm(proj, "norm_out", width)
    synth.linear(proj, "time_embedding.linear_1", inner, 320)
    synth.linear(proj, "time_embedding.linear_2", inner, inner)
    for i in range(4):
        at = f"layers.{i}."
        for key in ("0.norm1", "0.norm2", "1.0"):
            synth.norm(proj, at + key, inner)
        for key, out in (("0.to_q", inner), ("0.to_kv", 2 * inner), ("0.to_out", inner)):
            synth.linear(proj, at + key, out, inner, bias=False)
        synth.linear(proj, at + "1.1", 4 * inner, inner, bias=False)
        synth.linear(proj, at + "1.3", inner, 4 * inner, bias=False)
        synth.linear(proj, at + "2.1", 4 * inner, inner)
    for i in range(38):
        synth.linear(layers, f"{i}.norm_ip.linear", 2 * width, inner)
        for part in "kv":
            synth.linear(layers, f"{i}.to_{part}_ip", width, width, bias=False)
        for key in ("norm_q", "norm_k", "norm_ip_k"):
            layers[f"{i}.{key}.weight"] = 1 + synth.noise(f"{i}.{key}", (DIM["sd3"],), 0.3)
    return {"image_proj": proj, "ip_adapter": layers}


ADAPTERS = {"flux-xlabs": ("flux", xlabs), "flux-instantx": ("flux", instantx), "sd3-instantx": ("sd3", sd3)}


class Transformer:
    """Both implementations of one, and what they predict without an adapter."""

    def __init__(self, arch):
        self.arch = arch
        self.reference = reference(arch)
        self.model = comfyui(arch, self.reference)
        self.call = given(arch)

    @cached_property
    def plain(self) -> torch.Tensor:
        return comfyui_noise(self.model, self.arch, self.call)


def features(family, count=1, tag="a") -> torch.Tensor:
    """What an encoder would give for `count` pictures."""
    shape = (count, 9, FEATURES) if family == "sd3-instantx" else (count, FEATURES)
    return synth.noise(f"features {tag}", shape, 1.5)


def error(got, want, without) -> float:
    """Beside the size of what the adapter changes."""
    return float((got - want).norm() / (want - without).norm())


def parts() -> SimpleNamespace:
    """Of the pack: what makes an adapter of a state dict, and what applies features."""
    from ipadapter_pack.nodes.host.apply import project
    from ipadapter_pack.nodes.host.load import adapter

    return SimpleNamespace(as_adapter=adapter.as_adapter, apply=project.apply_features, Settings=project.Settings)


def applying(host: SimpleNamespace, models: dict[str, Any]) -> Any:
    """apply(family, model=None, positive=None, negative=None, state=None, **settings) -> a patched model."""
    adapters: dict[str, Any] = {}

    def run(family, model=None, positive=None, negative=None, state=None, **settings):
        arch, make = ADAPTERS[family]
        if state is None:
            state = adapters.setdefault(family, make())
        positive = features(family) if positive is None else positive
        negative = torch.zeros_like(positive[:1]) if negative is None else negative
        model = models[arch].model if model is None else model
        return host.apply(model, host.as_adapter(state), (positive,), (negative,), host.Settings(**settings))

    return run
