"""Flux and SD3.5 beside what else stands on such models: ControlNets, LoRAs, reference latents, block skippers, quantised weights."""

from types import SimpleNamespace

import pytest
import torch

from support import lab, plain, synth
from support import whole_transformer as whole
from support.whole_transformer import comfyui_noise, error

FAMILIES = pytest.mark.parametrize("family", whole.ADAPTERS)
FLUX = pytest.mark.parametrize("family", ["flux-xlabs", "flux-instantx"])
SAME = 2e-5  # of the effect: the same sums in another order
FEW = {"flux": ("double_blocks.3", "double_blocks.9", "single_blocks.5"), "sd3": ("joint_blocks.3", "joint_blocks.9")}
BLOCKS = {"flux-xlabs": 19, "flux-instantx": 57, "sd3-instantx": 38}


def noise(models, family, patched, **how):
    arch = whole.ADAPTERS[family][0]
    return comfyui_noise(patched, arch, models[arch].call, **how)


def sampled(model, call, positive=None, steps=1):
    """core's own sampler at cfg 1; positive: the conditioning if it is another than the call's text."""
    import comfy.model_management
    import comfy.sample

    positive = conditioning(call) if positive is None else positive
    latent = torch.zeros_like(call["x"])
    try:
        with torch.inference_mode():
            how = steps, 1.0, "euler", "simple", positive, positive, latent
            return comfy.sample.sample(model, call["x"], *how, disable_pbar=True, seed=1)
    finally:
        comfy.model_management.unload_all_models()  # takes LoRAs out of the weights


def conditioning(call):
    return [[call["text"], {"pooled_output": call["pooled"]}]]


# ControlNets


def control_net():
    """XLabs' kind: two double blocks, a hint of pixels."""
    import comfy.controlnet
    import comfy.ldm.flux.controlnet
    import comfy.ops

    net = comfy.ldm.flux.controlnet.ControlNetFlux(
        in_channels=16, out_channels=16, hidden_size=whole.WIDTH["flux"], num_heads=whole.HEADS["flux"], mlp_ratio=4.0, depth=2,
        depth_single_blocks=1, axes_dim=[4, 6, 6], theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True, vec_in_dim=whole.POOLED,
        context_in_dim=whole.TEXT["flux"], dtype=torch.float32, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return comfy.controlnet.ControlNet(synth.fill(net, "flux control"), extra_conds=["y", "guidance"])


@FLUX
def test_a_controlnet(apply, models, family):
    """core's, through core's node and sampler: it sees nothing of the adapter, and both add what they add."""
    flux, given = models["flux"], []
    hint = lab.images(1, h=64, w=96, tag="hint")
    positive, _ = plain.core_node("ControlNetApplyAdvanced").apply_controlnet(
        conditioning(flux.call), conditioning(flux.call), control_net(), hint, 0.5, 0.0, 1.0
    )
    handle = flux.model.model.diffusion_model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["control"]), with_kwargs=True
    )
    try:
        without, got = (sampled(model, flux.call, positive) for model in (flux.model, apply(family)))
    finally:
        handle.remove()
    alone, adapter = (sampled(model, flux.call) for model in (flux.model, apply(family)))
    for kind in ("input", "output"):
        assert all(torch.equal(a, b) for a, b in zip(*(control[kind] for control in given), strict=True))
    assert error(got, without, alone) > 50 * SAME and error(got, adapter, alone) > 50 * SAME



# LoRAs

BESIDE = {
    "flux": ("double_blocks.3.img_attn.qkv", "double_blocks.3.img_attn.proj", "single_blocks.5.linear1"),
    "sd3": ("joint_blocks.3.x_block.attn.qkv", "joint_blocks.3.x_block.attn.proj", "joint_blocks.4.context_block.attn.qkv"),
}


@pytest.mark.parametrize("order", ["before", "after"])
@FAMILIES
def test_a_lora(apply, models, family, order):
    """On the weights of patched blocks, by core's loader before and after the adapter: as if it were in the weights."""
    import comfy.sd

    arch = whole.ADAPTERS[family][0]
    one, lora, merged = models[arch], {}, {}
    inner = one.model.model.diffusion_model
    for name in BESIDE[arch]:
        weight = inner.get_submodule(name).weight
        up, down = (synth.noise(f"{name} {part}", shape, 0.3) for part, shape in (("up", (len(weight), 4)), ("down", (4, weight.shape[1]))))
        lora |= {f"diffusion_model.{name}.lora_up.weight": up, f"diffusion_model.{name}.lora_down.weight": down}
        merged[name] = weight, weight + up @ down
    if arch == "sd3":  # the norm whose weight the adapter divides out
        norm = inner.joint_blocks[3].x_block.attn.ln_q
        change = lora["diffusion_model.joint_blocks.3.x_block.attn.ln_q.diff"] = synth.noise("ln_q", norm.weight.shape, 0.2)
        merged["joint_blocks.3.x_block.attn.ln_q"] = norm.weight, norm.weight + change

    def with_lora(model):
        return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]

    model = with_lora(apply(family)) if order == "after" else apply(family, model=with_lora(one.model))
    got = sampled(model, one.call)
    try:
        for name, (_, weight) in merged.items():
            inner.get_submodule(name).weight = torch.nn.Parameter(weight, requires_grad=False)
        want, without = sampled(apply(family), one.call), sampled(one.model, one.call)
    finally:
        for name, (weight, _) in merged.items():
            inner.get_submodule(name).weight = weight
    assert error(got, want, without) < SAME
    assert error(got, sampled(apply(family), one.call), without) > 0.01


# Kontext


@FLUX
def test_reference_latents(apply, models, family):
    """By core's node: a mask of 1 is none, for the picture's tokens and for those of the reference behind them."""
    from comfy_extras.nodes_edit_model import ReferenceLatent

    flux = models["flux"]
    reference = {"samples": synth.noise("reference", (1, 16, 6, 10), 1.0)}
    positive = ReferenceLatent.execute(conditioning(flux.call), reference).args[0]
    want, got, without = (
        sampled(model, flux.call, positive) for model in (apply(family), apply(family, mask=torch.ones(1, 8, 8)), flux.model)
    )
    assert error(got, want, without) < SAME
    assert error(sampled(apply(family), flux.call), want, without) > 50 * SAME  # the reference counts


# Patches on the same block


def skip(args, extra):
    """What core's SkipLayerGuidance puts on a block, and what caches of steps do."""
    return args


@FAMILIES
def test_a_block_that_is_skipped_has_no_image_attention(apply, models, family):
    arch = whole.ADAPTERS[family][0]
    skipping = models[arch].model.clone()
    skipping.set_model_patch_replace(skip, "dit", "double_block", 3)
    before = apply(family, model=skipping)
    after = apply(family)
    after.set_model_patch_replace(skip, "dit", "double_block", 3)
    others = apply(family, layer_weights=", ".join(f"{i}: 1" for i in range(BLOCKS[family]) if i != 3))
    others.set_model_patch_replace(skip, "dit", "double_block", 3)
    want, without = noise(models, family, others), noise(models, family, skipping)
    assert error(noise(models, family, before), want, without) < SAME
    assert error(noise(models, family, after), want, without) < SAME
    assert error(noise(models, family, apply(family)), want, without) > 0.01


@FAMILIES
def test_a_patch_set_after_ours_that_calls_it(apply, models, family):
    """Also on copies of the model, whose patches are others; and with another adapter on top."""
    want = noise(models, family, apply(family))
    patched = apply(family, end_at=0.9)
    ours = patched.model_options["transformer_options"]["patches_replace"]["dit"]["double_block", 3]
    patched.set_model_patch_replace(lambda args, extra: ours(args, extra), "dit", "double_block", 3)
    without = models[whole.ADAPTERS[family][0]].plain
    assert error(noise(models, family, patched), want, without) < SAME
    assert error(noise(models, family, patched.clone()), want, without) < SAME
    top = {"positive": whole.features(family, tag="b")}
    both = noise(models, family, apply(family, model=apply(family), **top))
    assert error(noise(models, family, apply(family, model=patched, **top)), both, without) < SAME


@FAMILIES
def test_blocks_that_get_no_options(apply, models, family, caplog):
    """As copies of older forwards call them (TeaCache's): those blocks have no image attention, and that is said once."""
    from ipadapter_pack.nodes.host.engine.chunks import tell_once

    tell_once.cache_clear()
    patched = apply(family)
    ours = patched.model_options["transformer_options"]["patches_replace"]["dit"]["double_block", 3]

    def theirs(args, extra):
        def block(given):
            return extra["original_block"]({**given, "transformer_options": args["transformer_options"]})

        return ours({key: value for key, value in args.items() if key != "transformer_options"}, {"original_block": block})

    patched.set_model_patch_replace(theirs, "dit", "double_block", 3)
    others = apply(family, layer_weights=", ".join(f"{i}: 1" for i in range(BLOCKS[family]) if i != 3))
    assert error(noise(models, family, patched), noise(models, family, others), models[whole.ADAPTERS[family][0]].plain) < SAME
    noise(models, family, patched)
    (warning,) = (record.message for record in caplog.records if "image prompt" in record.message)
    assert warning == "Another node calls the model's blocks by itself: the image prompt is left out of those calls."


@FAMILIES
def test_a_cache_of_steps(apply, models, family):
    """Core's, which skip whole model calls: they change nothing where they skip none, and those that they do not skip have the picture."""
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

    arch = whole.ADAPTERS[family][0]
    one, seen = models[arch], []
    node = EasyCacheNode if arch == "flux" else LazyCacheNode  # the former stands on a wrapper that core's SD3 does not call

    def cached(model, threshold):
        return node.execute(model, threshold, 0.0, 1.0, False).args[0]

    def run(model):
        """What is sampled, and what comes out of the last block in each call."""
        seen.clear()
        return sampled(model, one.call, steps=6), list(seen)

    block = one.model.model.diffusion_model.get_submodule(FEW[arch][-1])
    handle = block.register_forward_hook(lambda module, inputs, out: seen.append((out if arch == "flux" else out[1]).clone()))
    try:
        with whole.left(one.model, *FEW[arch]):
            patched = apply(family)
            (want, every), (same, _), (got, few) = (run(model) for model in (patched, cached(patched, 0.0), cached(patched, 3.0)))
            without, alone = run(cached(one.model, 3.0))
    finally:
        handle.remove()
    assert torch.equal(same, want)
    assert len(every) == 6 and 0 < len(few) < 6
    assert torch.equal(few[0], every[0]) and not torch.equal(few[0], alone[0])
    assert torch.isfinite(got).all() and not torch.equal(got, without)


# Weights


@FAMILIES
def test_fp8_weights(apply, models, family):
    """As the same rounded weights in float32: they are cast when a layer is called."""
    arch, eight = whole.ADAPTERS[family][0], torch.float8_e4m3fn
    state = {key: value.to(eight).float() for key, value in models[arch].model.model.diffusion_model.state_dict().items()}
    rounded, cast = whole.comfyui(arch), whole.comfyui(arch, stored=eight)
    for model in (rounded, cast):
        model.model.diffusion_model.load_state_dict(state)
    assert {part.dtype for part in cast.model.diffusion_model.parameters()} == {eight}
    want, got = (noise(models, family, apply(family, model=model)) for model in (rounded, cast))
    assert error(got, want, noise(models, family, rounded)) < SAME


class Packed(torch.nn.Module):
    """A layer as packs of quantised models have it: what lies in `weight` is no number of the weight, and only calling it works."""

    weight = torch.zeros(3, dtype=torch.uint8)

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args):
        return self.layer(*args)


@FAMILIES
def test_quantised_weights(apply, models, family):
    arch = whole.ADAPTERS[family][0]
    model = whole.comfyui(arch, models[arch].reference)
    inner = model.model.diffusion_model
    for block in (*inner.double_blocks, *inner.single_blocks) if arch == "flux" else inner.joint_blocks:
        for parent in list(block.modules()):
            for name, layer in list(parent.named_children()):
                if not list(layer.children()) and getattr(layer, "weight", None) is not None:
                    setattr(parent, name, Packed(layer))
    want = noise(models, family, apply(family))
    assert error(noise(models, family, apply(family, model=model)), want, models[arch].plain) < SAME


# Other transformers


def chroma():
    import comfy.supported_models

    config = comfy.supported_models.Chroma(
        dict(
            image_model="chroma", in_channels=64, out_channels=64, context_in_dim=whole.TEXT["flux"], hidden_size=whole.WIDTH["flux"],
            mlp_ratio=4.0, num_heads=whole.HEADS["flux"], depth=19, depth_single_blocks=38, axes_dim=[4, 6, 6], theta=10000, patch_size=2,
            qkv_bias=True, in_dim=64, out_dim=whole.WIDTH["flux"], hidden_dim=64, n_layers=2, dtype=torch.float32,
        )
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    built = config.get_model({}, "", device=None)
    synth.fill(built.diffusion_model, "chroma")
    return whole.patcher(built, torch.float32)


def test_chroma_takes_instantx_with_a_warning(apply, caplog):
    from ipadapter_pack.nodes.host.engine.chunks import tell_once

    model, call = chroma(), whole.given("flux")
    tell_once.cache_clear()
    patched = [apply("flux-instantx", model=model, **how) for how in ({}, {"mask": torch.ones(1, 4, 4)}, {"mask": torch.zeros(1, 4, 4)})]
    (warning,) = (record.message for record in caplog.records if "Chroma" in record.message)
    assert warning.startswith("InstantX") and warning.endswith("was made for Flux: on Chroma, which has its blocks, it is untested.")
    without = comfyui_noise(model, "flux", call)
    want, ones, zeros = (comfyui_noise(one, "flux", call) for one in patched)
    assert (want - without).norm() > 0.01 * without.norm()
    assert error(ones, want, without) < SAME
    assert torch.equal(zeros, without)


def test_chroma_is_refused_for_xlabs(apply, host):
    from ipadapter_pack.ipadapter_core.errors import IPAdapterError

    with pytest.raises(IPAdapterError, match=r"model is Chroma\. Load an adapter for Flux by InstantX, or connect a Flux model"):
        apply("flux-xlabs", model=chroma())


@pytest.mark.parametrize("name", ["ChromaRadiance", "QwenImage", "HunyuanVideo", "Lumina2", "WAN21", "AuraFlow", "HunyuanDiT", "PixArt"])
def test_other_transformers_are_named(pack, name):
    import comfy.model_base
    from ipadapter_pack.ipadapter_core.errors import IPAdapterError
    from ipadapter_pack.nodes.host.engine.base import base_of

    kind = getattr(comfy.model_base, name)
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    model.diffusion_model = torch.nn.Module()
    with pytest.raises(IPAdapterError, match=rf"^The connected model is {name}, for which .*Flux\.1 and SD3\.5 Large: connect"):
        base_of(SimpleNamespace(model=model))
