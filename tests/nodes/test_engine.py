"""What the engine promises: off is off, masks and batches act row by row, order does not matter, the model's number format is followed.

Where a result must be the same sums in the same order it is compared bit by bit; otherwise errors are shares of the adapter's effect.
"""

import pytest
import torch

from support import lab, plain, synth

TOLERANCE = 1e-4
SCALINGS = ("V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty")


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture(scope="module")
def off(small):
    """One latent, two latents and a wide one, sampled without an adapter."""
    return {1: small.out(small.unet), 2: small.out(small.unet, batch=2), "wide": small.out(small.unet, hw=(9, 12))}


def batch_node(small, **kw):
    return small.apply(node="IPAdapterBatch", encode_batch_size=0, **kw)


# Off is off


@pytest.mark.parametrize("scaling", SCALINGS)
def test_weight_0_is_off(small, off, scaling):
    assert torch.equal(small.out(small.apply(weight=0.0, embeds_scaling=scaling)), off[1])


def test_weight_0_leaves_no_patch_with_any_weight_type(small):
    types = small.pack["IPAdapterAdvanced"].INPUT_TYPES()["required"]["weight_type"][0]
    assert len(types) == 15
    for weight_type in types:
        model = small.apply(weight=0.0, weight_type=weight_type, weight_composition=0.0)
        assert model.model_options["transformer_options"] == {}, weight_type


@pytest.mark.parametrize("scaling", SCALINGS)
def test_weight_0_for_one_latent_is_off_for_it(small, off, scaling):
    model = batch_node(small, weight=[0.0, 0.8], embeds_scaling=scaling)
    got = small.out(model, batch=2)
    assert torch.equal(got[0], off[2][0])
    assert not torch.equal(got[1], off[2][1])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_black_mask_is_off(small, off, scaling):
    assert torch.equal(small.out(small.apply(attn_mask=torch.zeros(1, 40, 30), embeds_scaling=scaling)), off[1])


# Masks


@pytest.mark.parametrize("hw", [(8, 8), (9, 12)])
def test_a_white_mask_is_no_mask(small, off, hw):
    want = small.out(small.apply(), hw=hw)
    got = small.out(small.apply(attn_mask=torch.ones(1, 64, 64)), hw=hw)
    assert plain.error(got, want, off[1 if hw == (8, 8) else "wide"]) < TOLERANCE


def test_a_grey_mask_halves_the_weight(small, off):
    want = small.out(small.apply(weight=0.4))
    got = small.out(small.apply(attn_mask=torch.full((1, 64, 64), 0.5)))
    assert plain.error(got, want, off[1]) < TOLERANCE


def test_a_half_mask_acts_in_its_half(small):
    """In one layer's output, before the UNet mixes the places: image attention in the left columns, none in the right ones."""
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :4] = 1
    outputs = {}

    def sampled(name, model):
        def spy(out, extra_options):
            if extra_options["block"] == ("input", 1):
                outputs.setdefault(name, out.clone())
            return out

        watched = model.clone()
        watched.set_model_attn2_output_patch(spy)
        small.out(watched, steps=1)
        return outputs[name].unflatten(1, (8, 8))

    bare, full, half = sampled("bare", small.unet), sampled("full", small.apply()), sampled("half", small.apply(attn_mask=mask))
    assert torch.equal(half[:, :, 4:], bare[:, :, 4:])
    assert plain.error(half[:, :, :4], full[:, :, :4], bare[:, :, :4]) < TOLERANCE


# Batches and stacks


def test_a_batch_of_two_pictures_is_two_single_runs(small, off):
    pictures = lab.images(2)
    got = small.out(batch_node(small, image=pictures), batch=2)
    noise = synth.noise("noise1", (2, 4, 8, 8), 1.7)
    import comfy.sample

    for i in range(2):
        model = small.apply(image=pictures[i : i + 1])
        how = dict(denoise=1.0, disable_pbar=True, seed=1)
        prompts = lab.cond("sd15"), lab.cond("sd15", tag="neg")
        want = comfy.sample.sample(model, noise[i : i + 1], 2, 4.0, "euler", "normal", *prompts, torch.zeros(1, 4, 8, 8), **how)
        assert plain.error(got[i : i + 1], want, off[2][i : i + 1]) < TOLERANCE


def test_stacked_adapters_in_any_order(small, off):
    """They add up: the other order is the same to rounding, and both together are the sum in every layer."""
    first, second = dict(weight=0.5), dict(image=lab.images(1, tag="b"), weight=0.3, attn_mask=torch.linspace(0, 1, 64).expand(1, 64, 64))
    want = small.out(small.apply(small.apply(**first), **second))
    got = small.out(small.apply(small.apply(**second), **first))
    assert plain.error(got, want, off[1]) < TOLERANCE


def test_two_halves_are_a_whole(small, off):
    want = small.out(small.apply(weight=0.8))
    got = small.out(small.apply(small.apply(weight=0.5), weight=0.3))
    assert plain.error(got, want, off[1]) < TOLERANCE


def test_queued_again_it_is_the_same_picture(small):
    first = small.out(small.apply())
    assert torch.equal(small.out(small.apply(ipadapter=small.load())), first)
    plain.clear_caches()
    assert torch.equal(small.out(small.apply()), first)


# Number formats


def stored(source, dtype, compute=None):
    """The UNet of `source` with its weights stored as `dtype`, computing in `compute` or that dtype, and its fp32 twin."""
    import comfy.model_base
    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy.supported_models

    def build(dtype, compute, sd):
        config = comfy.supported_models.SD15(dict(lab.CONF["sd15"], model_channels=32, dtype=dtype))
        config.set_inference_dtype(dtype, compute)
        model = comfy.model_base.BaseModel(config, device=None)
        model.diffusion_model.load_state_dict(sd)
        model.diffusion_model.to(dtype)
        return comfy.model_patcher.ModelPatcher(model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())

    rounded = {key: value.to(dtype) for key, value in source.model.diffusion_model.state_dict().items()}
    twin = build(torch.float32, None, {key: value.float() for key, value in rounded.items()})
    return build(dtype, compute, rounded), twin


@pytest.mark.parametrize(
    ("dtype", "compute", "tolerance"),
    [
        (torch.float16, None, 0.0125),
        (torch.bfloat16, None, 0.1),
        (torch.float8_e4m3fn, torch.float32, TOLERANCE),
        (torch.float8_e4m3fn, torch.bfloat16, 0.1),
        (torch.bfloat16, torch.float32, TOLERANCE),
    ],
    ids=str,
)
def test_follows_the_models_numbers(small, dtype, compute, tolerance):
    """Against the same weights in fp32. Tolerances: 1/1024 (fp16) and 1/128 (bf16) of each value, over some 40 layers and two steps."""
    model, twin = stored(small.unet, dtype, compute)
    adapted = small.apply(model)
    (patch, *_) = adapted.model_options["transformer_options"]["patches_replace"]["attn2"].values()
    assert patch.applications[0].kv.rows.dtype == (compute or dtype)
    got = small.out(adapted)
    assert torch.isfinite(got).all()
    assert plain.error(got - small.out(model), small.out(small.apply(twin)) - small.out(twin), torch.zeros(1)) < tolerance


def test_a_half_precision_file_with_a_full_precision_model(small, off, comfy):
    half = {part: {key: value.half() for key, value in sd.items()} for part, sd in small.state.items()}
    synth.save_adapter(half, comfy / "models" / "ipadapter" / "half_sd15.safetensors")
    adapter = lab.call(small.pack["IPAdapterModelLoader"], ipadapter_file="half_sd15.safetensors")[0]
    assert {p.dtype for p in adapter.module.parameters()} == {torch.float16}
    whole = {part: {key: value.float() for key, value in sd.items()} for part, sd in half.items()}
    assert plain.error(small.out(small.apply(ipadapter=adapter)), small.out(small.apply(ipadapter=whole)), off[1]) < TOLERANCE
