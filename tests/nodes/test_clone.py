"""Copies of a patched model: nothing piles up, nothing leaks into another copy, nothing heavy is copied.

Both of ComfyUI's ways to clone: model_options copied deeply, patch objects and all (as the installed core does), and dicts and lists
copied with the objects in them shared (cores since February 2026).
"""

import copy

import pytest
import torch

from support import lab, plain


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture(params=["deep copy", "shared objects"], autouse=True)
def policy(request, comfy, monkeypatch):
    """ModelPatcher.clone under each policy, whichever of them the core under test has."""
    from comfy.model_patcher import ModelPatcher
    from comfy.patcher_extension import copy_nested_dicts

    original = ModelPatcher.clone
    duplicate = copy.deepcopy if request.param == "deep copy" else copy_nested_dicts

    def clone(self, *args, **kw):
        """The core's own clone, its callbacks last, with model_options copied this policy's way."""
        callbacks, self.callbacks = self.callbacks, {}
        options, self.model_options = self.model_options, {"transformer_options": {}}
        try:
            new = original(self, *args, **kw)
        finally:
            self.callbacks, self.model_options = callbacks, options
        new.model_options = duplicate(options)
        new.callbacks = {kind: {key: list(these) for key, these in keyed.items()} for kind, keyed in callbacks.items()}
        for keyed in callbacks.get("on_clone", {}).values():
            for callback in keyed:
                callback(self, new)
        return new

    monkeypatch.setattr(ModelPatcher, "clone", clone)
    return request.param


def patches(model):
    from ipadapter_pack.nodes.host.engine.layer_patch import layer_patches

    return layer_patches(model.model_options["transformer_options"])


def snapshot(model):
    """The structure of transformer_options, with the objects in it by identity, and the parts of our patches."""

    def look(value):
        if isinstance(value, dict):
            return {key: look(one) for key, one in value.items()}
        return [look(one) for one in value] if isinstance(value, list) else id(value)

    return (
        look(model.model_options),
        look(model.wrappers),
        look(model.callbacks),
        {key: (patch.applications, list(patch.joined)) for key, patch in patches(model).items()},
    )


def test_ten_runs_leave_one_adapter(small):
    """The upstream model stays in ComfyUI's cache while a node behind it runs again and again."""
    untouched = snapshot(small.unet)
    first = small.out(small.apply())
    for weight in (0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 0.2, 0.4, 0.6, 0.8):
        model = small.apply(weight=weight)
        assert {len(patch.applications) for patch in patches(model).values()} == {1}
    assert torch.equal(small.out(model), first)
    assert snapshot(small.unet) == untouched
    assert untouched[0] == {"transformer_options": {}}


def test_ten_runs_behind_a_patched_model_leave_two_adapters(small):
    upstream = small.apply(image=lab.images(1, tag="b"), weight=0.4)
    untouched, picture = snapshot(upstream), small.out(upstream)
    first = small.out(small.apply(upstream))
    for _ in range(10):
        model = small.apply(upstream)
        assert {len(set(patch.applications)) for patch in patches(model).values()} == {2}
    assert torch.equal(small.out(model), first)
    assert snapshot(upstream) == untouched
    assert torch.equal(small.out(upstream), picture)


def test_branches_of_one_model_do_not_meet(small):
    upstream = small.apply(weight=0.4)
    wants = [small.out(small.apply(small.apply(weight=0.4), image=lab.images(1, tag=tag))) for tag in "bc"]
    branches = [small.apply(upstream, image=lab.images(1, tag=tag)) for tag in "bc"]
    assert [torch.equal(small.out(branch), want) for branch, want in zip(branches, wants, strict=True)] == [True, True]


def test_wrappers_are_registered_once(small):
    model = small.apply(small.apply(small.apply().clone()))
    counts = {kind: {key: len(these) for key, these in keyed.items()} for kind, keyed in model.wrappers.items()}
    assert counts == {kind: {"ipadapter": 1} for kind in ("outer_sample", "predict_noise", "calc_cond_batch", "apply_model")}
    assert {kind: {key: len(these) for key, these in keyed.items()} for kind, keyed in model.callbacks.items()} == {
        "on_clone": {"ipadapter": 1}
    }


def callback(out, q, k, v, extra_options, **kwargs):
    return torch.ones_like(out)


def test_what_joins_a_clone_stays_in_it(small):
    """InstantID and PuLID clone the model and `.add` to the objects that stand on their keys."""
    model = small.apply()
    before, untouched = small.out(model), snapshot(model)
    joined = model.clone()
    for patch in patches(joined).values():
        patch.add(callback, sigma_start=999.0, sigma_end=0.0)
    assert snapshot(model) == untouched
    assert torch.equal(small.out(model), before)
    assert not torch.equal(small.out(joined), before)
    again = joined.clone()
    assert {(len(patch.applications), len(patch.joined)) for patch in patches(again).values()} == {(1, 1)}
    assert torch.equal(small.out(again), small.out(joined))


def test_what_joins_upstream_afterwards_does_not_reach_a_clone(small):
    model = small.apply()
    clone = model.clone()
    want = small.out(clone)
    for patch in patches(model).values():
        patch.add(callback)
    assert torch.equal(small.out(clone), want)
    assert torch.equal(small.out(small.apply(clone, weight=0.0)), want)


def tensors(model):
    return [application.kv.rows.data_ptr() for patch in patches(model).values() for application in patch.applications]


def test_copies_share_the_tensors(small):
    model = small.apply(attn_mask=torch.ones(1, 8, 8))
    pointers = tensors(model)
    assert len(set(pointers)) == 1
    assert tensors(model.clone()) == pointers
    assert tensors(small.apply(model, weight=0.0)) == pointers
    deep = copy.deepcopy(model.model_options)
    for key, patch in patches(model).items():
        twin = deep["transformer_options"]["patches_replace"]["attn2"][key]
        assert twin is not patch
        assert twin.applications == patch.applications


def test_a_copy_of_what_stood_there_before_is_its_own(small):
    """A deep copy copies the other pack's object under ours as it would copy it standing alone."""

    class Other:
        def __call__(self, q, k, v, extra_options):
            return plain.attend(q, k, v, extra_options["n_heads"])

    model = small.unet.clone()
    model.set_model_attn2_replace(Other(), "input", 1)
    patch = patches(small.apply(model))["input", 1]
    assert copy.deepcopy(patch).previous is not patch.previous


def test_moved_to_a_device_and_a_dtype(small):
    """ComfyUI calls `.to` with the device, with the dtype and, on detaching, with the offload device."""
    model = small.apply()
    want = small.out(model)
    for patch in patches(model).values():
        for target in (torch.device("cpu"), torch.float16, torch.device("meta"), torch.device("cpu")):
            assert patch.to(target) is patch
    assert torch.equal(small.out(model), want)
    assert torch.equal(small.out(small.apply()), want)


def test_layouts_are_bound_in_number_and_in_bytes(small, monkeypatch):
    """With a mask each latent size has a layout of its own; with no room, the newest two stay (cond and uncond run apart)."""
    from ipadapter_pack.nodes.host.engine import layout_cache as module

    monkeypatch.setattr(module, "LAYOUTS", 4)
    sizes = [(8, 8), (8, 16), (16, 8), (16, 16), (8, 24)]
    how = dict(attn_mask=torch.ones(1, 8, 8), embeds_scaling="K+V")
    want = [small.out(small.apply(**how), hw=hw) for hw in sizes]
    for limit, most in ((1 << 30, module.LAYOUTS), (0, 2)):
        monkeypatch.setattr(module, "LAYOUT_BYTES", limit)
        model = small.apply(**how)
        (application,) = next(iter(patches(model).values())).applications
        got = []
        for hw in sizes:
            got.append(small.out(model, hw=hw))
            assert 0 < len(application.layouts) <= most
        assert len(application.layouts) == most
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_model_offers_its_k_and_v_to_core(small):
    """ModelPatcher asks every patch for models() and moves them with to(): one small model for all layers, that of K and V alone."""
    import comfy.model_management as management

    plain.clear_caches()
    model = small.apply()
    (kv,) = set(model.model_patches_models())
    ((k, *_),) = {tuple(value.shape for value in kv.model.parameters())}
    assert kv.model_size() == k.numel() * 4
    assert kv not in [loaded.model for loaded in management.current_loaded_models]
    small.out(model)
    assert kv in [loaded.model for loaded in management.current_loaded_models]
    model.model_patches_to(torch.device("cpu"))
    model.model_patches_to(torch.float32)
    assert torch.isfinite(small.out(model)).all()


def test_what_is_laid_out_is_counted_and_goes_with_k_and_v(small):
    """Copies of K and V for the rows of a call: as many bytes more for core, and gone when it moves K and V off their device."""
    plain.clear_caches()
    pictures = lab.images(2)
    model = small.apply(node="IPAdapterBatch", encode_batch_size=0, image=pictures)
    (application,) = next(iter(patches(model).values())).applications
    (kv,) = set(model.model_patches_models())
    rows = application.kv.rows.nbytes
    assert (application.kv.rows.shape[0], kv.model_size()) == (3, rows)
    want = small.out(model, batch=2)
    assert len(application.layouts) == 1
    assert kv.model_size() == rows + rows // 3 * 4  # two chunks of two latents, a row for each
    kv.model.to("meta")
    assert len(application.layouts) == 0
    assert kv.model_size() == rows
    plain.clear_caches()
    again = small.apply(node="IPAdapterBatch", encode_batch_size=0, image=pictures)
    assert torch.equal(small.out(again, batch=2), want)


def test_another_device_gets_k_and_v_of_its_own(small):
    """MultiGPU makes its copies by cached_patcher_init, which newer cores ask of every model."""
    (kv,) = set(small.apply().model_patches_models())
    make, arguments = kv.cached_patcher_init
    other = make(*arguments)
    assert other.model is not kv.model and torch.equal(other.held.rows, kv.held.rows)
    assert other.held.rows.data_ptr() != kv.held.rows.data_ptr()
