"""Neighbours that change what a layer sees, each with a mask on.

Reference: the plain adapter of support/plain_masked.py, which takes the grid of a layer's tokens from the activations themselves.
Errors are shares of the adapter's effect; TOLERANCE is the rounding of float32 sums in another order.
"""

import importlib

import pytest
import torch

from support import lab, plain, plain_masked

TOLERANCE = 1e-4
MASK = plain_masked.spotted()


@pytest.fixture(scope="module")
def sd15(pack, comfy):
    return plain_masked.Masked(pack, comfy, "sd15")


@pytest.fixture(scope="module")
def sdxl(pack, comfy):
    return plain_masked.Masked(pack, comfy, "sdxl")


@pytest.fixture
def rig(request, sd15, sdxl):
    return {"sd15": sd15, "sdxl": sdxl}[request.param]


both = pytest.mark.parametrize("rig", ["sd15", "sdxl"], indirect=True)


def assert_same(rig, add=lambda model: model, mask=MASK, **kw):
    """add(a model with our adapter) samples what add(the plain one) samples; kw goes to the sampling."""
    theirs = add(rig.unet)
    want, without = rig.out(rig.masked(mask, theirs), **kw), rig.out(theirs, **kw)
    got = rig.out(add(rig.apply(attn_mask=mask)), **kw)
    assert torch.isfinite(want).all()
    assert (want - without).norm() > 1e-2 * without.norm()
    assert plain.error(got, want, without) < TOLERANCE


def node(module, name, **inputs):
    def add(model):
        cls = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
        made = cls.execute(model, **inputs) if hasattr(cls, "execute") else getattr(cls(), cls.FUNCTION)(model, **inputs)
        return made[0]

    return add


def test_a_wrong_grid_would_be_seen(sd15):
    """What the other tests rest on."""
    want, without = sd15.out(sd15.masked(MASK)), sd15.out(sd15.unet)
    for wrong in (MASK.transpose(-1, -2), torch.full_like(MASK, float(MASK.mean()))):
        assert plain.error(sd15.out(sd15.masked(wrong)), want, without) > 0.1


# Sizes


@pytest.mark.parametrize("hw", [(7, 13), (13, 7), (9, 10), (17, 16), (33, 32), (21, 40)])
def test_odd_latents(sd15, hw):
    """17 x 16 and 33 x 32 have levels nearly square, where a grid guessed from the count alone is transposed, as at 520 x 512 pixels."""
    assert_same(sd15, hw=hw)


@pytest.mark.parametrize("hw", [(17, 16), (9, 14)])
def test_odd_latents_of_sdxl(sdxl, hw):
    assert_same(sdxl, hw=hw)


@both
def test_passes_at_two_sizes(rig):
    """One patched model, sampled small, large and small again, as a hires fix does."""
    model, reference = rig.apply(attn_mask=MASK), rig.masked(MASK)
    first = None
    for hw in ((9, 12), (14, 18), (9, 12)):
        got = rig.out(model, hw=hw)
        assert plain.error(got, rig.out(reference, hw=hw), rig.out(rig.unet, hw=hw)) < TOLERANCE
        first = got if first is None else first
    assert torch.equal(got, first)


# ComfyUI's own nodes


def shrink(factor, block=3, **kw):
    how = dict(downscale_after_skip=True, downscale_method="bilinear", upscale_method="bilinear", start_percent=0.0, end_percent=1.0)
    return node("nodes_model_downscale", "PatchModelAddDownscale", block_number=block, downscale_factor=factor, **how | kw)


def hypertile(size=64, **kw):
    how = dict(swap_size=1, max_depth=1, scale_depth=False)
    return node("nodes_hypertile", "HyperTile", tile_size=size, **how | kw)


NODES = {
    "FreeU": node("nodes_freelunch", "FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    "FreeU_V2": node("nodes_freelunch", "FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "PAG": node("nodes_pag", "PerturbedAttentionGuidance", scale=3.0),
    "SAG": node("nodes_sag", "SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "HyperTile": hypertile(),
    "HyperTile swapping": hypertile(32, swap_size=3, scale_depth=True),
    "ToMe": node("nodes_tomesd", "TomePatchModel", ratio=0.5),
}


@pytest.mark.parametrize("name", NODES)
def test_a_node(sd15, name):
    assert_same(sd15, NODES[name])


def test_hypertile_with_sdxl(sdxl):
    assert_same(sdxl, NODES["HyperTile"], hw=(16, 32))


@pytest.mark.parametrize("name", ["HyperTile", "ToMe"])
def test_tilers_and_mergers_at_odd_sizes(sd15, name):
    """Both regroup the tokens of self-attention only and put them back before cross-attention, which sees the level's own grid."""
    assert_same(sd15, NODES[name], hw=(17, 16))


def merging_cross_attention(model):
    """ToMe on cross-attention, an option of tomesd that ComfyUI's node has not: merged before it, put back behind it."""
    from comfy_extras.nodes_tomesd import get_functions

    back = []

    def merge(n, context, value, extra_options):
        merged, undo = get_functions(n, 0.5, extra_options["original_shape"])
        back.append(undo)
        return merged(n), context, value

    model = model.clone()
    model.set_model_attn2_patch(merge)
    model.set_model_attn2_output_patch(lambda out, extra_options: back.pop()(out))
    return model


def test_merged_tokens_without_a_mask(sd15):
    """Nothing depends on where a token lies."""
    theirs = merging_cross_attention(sd15.unet)
    want, without = sd15.out(sd15.reference([sd15.negative], theirs)), sd15.out(theirs)
    assert plain.error(sd15.out(merging_cross_attention(sd15.apply())), want, without) < TOLERANCE


def test_merged_tokens_with_a_mask(sd15, caplog):
    """A merged token has several places: no grid is right, and the guessed one is 70 % of the effect off. It is said, once."""
    from ipadapter_pack.nodes.host.engine.chunks import tell_once

    tell_once.cache_clear()
    sd15.out(merging_cross_attention(sd15.apply(attn_mask=MASK)))
    told = [record.message for record in caplog.records if "attn_mask is not exact" in record.message]
    assert len(told) == 1


@pytest.mark.parametrize(("factor", "block", "hw"), [(2.0, 3, (16, 24)), (1.6, 3, (17, 26)), (1.7, 1, (21, 14)), (1.3, 6, (24, 20))])
def test_deep_shrink(sd15, factor, block, hw):
    assert_same(sd15, shrink(factor, block), hw=hw)


def test_deep_shrink_that_ends_on_the_way(sd15):
    """Later steps are at the levels' own sizes: the layouts of both are needed side by side."""
    assert_same(sd15, shrink(1.6, end_percent=0.4), hw=(17, 26), steps=3)


def test_deep_shrink_of_sdxl(sdxl):
    assert_same(sdxl, shrink(1.6, 4), hw=(18, 26))


def test_deep_shrink_with_hypertile_and_tome(sd15):
    assert_same(sd15, lambda model: NODES["ToMe"](hypertile()(shrink(1.6)(model))), hw=(16, 32))


def test_model_merge(sd15):
    """The first model's adapter stays, the second model's does not come over."""
    from comfy_extras.nodes_model_merging import ModelMergeBlocks

    second = lab.unet("sd15", seed="second")
    other = sd15.apply(second, image=lab.images(1, tag="b"), attn_mask=1 - MASK)

    assert_same(sd15, lambda model: ModelMergeBlocks().merge(model, other, input=0.5, middle=0.7, out=0.9)[0])


def test_whole_model_compiled(sd15):
    """As TorchCompileModel sets it, with dynamo's tracing and no code generation; a graph break is an error."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    def compiled(model):
        model = model.clone()
        torch._dynamo.reset()
        set_torch_compile_wrapper(model, backend="eager", fullgraph=True)
        return model

    want, without = sd15.out(sd15.masked(MASK), hw=(9, 10)), sd15.out(sd15.unet, hw=(9, 10))
    assert plain.error(sd15.out(compiled(sd15.apply(attn_mask=MASK)), hw=(9, 10)), want, without) < TOLERANCE


# What steers beside the prompt


def test_controlnet(sd15):
    hint = lab.images(1, h=128, w=192, tag="hint")
    apply = plain.core_node("ControlNetApplyAdvanced").apply_controlnet
    applied = apply(sd15.positive, sd15.negative, plain_masked.control_net(), hint, 0.01, 0.0, 1.0)
    prompts = dict(zip(("positive", "negative"), applied, strict=True))
    assert_same(sd15, **prompts)
    assert not torch.equal(sd15.out(sd15.unet, **prompts), sd15.out(sd15.unet))


def test_gligen(sd15):
    positive = plain_masked.gligen(sd15.positive, [(8, 10, 2, 3), (5, 5, 10, 14)])
    assert_same(sd15, positive=positive)
    assert not torch.equal(sd15.out(sd15.unet, positive=positive), sd15.out(sd15.unet))


@pytest.mark.parametrize("hw", [(16, 24), (17, 16)])
def test_inpainting_with_nine_channels(sd15, monkeypatch, hw):
    """The UNet of an inpainting checkpoint: 4 channels of the latent, one of the mask, 4 of the masked picture."""
    import node_helpers

    monkeypatch.setitem(lab.CONF, "sd15", {**lab.CONF["sd15"], "in_channels": 9})
    unet = lab.unet("sd15")
    unet.model.set_inpaint()
    hole = torch.zeros(1, 1, 8 * hw[0], 8 * hw[1])
    hole[..., 20:90, 30:70] = 1
    given = {"concat_latent_image": lab.synth.noise("picture", (1, 4, *hw), 1.0), "concat_mask": hole}
    prompts = {side: node_helpers.conditioning_set_values(getattr(sd15, side), given) for side in ("positive", "negative")}
    want, without = sd15.out(sd15.masked(MASK, unet), hw=hw, **prompts), sd15.out(unet, hw=hw, **prompts)
    assert plain.error(sd15.out(sd15.apply(unet, attn_mask=MASK), hw=hw, **prompts), want, without) < TOLERANCE


# Areas


def area(prompt, height, width, y, x, start=0.0, end=1.0):
    """The prompt for a part of the latent (in latents) and of the sampling."""
    prompt = plain.core_node("ConditioningSetArea").append(prompt, 8 * width, 8 * height, 8 * x, 8 * y, 1.0)[0]
    return plain.core_node("ConditioningSetTimestepRange").set_range(prompt, start, end)[0]


@both
def test_areas_with_timestep_ranges(rig):
    """One area in the first step and another one of the same size in the last, besides the prompt itself."""
    fourth = lab.cond(rig.arch, tag="fourth")
    positive = rig.positive + area(rig.third, 9, 10, 3, 2, 0.0, 0.4) + area(fourth, 9, 10, 6, 12, 0.4, 1.0)
    assert_same(rig, positive=positive, steps=2)


def test_deep_shrink_in_an_area(sd15):
    """The mask is cropped with the latent, then brought to the shrunken grid."""
    mask = plain_masked.spotted(1, 8 * 26, 8 * 25)
    assert_same(sd15, shrink(1.6), mask, positive=sd15.positive + area(sd15.third, 17, 13, 3, 9), hw=(26, 25))


def test_areas_of_both_sides_with_a_mask_for_each_latent(sd15):
    fourth = lab.cond("sd15", tag="fourth")
    positive = area(sd15.positive, 16, 12, 0, 0) + area(sd15.third, 16, 12, 0, 12)
    negative = sd15.negative + area(fourth, 7, 9, 9, 11)
    mask = plain_masked.spotted(2)
    kw = dict(positive=positive, negative=negative, batch=2)
    reference = sd15.masked(mask, negative=[sd15.negative, fourth])
    want, without = sd15.out(reference, **kw), sd15.out(sd15.unet, **kw)
    assert plain.error(sd15.out(sd15.apply(attn_mask=mask), **kw), want, without) < TOLERANCE


# Attention couple

LEFT = plain_masked.spotted(tag="region")[0]


def regions(rig, count):
    """Texts of the second region and on, masks of all."""
    texts = [lab.cond(rig.arch, tag=f"region{i}")[0][0] for i in range(count - 1)]
    right = torch.linspace(0, 1, LEFT.shape[1]).expand_as(LEFT)
    return texts, [LEFT, 1 - LEFT] if count == 2 else [LEFT, (1 - LEFT) * right, (1 - LEFT) * (1 - right)]


@pytest.mark.parametrize(
    ("rig", "count", "batch"), [("sd15", 2, 1), ("sd15", 3, 1), ("sd15", 3, 2), ("sdxl", 2, 2)], indirect=["rig"]
)
def test_attention_couple_that_tells_its_rows(rig, count, batch):
    texts, masks = regions(rig, count)
    kw = dict(batch=batch, hw=(10, 14))
    mask = plain_masked.spotted(batch)
    without = rig.out(plain_masked.couple(rig.unet, texts, masks, tells=True), **kw)
    assert (rig.out(plain_masked.coupled(rig, texts, masks), **kw) - without).norm() < TOLERANCE * without.norm()
    want = rig.out(plain_masked.coupled(rig, texts, masks, mask), **kw)
    got = rig.out(plain_masked.couple(rig.apply(attn_mask=mask), texts, masks, tells=True), **kw)
    assert plain.error(got, want, without) < TOLERANCE


@pytest.mark.parametrize(("count", "batch"), [(2, 1), (3, 1), (2, 2)])
def test_attention_couple_that_does_not_tell(sd15, count, batch):
    """Which of the rows are whose cannot be known: one sentence, never a guess."""
    from ipadapter_pack.ipadapter_core.errors import IPAdapterError

    texts, masks = regions(sd15, count)
    with pytest.raises(IPAdapterError) as told:
        sd15.out(plain_masked.couple(sd15.apply(attn_mask=MASK), texts, masks, tells=False), batch=batch)
    assert "\n" not in str(told.value)


def test_attention_couple_that_does_not_tell_in_calls_of_one_chunk(sd15):
    """At cfg 1 all rows are the prompt's: there is nothing to know."""
    texts, masks = regions(sd15, 2)
    kw = dict(cfg=1.0, hw=(10, 14))
    want, without = (sd15.out(plain_masked.coupled(sd15, texts, masks, mask), **kw) for mask in (MASK, None))
    got = sd15.out(plain_masked.couple(sd15.apply(attn_mask=MASK), texts, masks, tells=False), **kw)
    assert plain.error(got, want, without) < TOLERANCE
