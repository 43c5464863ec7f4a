"""Which chunk of a model call gets the positive and which the negative tokens, and which latent which picture.

The reference is the plain adapter of support/plain.py, which knows a chunk's side by the text the UNet is really given. Errors are
shares of the adapter's effect; TOLERANCE is the rounding of float32 sums in another order.
"""

import pytest
import torch

from support import lab, plain

TOLERANCE = 1e-4
POSITIVE, NEGATIVE, THIRD = lab.cond("sd15"), lab.cond("sd15", tag="neg"), lab.cond("sd15", tag="third")


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture(scope="module")
def adapted(small):
    return small.apply()


def assert_same(sample, ours, theirs, without):
    want = sample(theirs)
    assert plain.error(sample(ours), want, sample(without)) < TOLERANCE


def test_the_sides_are_far_apart(small, adapted):
    """What the other tests rest on: wrong sides would be seen."""
    want = small.out(small.reference([POSITIVE]))
    assert plain.error(small.out(adapted), want, small.out(small.unet)) > 0.1


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_cfg(small, adapted, style):
    """[negative, middle, positive]: the first of three is the negative one, the middle one belongs to the positive side."""
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    def sample(model):
        return plain.run(DualCFGGuider.execute(model, POSITIVE, THIRD, NEGATIVE, 4.0, 3.0, style)[0])

    assert_same(sample, adapted, small.reference([NEGATIVE]), small.unet)


def test_dual_cfg_leaves_out_the_negative_at_cfg_1(small, adapted):
    """[None, middle, positive]: indices 1 and 2 are both positive."""
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    def sample(model):
        return plain.run(DualCFGGuider.execute(model, POSITIVE, THIRD, NEGATIVE, 4.0, 1.0, "regular")[0])

    assert_same(sample, adapted, small.reference([NEGATIVE]), small.unet)


@pytest.mark.parametrize("neg_scale", [1.0, 0.0])
def test_perp_neg(small, adapted, neg_scale):
    """[positive, negative, empty_negative_prompt]: both of the latter are negative."""
    from comfy_extras.nodes_perpneg import PerpNegGuider

    def sample(model):
        return plain.run(PerpNegGuider.execute(model, POSITIVE, NEGATIVE, THIRD, 5.0, neg_scale)[0])

    assert_same(sample, adapted, small.reference([NEGATIVE, THIRD]), small.unet)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_self_attention_guidance(small, adapted, first):
    """SAG calls the UNet once more with the negative cond alone, as index 0."""
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    def guided(model):
        return SelfAttentionGuidance.execute(model, 0.8, 2.0)[0]

    ours = guided(adapted) if first == "ours" else small.apply(guided(small.unet))

    def sample(model):
        return small.out(model, hw=(16, 16))

    assert_same(sample, ours, small.reference([NEGATIVE], guided(small.unet)), guided(small.unet))


def test_perturbed_attention_guidance(small, adapted):
    """PAG calls the UNet once more with the positive cond alone."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    def guided(model):
        return PerturbedAttentionGuidance.execute(model, 2.0)[0]

    assert_same(small.out, guided(adapted), small.reference([NEGATIVE], guided(small.unet)), guided(small.unet))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_cfg_guider(small, adapted, cfg):
    assert_same(lambda model: small.out(model, cfg=cfg), adapted, small.reference([NEGATIVE]), small.unet)


def test_chunks_in_calls_of_their_own(small, adapted, monkeypatch):
    """With little free memory ComfyUI sends each chunk alone."""
    import comfy.model_management

    batches = []

    def seen(apply_model, args):
        batches.append(args["input"].shape[0])
        return apply_model(args["input"], args["timestep"], **args["c"])

    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kw: 0)
    assert_same(small.out, adapted, small.reference([NEGATIVE]), small.unet)
    watched = adapted.clone()
    watched.set_model_unet_function_wrapper(seen)
    small.out(watched)
    assert set(batches) == {1}


def test_prompts_with_areas(small, adapted):
    """ComfyUI gives the other side a copy of each area's cond, uuid included: two positives, three negatives, mixed shapes."""
    left = plain.core_node("ConditioningSetArea").append(THIRD, 32, 64, 0, 0, 1.0)[0]
    positive = POSITIVE + left

    def sample(model):
        return small.out(model, positive=positive)

    assert_same(sample, adapted, small.reference([NEGATIVE]), small.unet)


def test_several_prompts_of_one_shape(small, adapted):
    """Two prompts for each side: four chunks in one call."""
    fourth = lab.cond("sd15", tag="fourth")
    half = plain.core_node("ConditioningSetAreaStrength").append(fourth, 0.5)[0]

    def sample(model):
        return small.out(model, positive=POSITIVE + THIRD, negative=NEGATIVE + half)

    assert_same(sample, adapted, small.reference([NEGATIVE, fourth]), small.unet)


def test_a_call_without_a_guider(small, adapted):
    """Where no guider tells the names, number 0 is the prompt and every other one is negative."""
    options = {**adapted.model_options["transformer_options"], "cond_or_uncond": [1, 0]}
    x = lab.synth.noise("x", (2, 4, 8, 8), 1.7)
    text = torch.cat([NEGATIVE[0][0], POSITIVE[0][0]])
    t = torch.tensor([3.0, 3.0])
    positive, negative = small.sides(lab.images(1))
    theirs = small.plain_model(lambda extra_options, batch: torch.cat([negative, positive]))
    with torch.inference_mode():
        got = adapted.model.apply_model(x, t, c_crossattn=text, transformer_options=options)
        want = theirs.model.apply_model(x, t, c_crossattn=text, transformer_options=theirs.model_options["transformer_options"])
        without = small.unet.model.apply_model(x, t, c_crossattn=text)
    assert plain.error(got, want, without) < TOLERANCE


# Frames: picture, weight and mask i belong to frame i, whatever part of the frames a call holds.

PICTURES = lab.images(4, tag="frame")
WEIGHTS = [0.9, 0.3, 0.0, -0.4]
MASKS = torch.stack([torch.full((16, 16), value) for value in (1.0, 0.2, 0.7, 0.5)])
MASKS[:, :, 9:] *= 0.3


def frames(small, index, model=None):
    """The batch node with the pictures, weights and masks of some frames."""
    index = list(index)
    given = dict(image=PICTURES[index], weight=[WEIGHTS[i] for i in index], attn_mask=MASKS[index])
    return small.apply(model, node="IPAdapterBatch", encode_batch_size=0, **given)


def noise_of(index):
    return lab.synth.noise("frames", (4, 4, 8, 8), 1.7)[list(index)]


def sample_frames(model, index, steps=3):
    """Three steps for four frames: core's context windows compare the list of sigmas with one sigma a frame, element by element."""
    import comfy.sample

    noise = noise_of(index)
    how = dict(denoise=1.0, disable_pbar=True, seed=1)
    return comfy.sample.sample(model, noise, steps, 4.0, "euler", "normal", POSITIVE, NEGATIVE, torch.zeros_like(noise), **how)


@pytest.mark.parametrize("index", [(2, 3), (1, 2), (3, 0)])
def test_animatediff_frames(small, index):
    """AnimateDiff names the frames of a call in ad_params: the same as the batch node fed with those frames alone."""
    model = frames(small, range(4))
    model.model_options["transformer_options"]["ad_params"] = {"sub_idxs": list(index), "full_length": 4}
    assert_same(lambda m: sample_frames(m, index), model, frames(small, index), small.unet)


def test_animatediff_without_windows(small):
    model = frames(small, range(4))
    model.model_options["transformer_options"]["ad_params"] = {"sub_idxs": None, "full_length": 4}
    assert torch.equal(sample_frames(model, range(4)), sample_frames(frames(small, range(4)), range(4)))


def test_more_frames_than_pictures(small):
    """The last picture, weight and mask repeat."""
    model = frames(small, (0, 1))
    model.model_options["transformer_options"]["ad_params"] = {"sub_idxs": [1, 3], "full_length": 4}
    assert_same(lambda m: sample_frames(m, (1, 3)), model, frames(small, (1, 1)), small.unet)


def windowed(model, length=2, overlap=0, schedule="batched"):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    return ContextWindowsManualNode.execute(model, length, overlap, schedule, 1, False, "flat", 0)[0]


@pytest.mark.parametrize("order", ["windows last", "windows first"])
def test_context_windows(small, order):
    """Core's node in windows of two frames: each half as if it were sampled alone, negatives told by uuid."""
    model = windowed(frames(small, range(4))) if order == "windows last" else frames(small, range(4), windowed(small.unet))
    got = sample_frames(model, range(4))
    for half in ((0, 1), (2, 3)):
        want = sample_frames(frames(small, half), half)
        assert plain.error(got[list(half)], want, sample_frames(small.unet, half)) < TOLERANCE


def test_overlapping_context_windows_of_an_even_model(small):
    """With one picture for all frames and each frame sampled alone by the UNet, windows change nothing."""
    adapted = small.apply()
    want = sample_frames(adapted, range(4))
    got = sample_frames(windowed(adapted, 3, 2, "standard_static"), range(4))
    assert plain.error(got, want, sample_frames(small.unet, range(4))) < TOLERANCE


def test_dual_cfg_in_context_windows(small, adapted):
    """Windows hand over copies of the conds, with the negative first: the uuids tell them apart."""
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    def sample(model):
        return plain.run(DualCFGGuider.execute(model, POSITIVE, THIRD, NEGATIVE, 4.0, 3.0, "regular")[0], steps=1, batch=2)

    assert_same(sample, windowed(adapted, 1), small.reference([NEGATIVE]), small.unet)


# The window of sampling


def calls(model, **kw):
    """(sigma, patched?) of every model call, by what the plan says to the layers."""
    from ipadapter_pack.nodes.host.engine.layer_patch import PLAN

    seen = []

    def spy(q, k, v, extra_options):
        _, (layout,) = extra_options[PLAN].layouts[1]
        seen.append((float(extra_options["sigmas"][0]), layout is not None))
        return q, k, v

    watched = model.clone()
    watched.set_model_attn1_patch(spy)
    lab.sample(watched, "sd15", **kw)
    return dict(seen)


def test_the_window_follows_the_sigma(small):
    """Open while sigma(end_at) <= sigma <= sigma(start_at), at whatever steps the sampler takes (heun calls twice a step)."""
    sampling = small.unet.get_model_object("model_sampling")
    start, end = sampling.percent_to_sigma(0.2), sampling.percent_to_sigma(0.7)
    seen = calls(small.apply(start_at=0.2, end_at=0.7), steps=6, sampler="heun", scheduler="karras")
    assert seen == {sigma: end <= sigma <= start for sigma in seen}
    assert len(set(seen.values())) == 2


def test_a_window_that_no_step_meets(small):
    """Between two steps: bit for bit as without an adapter."""
    narrow = small.apply(start_at=0.001, end_at=0.002)
    assert torch.equal(small.out(narrow), small.out(small.unet))


def test_each_adapter_has_its_window(small):
    """Two in sequence over the halves of the sampling: the sampler's steps, run by hand with one model each."""
    sampling = small.unet.get_model_object("model_sampling")
    other = lab.images(1, tag="other")
    both = small.apply(small.apply(end_at=0.5), start_at=0.5001, image=other)
    half = sampling.percent_to_sigma(0.5)

    positive, negative = small.sides(lab.images(1)), small.sides(other)

    def rows(extra_options, batch):
        tokens = positive if extra_options["sigmas"][0] >= half else negative
        return plain.by_sides(*tokens)(extra_options, batch)

    theirs = plain.name_sides(small.plain_model(rows), [NEGATIVE[0][0]])
    assert_same(lambda model: small.out(model, steps=5), both, theirs, small.unet)
