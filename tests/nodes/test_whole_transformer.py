"""Whole Flux and SD3.5 transformers: diffusers' with its own IP-Adapter against ComfyUI's of the same weights with this pack's."""


import pytest
import torch
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

from support import synth
from support import whole_transformer as whole
from support.whole_transformer import comfyui_noise, diffusers_noise, error

RELATIVE = 1e-4  # of what the adapter changes; float32 through 57 or 38 blocks in two implementations


@pytest.mark.parametrize("arch", ["flux", "sd3"])
def test_the_two_transformers_are_the_same_without_an_adapter(models, arch):
    one = models[arch]
    want = diffusers_noise(one.reference, arch, one.call)
    assert (one.plain - want).norm() / want.norm() < 1e-5


CONTROL = [[synth.noise(f"control {i}", (1, 24, whole.WIDTH["flux"]), 0.3) for i in blocks] for blocks in (range(19), range(19, 57))]


@pytest.mark.parametrize(("tokens", "control"), [(4, None), (16, None), (4, CONTROL)], ids=["v1", "v2", "v1 beside a ControlNet"])
def test_xlabs_predicts_as_diffusers(apply, models, tokens, control):
    """control: what a ControlNet gives for double and single blocks."""
    flux, state = models["flux"], whole.xlabs(tokens)
    theirs, ours = ({} if control is None else dict(zip(names, control, strict=True)) for names in (
        ("controlnet_block_samples", "controlnet_single_block_samples"), ("input", "output")))  # fmt: skip
    flux.reference._load_ip_adapter_weights([{**state, "image_proj": whole.xlabs(4)["image_proj"]}], low_cpu_mem_usage=False)
    proj = ImageProjection(whole.FEATURES, whole.TEXT["flux"], tokens)  # whose count diffusers' loader knows by the published widths alone
    proj.load_state_dict({key.replace("proj", "image_embeds"): value for key, value in state["image_proj"].items()})
    flux.reference.encoder_hid_proj = MultiIPAdapterImageProjection([proj])
    for processor in flux.reference.attn_processors.values():
        processor.scale = [0.7]
    images = whole.features("flux-xlabs")
    want = diffusers_noise(flux.reference, "flux", flux.call, [images[:, None]], **theirs)
    got = comfyui_noise(apply("flux-xlabs", state=state, weight=0.7), "flux", flux.call, control=ours or None)
    assert (want - flux.plain).norm() / flux.plain.norm() > 0.05
    assert error(got, want, flux.plain) < RELATIVE


@pytest.fixture(scope="module")
def sd3(models):
    """With diffusers' adapter on its reference, which takes it once."""
    found = models["sd3"]
    found.reference._load_ip_adapter_weights(whole.sd3(), low_cpu_mem_usage=False)
    for processor in found.reference.attn_processors.values():
        processor.scale = 0.7
    return found


def test_sd3_predicts_as_diffusers(apply, sd3):
    images = whole.features("sd3-instantx")
    patched = apply("sd3-instantx", weight=0.7)
    for sigma in (0.7, 0.3):
        plain = comfyui_noise(sd3.model, "sd3", sd3.call, sigma)
        want = diffusers_noise(sd3.reference, "sd3", sd3.call, images, sigma)
        got = comfyui_noise(patched, "sd3", sd3.call, sigma)
        assert (want - plain).norm() / plain.norm() > 0.05
        assert error(got, want, plain) < RELATIVE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_sd3_where_the_models_own_norms_are_next_to_nothing(host, dtype):
    """What a norm has put out cannot be had back by dividing; in float16 not even where it is small."""
    reference = whole.reference("sd3")
    small = torch.tensor([0.0, -1e-30, 1e-6, 1e-3]).repeat(16)
    with torch.no_grad():
        reference.transformer_blocks[3].attn.norm_q.weight.copy_(small)
        reference.transformer_blocks[30].attn.norm_k.weight.copy_(small)
    model, call, images = whole.comfyui("sd3", reference, dtype), whole.given("sd3"), whole.features("sd3-instantx")
    plain = diffusers_noise(reference, "sd3", call)
    rounding = (comfyui_noise(model, "sd3", call) - plain).norm()
    patched = host.apply(model, host.as_adapter(whole.sd3()), (images,), (torch.zeros_like(images),), host.Settings(weight=0.7))
    got = comfyui_noise(patched, "sd3", call)
    reference._load_ip_adapter_weights(whole.sd3(), low_cpu_mem_usage=False)
    for processor in reference.attn_processors.values():
        processor.scale = 0.7
    want = diffusers_noise(reference, "sd3", call, images)
    assert (got - want).norm() < 2 * rounding + (RELATIVE if dtype == torch.float32 else 0.02) * (want - plain).norm()


def test_sd3_beside_a_controlnet_predicts_as_diffusers(apply, sd3):
    """What it gives for each block but the last, in which diffusers leaves it out."""
    control = [synth.noise(f"control {i}", (1, 24, whole.WIDTH["sd3"]), 0.3) for i in range(38)]
    want = diffusers_noise(sd3.reference, "sd3", sd3.call, whole.features("sd3-instantx"), block_controlnet_hidden_states=control)
    got = comfyui_noise(apply("sd3-instantx", weight=0.7), "sd3", sd3.call, control={"output": control[:37]})
    assert error(got, want, sd3.plain) < RELATIVE


class InstantX:
    """The published equations on diffusers' attention: q normed and before RoPE, K under an RMS norm without weights, V as it is."""

    def __init__(self, to_k, to_v, tokens, scale):
        self.k, self.v, self.scale = tokens @ to_k.T, tokens @ to_v.T, scale

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None, **_):
        from diffusers.models.embeddings import apply_rotary_emb

        assert image_rotary_emb is not None
        def heads(x):
            return x.unflatten(-1, (attn.heads, -1))

        def attend(q, k, v):
            scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
            return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)

        q, k, v = (heads(getattr(attn, f"to_{part}")(hidden_states)) for part in "qkv")
        q, k = attn.norm_q(q), attn.norm_k(k)
        k_ip = heads(self.k)
        k_ip = k_ip / (k_ip.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        image = self.scale * attend(q, k_ip.expand(len(q), -1, -1, -1), heads(self.v).expand(len(q), -1, -1, -1))
        text = 0
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.shape[1]
            added = [heads(getattr(attn, f"add_{part}_proj")(encoder_hidden_states)) for part in "qkv"]
            q, k = torch.cat([attn.norm_added_q(added[0]), q], 1), torch.cat([attn.norm_added_k(added[1]), k], 1)
            v = torch.cat([added[2], v], 1)
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        out = attend(q, k, v)
        if encoder_hidden_states is None:
            return out + image
        return attn.to_out[0](out[:, text:] + image), attn.to_add_out(out[:, :text])


def test_instantx_predicts_as_its_equations(apply, models):
    flux, state = models["flux"], whole.instantx()
    proj, layers = state["image_proj"], state["ip_adapter"]
    images = whole.features("flux-instantx")
    hidden = torch.nn.functional.gelu(images @ proj["proj.0.weight"].T + proj["proj.0.bias"])
    tokens = (hidden @ proj["proj.2.weight"].T + proj["proj.2.bias"]).view(1, -1, whole.TEXT["flux"])
    tokens = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:], proj["norm.weight"], proj["norm.bias"])
    before = flux.reference.attn_processors
    names = [*(f"transformer_blocks.{i}" for i in range(19)), *(f"single_transformer_blocks.{i}" for i in range(38))]
    ours = {f"{name}.attn.processor": InstantX(layers[f"{i}.to_k_ip.weight"], layers[f"{i}.to_v_ip.weight"], tokens, 0.6)
            for i, name in enumerate(names)}  # fmt: skip
    flux.reference.set_attn_processor(ours)
    try:
        want = diffusers_noise(flux.reference, "flux", flux.call)
    finally:
        flux.reference.set_attn_processor(before)
    got = comfyui_noise(apply("flux-instantx", state=state, weight=0.6), "flux", flux.call)
    assert (want - flux.plain).norm() / flux.plain.norm() > 0.05
    assert error(got, want, flux.plain) < RELATIVE
