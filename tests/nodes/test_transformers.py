"""Masks, batches, references, other patches, dtypes and caches on Flux and SD3.5, by properties that hold whatever the weights."""

from contextlib import contextmanager

import pytest
import torch

from support import whole_transformer as whole
from support.whole_transformer import comfyui_noise, error


@pytest.fixture
def user_error(host):
    from ipadapter_pack.ipadapter_core.errors import IPAdapterError

    return IPAdapterError


FAMILIES = pytest.mark.parametrize("family", whole.ADAPTERS)
SAME = 2e-5  # of the effect: the same sums in another order


def noise(models, family, patched, call=None, **how):
    arch = whole.ADAPTERS[family][0]
    return comfyui_noise(patched, arch, models[arch].call if call is None else call, **how)


def plain(models, family):
    return models[whole.ADAPTERS[family][0]].plain


@FAMILIES
def test_masks(apply, models, family):
    """All 1 is none, all 0 is exactly off, all 0.5 is half the weight."""
    without, whole_weight, half = plain(models, family), apply(family), apply(family, weight=0.5)
    ones, zeros, halves = (apply(family, mask=torch.full((1, 24, 24), value)) for value in (1.0, 0.0, 0.5))
    want = noise(models, family, whole_weight)
    assert error(noise(models, family, ones), want, without) < SAME
    assert torch.equal(noise(models, family, zeros), without)
    assert error(noise(models, family, halves), noise(models, family, half), without) < SAME


@pytest.mark.parametrize("references", [None, [whole.synth.noise("reference", (1, 16, 6, 10), 1.0)]], ids=["alone", "with a reference"])
def test_a_mask_lies_on_the_grid_of_patches_at_odd_sizes(apply, models, references):
    """XLabs' adapter in the last double block alone, seen where it leaves it: where the mask is 0 nothing is added.

    Kontext's reference tokens stand behind those of the picture. The one who looks stands in front of the adapter and calls it.
    """
    flux, size = models["flux"].model, (9, 13)
    call, seen = whole.given("flux", size=size), []
    mask = torch.zeros(1, 10, 14)
    mask[:, :4, 6:] = 1  # patches 0 and 1 from above, 3 to 6 from the left
    block = flux.model.diffusion_model.double_blocks[18]
    handle = block.register_forward_hook(lambda module, inputs, out: seen.append(out[0].clone()))
    try:
        patched = apply("flux-xlabs", layer_weights="18: 1", mask=mask)
        inner = patched.model_options["transformer_options"]["patches_replace"]["dit"]["double_block", 18]
        added = []

        def watched(args, extra):
            out = inner(args, extra)
            added.append(out["img"] - seen[-1])
            return out

        patched.set_model_patch_replace(watched, "dit", "double_block", 18)
        comfyui_noise(patched, "flux", call, ref_latents=references)
        assert added[0].shape[1] == 35 + (15 if references else 0)
        difference = added[0][:, :35].abs().sum(-1).view(5, 7)
    finally:
        handle.remove()
    assert (difference[:2, 3:] > 0).all()
    assert not difference[2:].any() and not difference[:, :3].any()


@FAMILIES
def test_a_batch_with_both_sides_is_each_by_itself(apply, models, family):
    arch = whole.ADAPTERS[family][0]
    patched = apply(family, negative=whole.features(family, tag="negative"))
    one, call = models[arch].call, whole.given(arch, rows=4)
    got = noise(models, family, patched, call, options={"cond_or_uncond": [1, 0]})
    for i, side in enumerate((1, 1, 0, 0)):
        row = {key: value[i : i + 1] for key, value in call.items()}
        want = noise(models, family, patched, row, options={"cond_or_uncond": [side]})
        assert error(got[i : i + 1], want, comfyui_noise(models[arch].model, arch, row)) < SAME
    other = noise(models, family, patched, one, options={"cond_or_uncond": [1]})
    assert error(other, noise(models, family, patched), plain(models, family)) > 0.05


@pytest.mark.parametrize("family", ["flux-xlabs", "flux-instantx"])
def test_the_same_picture_twice_is_that_picture(apply, models, family):
    """Tokens that come twice have the same share together as once."""
    twice = whole.features(family).repeat(2, 1)
    got = noise(models, family, apply(family, positive=twice))
    assert error(got, noise(models, family, apply(family)), plain(models, family)) < SAME


@pytest.mark.parametrize("family", ["flux-xlabs", "flux-instantx"])
def test_one_picture_in_two_regions_is_that_picture(apply, models, family):
    """Side by side, with regions that make up the whole: wherever a token lies, and for the text, the shares add up to 1."""
    from ipadapter_pack.nodes.host.engine.application import Joined, Shown

    weights = dict.fromkeys(range(19 if family == "flux-xlabs" else 57), 0.8)
    left = torch.zeros(1, 8, 12)
    left[..., :5] = 1
    shown = Shown(weights, left), Shown(weights, 1 - left)
    settings = {"by_layer": weights, "joined": Joined(shown, shown, apart=False)}
    got = noise(models, family, apply(family, positive=whole.features(family).repeat(2, 1), **settings))
    assert error(got, noise(models, family, apply(family, weight=0.8)), plain(models, family)) < SAME


@FAMILIES
def test_a_picture_for_each_latent(apply, models, family):
    arch = whole.ADAPTERS[family][0]
    pictures = torch.cat([whole.features(family, tag=tag) for tag in "ab"])
    call = whole.given(arch, rows=2)
    got = noise(models, family, apply(family, positive=pictures, per_latent=True, weight=[0.5, 1.0]), call)
    for i, weight in enumerate((0.5, 1.0)):
        row = {key: value[i : i + 1] for key, value in call.items()}
        want = noise(models, family, apply(family, positive=pictures[i : i + 1], weight=weight), row)
        assert error(got[i : i + 1], want, comfyui_noise(models[arch].model, arch, row)) < SAME


@FAMILIES
def test_what_stands_on_a_block_is_called(apply, models, family):
    """Another pack's patch that calls the block: the same numbers, with it and with the adapter."""
    model, called = models[whole.ADAPTERS[family][0]].model.clone(), []

    def theirs(args, extra):
        called.append(args["transformer_options"])
        assert "pe" not in args or args["pe"] is not None
        return extra["original_block"](args)

    model.set_model_patch_replace(theirs, "dit", "double_block", 3)
    got = noise(models, family, apply(family, model=model))
    assert len(called) == 1
    assert error(got, noise(models, family, apply(family)), plain(models, family)) < SAME


@FAMILIES
def test_an_attention_of_another_pack_is_called(apply, models, family):
    """What it gives stays as it gave it, for it may keep that for the next step."""
    model, called = models[whole.ADAPTERS[family][0]].model.clone(), []

    def theirs(func, *args, **kwargs):
        out = func(*args, **kwargs)
        called.append((out, out.clone()))
        return out

    model.model_options["transformer_options"] = {**model.model_options["transformer_options"], "optimized_attention_override": theirs}
    got = noise(models, family, apply(family, model=model))
    assert len(called) == {"flux-xlabs": 57 + 19, "flux-instantx": 2 * 57, "sd3-instantx": 2 * 38}[family]
    assert all(torch.equal(out, given) for out, given in called)
    assert error(got, noise(models, family, apply(family)), plain(models, family)) < SAME


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("family", ["flux-xlabs", "flux-instantx"])
def test_newer_hooks_give_the_same_numbers(apply, models, family, masked, monkeypatch):
    """attn1_patch and attn1_output_patch as newer cores call them: q and k before RoPE, then the attention's output."""
    mask = torch.cat([torch.ones(1, 8, 6), torch.zeros(1, 8, 6)], -1) if masked else None
    patched = apply(family, mask=mask)
    want = noise(models, family, patched)
    seen = whole.newer_core(monkeypatch)
    got = noise(models, family, patched)
    assert len(seen) == (19 if family == "flux-xlabs" else 57)
    assert error(got, want, plain(models, family)) < SAME
    kept = []

    def theirs(out, extra_options):
        kept.append((out, out.clone()))
        return out

    patched.set_model_patch(theirs, "attn1_output_patch")
    assert torch.equal(noise(models, family, patched), got)
    assert len(kept) == 57 and all(torch.equal(out, given) for out, given in kept)


def test_this_core_is_told_from_newer_ones(pack):
    from ipadapter_pack.nodes.host.engine import flux as engine

    def newer(q, patches):
        return [patch(q) for patch in patches.get("attn1_patch", ())] + [patch(q) for patch in patches.get("attn1_output_patch", ())]

    assert {"attn1_patch", "attn1_output_patch"} <= engine._constants(newer.__code__)


@pytest.mark.parametrize("family", ["flux-xlabs", "flux-instantx"])
def test_kontext_references(apply, models, family):
    """Their tokens stand behind the picture's: a mask of 1 is none with them too."""
    flux = models["flux"]
    references = [whole.synth.noise("reference", (1, 16, 6, 10), 1.0)]
    without = comfyui_noise(flux.model, "flux", flux.call, ref_latents=references)
    want = noise(models, family, apply(family), ref_latents=references)
    got = noise(models, family, apply(family, mask=torch.ones(1, 8, 8)), ref_latents=references)
    assert (want - without).norm() / without.norm() > 0.05
    assert error(got, want, without) < SAME


def test_sd3_projects_once_for_each_timestep(apply, models):
    patched, seen = apply("sd3-instantx", positive=whole.features("sd3-instantx", tag="cache")), []
    application = next(iter(patched.model_options["transformer_options"]["patches_replace"]["dit"].values())).applications[0]
    for sigma in (0.9, 0.6, 0.3, 0.9, 0.6, 0.3):
        seen.append(noise(models, "sd3-instantx", patched, sigma=sigma))
    assert application.timed.made == 3
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))
    assert len(application.timed._current) == 2  # laid out on the device: the last ones alone
    lighter = apply("sd3-instantx", positive=whole.features("sd3-instantx", tag="cache"), weight=0.4)
    noise(models, "sd3-instantx", lighter, sigma=0.9)
    other = next(iter(lighter.model_options["transformer_options"]["patches_replace"]["dit"].values())).applications[0]
    assert other.timed.made == 0


@FAMILIES
def test_another_weight_projects_nothing(host, apply, models, family, monkeypatch):
    """Nor do another mask, window or choice of blocks: what comes before them is kept, also for the timestep that was asked for."""
    from ipadapter_pack.nodes.host.load.adapter import Adapter

    positive = whole.features(family, tag="kept")
    want = noise(models, family, apply(family, positive=positive, weight=0.4))
    noise(models, family, apply(family, positive=positive))

    def never(*args, **kwargs):
        raise AssertionError("projected anew")

    for name in ("project", "kv_at", "_run"):
        monkeypatch.setattr(Adapter, name, never)
    assert torch.equal(noise(models, family, apply(family, positive=positive, weight=0.4)), want)
    for settings in ({"mask": torch.ones(1, 8, 12)}, {"end_at": 0.9}, {"layer_weights": "3: 1"}, {"weight_type": "ease in"}):
        noise(models, family, apply(family, positive=positive, **settings))
    with pytest.raises(AssertionError, match="projected anew"):
        noise(models, family, apply(family, positive=whole.features(family, tag="not yet")))


def timed_of(patched):
    patches = patched.model_options["transformer_options"]["patches_replace"]["dit"]
    return next(iter(patches.values())).applications[0].timed


def test_sd3_keeps_no_more_than_its_bound(apply, models, monkeypatch):
    """Where not all timesteps of a schedule fit, those that went are made anew, to the same numbers."""
    from ipadapter_pack.nodes.host.engine import timed as engine

    patched = apply("sd3-instantx", positive=whole.features("sd3-instantx", tag="bound"))
    timed, seen = timed_of(patched), []
    assert engine._KEPT.limit >= 28 * 2 * 38 * 2 * 64 * 2432 * 2  # the usual schedule of SD3.5 Large, both sides in bf16
    engine._KEPT.clear()
    monkeypatch.setattr(engine._KEPT, "limit", int(2.5 * timed.size))
    for sigma in (0.9, 0.6, 0.3, 0.9, 0.6, 0.3):
        seen.append(noise(models, "sd3-instantx", patched, sigma=sigma))
        assert 0 < engine._KEPT.held <= engine._KEPT.limit
    assert timed.made == 6
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))


def test_comfyui_counts_what_sd3_lays_out(apply, models):
    """From the start as many bytes as stay on the device, and they go when ComfyUI moves the model away."""
    patched = apply("sd3-instantx")
    timed = timed_of(patched)
    assert timed.patcher in patched.model_patches_models()
    assert timed.patcher.model_size() == 2 * timed.size
    for sigma in (0.9, 0.6, 0.3):
        noise(models, "sd3-instantx", patched, sigma=sigma)
    rows = [one.kv.rows for one in timed._current.values()]
    assert [row.nbytes for row in rows] == [timed.size] * 2
    assert timed.patcher.model_size() == 2 * timed.size
    batch = {key: value.repeat(4, *[1] * (value.ndim - 1)) for key, value in models["sd3"].call.items()}
    noise(models, "sd3-instantx", patched, batch, options={"cond_or_uncond": [1, 0]})
    assert timed.patcher.model_size() == 2 * timed.size + 2 * timed.size  # K and V of each of four rows, laid out of two
    timed.patcher.model.to("meta")
    assert not timed._current


def test_sd3_follows_the_models_own_norms(apply, models):
    """Where another node puts other weights into the model's norms after the adapter was applied, they are the ones that count."""
    sd3 = models["sd3"]
    patched = apply("sd3-instantx")
    before = noise(models, "sd3-instantx", patched)
    norm = sd3.model.model.diffusion_model.joint_blocks[20].x_block.attn.ln_q
    weight = norm.weight
    try:
        norm.weight = torch.nn.Parameter(weight.flip(0), requires_grad=False)
        after = noise(models, "sd3-instantx", patched)
        assert torch.equal(after, noise(models, "sd3-instantx", apply("sd3-instantx")))
    finally:
        norm.weight = weight
    assert not torch.equal(after, before)
    assert torch.equal(noise(models, "sd3-instantx", patched), before)


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(host, models, family, dtype):
    """Beside the same model in float32, the effect is as close as the model itself is: rounding of 8 or 11 bits through all blocks.

    Twice the model's own error, since what the adapter adds goes through the same blocks, and a fiftieth of the effect for its own K, V and
    attention in that dtype. Without an adapter the model is beyond that bound.
    """
    arch, make = whole.ADAPTERS[family]
    half = models[arch].rounded(dtype)
    features = whole.features(family)
    how = host.Settings(weight=0.7)
    exact = host.apply(models[arch].model, host.as_adapter(make()), (features,), (torch.zeros_like(features),), how)
    patched = host.apply(half, host.as_adapter(make()), (features,), (torch.zeros_like(features),), how)
    want, got = comfyui_noise(exact, arch, models[arch].call), comfyui_noise(patched, arch, models[arch].call)
    without = comfyui_noise(half, arch, models[arch].call)
    bound = 2 * (without - models[arch].plain).norm() + 0.02 * (want - models[arch].plain).norm()
    assert (got - want).norm() < bound < (without - want).norm()


@FAMILIES
def test_a_window_that_is_closed_is_exactly_off(apply, models, family):
    patched = apply(family, start_at=0.0, end_at=0.2)
    assert torch.equal(noise(models, family, patched, sigma=0.1), comfyui_noise(models[whole.ADAPTERS[family][0]].model,
                       whole.ADAPTERS[family][0], models[whole.ADAPTERS[family][0]].call, sigma=0.1))  # fmt: skip
    assert error(noise(models, family, patched, sigma=0.98), noise(models, family, apply(family), sigma=0.98), plain(models, family)) < SAME


@FAMILIES
def test_two_adapters_add_up(apply, models, family):
    """The second stands on the first, and the first's weight of 0 in the second half leaves those blocks to the second."""
    first = apply(family, layer_weights="0: 1")
    both = apply(family, model=first, layer_weights="1: 1")
    want = noise(models, family, apply(family, layer_weights="0: 1, 1: 1"))
    assert error(noise(models, family, both), want, plain(models, family)) < SAME


def test_wrong_pairs_are_named(apply, models, user_error):
    with pytest.raises(user_error, match=r"is an adapter for SD3\.5, the connected model is Flux"):
        apply("sd3-instantx", model=models["flux"].model)
    with pytest.raises(user_error, match=r"is an adapter for Flux, the connected model is SD3\.5"):
        apply("flux-xlabs", model=models["sd3"].model)
    with pytest.raises(user_error, match="'style transfer' is made of blocks that UNets have, and Flux is a transformer"):
        apply("flux-xlabs", weight_type="style transfer")


@contextmanager
def instead(owner, name, value):
    """monkeypatch cannot put a module's children back."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def test_models_that_no_adapter_fits_are_named(apply, models, user_error):
    flux, sd3 = (models[arch].model.model.diffusion_model for arch in ("flux", "sd3"))
    with (
        instead(sd3, "joint_blocks", sd3.joint_blocks[:24]),
        pytest.raises(user_error, match=r"SD3 with 24 blocks \(a medium one\?\).*connect SD3\.5 Large"),
    ):
        apply("sd3-instantx")
    with (
        instead(flux, "single_blocks", flux.single_blocks[:20]),
        pytest.raises(user_error, match=r"19 double and 20 single blocks where Flux has 19 and 38"),
    ):
        apply("flux-xlabs")
    with (
        instead(flux.params, "global_modulation", True),
        pytest.raises(user_error, match=r"Flux\.2\), for which no IP-Adapter has been published"),
    ):
        apply("flux-xlabs")
