"""Flux and SD3.5 in two implementations, diffusers' and ComfyUI's, narrow but with all of their blocks, and what each predicts."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

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


class Sizes(NamedTuple):
    """axes: how RoPE shares the numbers of a head, in Flux."""

    heads: int
    dim: int
    text: int
    pooled: int
    axes: tuple[int, ...] = ()


NARROW = {arch: Sizes(HEADS[arch], DIM[arch], TEXT[arch], POOLED, (4, 6, 6)) for arch in HEADS}


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


def model_of(arch, sizes, dtype, cast=None, device=None) -> Any:
    """ComfyUI's model with all blocks and no weights yet; cast: the dtype of the calculation where it is not that of the weights."""
    import comfy.supported_models

    conf: dict[str, Any]
    heads, dim, text, pooled, axes = sizes
    if arch == "flux":
        conf = dict(
            image_model="flux", in_channels=16, out_channels=16, hidden_size=heads * dim, num_heads=heads, mlp_ratio=4.0, depth=19,
            depth_single_blocks=38, axes_dim=list(axes), theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True, vec_in_dim=pooled,
            context_in_dim=text,
        )  # fmt: skip
    else:
        conf = dict(
            in_channels=16, out_channels=16, patch_size=2, depth=heads, num_blocks=38, input_size=None, adm_in_channels=pooled,
            context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": text, "out_features": heads * dim}},
            num_patches=32 * 32, pos_embed_max_size=32, qk_norm="rms", pos_embed_scaling_factor=None,
        )  # fmt: skip
    kind = comfy.supported_models.Flux if arch == "flux" else comfy.supported_models.SD3
    config = kind({**conf, "dtype": dtype})
    config.set_inference_dtype(dtype, cast)
    return config.get_model({}, "", device=device)


def comfyui(arch, model=None, dtype=torch.float32, stored=None) -> Any:
    """A ModelPatcher over ComfyUI's transformer with the weights of diffusers' one, brought over by ComfyUI's own table of keys.

    Without one its weights are noise, for what is counted alone. stored: the weights' dtype where it is not that of the calculation.
    """
    import comfy.model_detection

    built = model_of(arch, NARROW[arch], stored or dtype, dtype if stored else None)
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


class Left(torch.nn.Module):
    """In place of a block: what comes in goes out. The norms stay, by which SD3.5's adapter finds the model's own."""

    def __init__(self, block):
        super().__init__()
        if hasattr(block, "x_block"):
            self.x_block = torch.nn.Module()
            self.x_block.attn = torch.nn.Module()
            for name in ("ln_q", "ln_k"):
                setattr(self.x_block.attn, name, getattr(block.x_block.attn, name))

    def forward(self, *streams, img=None, txt=None, **_):
        if img is not None:
            return img, txt
        return streams[0] if len(streams) == 1 else streams


def leave(inner: Any, *chosen: str) -> None:
    """Only the blocks of these names ("double_blocks.3") go on doing something."""
    for kind in ("double_blocks", "single_blocks", "joint_blocks"):
        blocks: Any = getattr(inner, kind, ())
        for number, block in enumerate(blocks):
            if f"{kind}.{number}" not in chosen:
                blocks[number] = Left(block)


@contextmanager
def left(model, *chosen: str) -> Iterator[None]:
    """A ModelPatcher with these blocks alone, for what takes long and is alike in all of them."""
    inner = model.model.diffusion_model
    kept = {kind: list(blocks) for kind, blocks in inner.named_children() if kind.endswith("_blocks")}
    leave(inner, *chosen)
    try:
        yield
    finally:
        for kind, blocks in kept.items():
            for number, block in enumerate(blocks):
                getattr(inner, kind)[number] = block


def patcher(built, dtype) -> Any:
    import comfy.model_management as mm
    import comfy.model_patcher

    built.diffusion_model.to(dtype).eval()
    return comfy.model_patcher.ModelPatcher(built, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())


def given(arch, rows=1, size=(8, 12), sizes=None) -> dict[str, torch.Tensor]:
    """Latents, text and pooled text of a call; sizes: of the model, where it is none of the narrow ones."""
    sizes = sizes or NARROW[arch]
    return {
        "x": synth.noise("x", (rows, 16, *size), 1.5),
        "text": synth.noise("text", (rows, TOKENS, sizes.text), 1.0),
        "pooled": synth.noise("pooled", (rows, sizes.pooled), 1.0),
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
            return model(hidden_states=x, timestep=torch.full((rows,), sigma * 1000), **shared, **more)[0]
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


def xlabs(tokens=4, features=FEATURES, text=TEXT["flux"], width=WIDTH["flux"]) -> dict[str, dict[str, torch.Tensor]]:
    """A file of XLabs' layout as its two state dicts; strong, so that what it changes is large."""
    proj: dict[str, torch.Tensor] = {}
    layers: dict[str, torch.Tensor] = {}
    synth.linear(proj, "proj", tokens * text, features)
    synth.norm(proj, "norm", text)
    for i in range(19):
        for part in "kv":
            synth.linear(layers, f"{i}.to_{part}_ip", width, text)
    return {"image_proj": proj, "ip_adapter": layers}


def instantx(tokens=8, features=FEATURES, text=TEXT["flux"], width=WIDTH["flux"]) -> dict[str, dict[str, torch.Tensor]]:
    """A file of InstantX's layout for Flux."""
    proj: dict[str, torch.Tensor] = {}
    layers: dict[str, torch.Tensor] = {}
    synth.linear(proj, "proj.0", 2 * features, features)
    synth.linear(proj, "proj.2", tokens * text, 2 * features)
    synth.norm(proj, "norm", text)
    for i in range(57):
        for part in "kv":
            synth.linear(layers, f"{i}.to_{part}_ip", width, text, bias=False)
    return {"image_proj": proj, "ip_adapter": layers}


def sd3(tokens=8, features=FEATURES, inner=64, width=WIDTH["sd3"]) -> dict[str, dict[str, torch.Tensor]]:
    """A file of InstantX's layout for SD3.5."""
    proj: dict[str, torch.Tensor] = {"latents": synth.noise("latents", (1, tokens, inner), 1.0)}
    layers: dict[str, torch.Tensor] = {}
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
        self._rounded: dict[torch.dtype, Any] = {}

    def rounded(self, dtype) -> Any:
        """ComfyUI's in another dtype."""
        if dtype not in self._rounded:
            self._rounded[dtype] = comfyui(self.arch, self.reference, dtype)
        return self._rounded[dtype]

    @cached_property
    def plain(self) -> torch.Tensor:
        return comfyui_noise(self.model, self.arch, self.call)


def newer_core(monkeypatch) -> list[Any]:
    """Flux's attention as newer cores have it, with attn1_patch and attn1_output_patch around it; a list of the patches that are called."""
    import comfy.ldm.flux.layers
    from ipadapter_pack.nodes.host.engine import flux as engine

    core, seen = comfy.ldm.flux.layers.attention, []

    def attention(q, k, v, pe, mask=None, transformer_options={}):  # noqa: B006
        patches = transformer_options.get("patches", {})
        extra_options = {**transformer_options, "img_slice": [TOKENS, q.shape[2]]}
        for patch in patches.get("attn1_patch", ()):
            seen.append(patch)
            changed = patch(q, k, v, pe=pe, attn_mask=mask, extra_options=extra_options)
            q, k, v = (changed.get(key, old) for key, old in (("q", q), ("k", k), ("v", v)))
        out = core(q, k, v, pe=pe, mask=mask, transformer_options=transformer_options)
        for patch in patches.get("attn1_output_patch", ()):
            out = patch(out, extra_options)
        return out

    monkeypatch.setattr(comfy.ldm.flux.layers, "attention", attention)
    monkeypatch.setattr(engine, "HOOKS", True)
    return seen


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
