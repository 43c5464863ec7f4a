"""The known faults of ComfyUI_IPAdapter_plus, each with the tests that hold its absence; those with no other place are here."""

import logging
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from support import lab, plain, synth
from support.world import FaceStub, face_align_modules

HELD = {  # fault -> file:test
    "patches pile up with every run": ("test_clone:test_ten_runs_leave_one_adapter", "test_clone:test_branches_of_one_model_do_not_meet"),
    "clones copy the weights": ("test_clone:test_copies_share_the_tensors",),
    "files go by their names": ("test_files:test_any_name_will_do_and_the_choice_is_logged",),
    "nothing says which file is missing": ("test_files:test_nothing_found_says_what_was_looked_for_what_is_there_and_where_to_get_it",),
    "a wrong encoder is a size mismatch": ("test_errors:test_a_wrong_encoder_names_both_widths_before_anything_is_encoded",),
    "another weight encodes again": (
        "test_cost:test_what_changes_often_recomputes_nothing", "test_faults:test_another_weight_encodes_nothing",
    ),
    "the sides go by their place in the list": (
        "test_polarity:test_dual_cfg", "test_polarity:test_perp_neg", "test_polarity:test_self_attention_guidance",
    ),
    "the adapter is outside ComfyUI's memory": ("test_faults:test_comfyui_counts_and_unloads_the_adapter",),
    "its numbers go by a global setting": ("test_engine:test_follows_the_models_numbers",),
    "syncs, resizing and projecting in every layer": (
        "test_cost:test_at_most_one_host_sync_per_model_call", "test_cost:test_at_most_seven_operations_per_layer",
    ),
    "attention overrides and precision are dropped": (
        "test_cost:test_an_override_sees_text_and_image_attention", "test_cost:test_the_attention_precision_is_passed_on",
    ),
    "other packs' patches are dropped": ("test_neighbours:test_a_plain_replace_patch_is_called_below_ours",),
    "long references are cropped without a word in the log": ("test_faults:test_a_long_reference_is_told_of_in_the_log",),
    "RGBA references crash": ("test_errors:test_alpha_is_dropped",),
    "regions without pictures crash": ("test_errors:test_no_region_has_a_picture",),
    "a curve of one step divides by zero": ("test_faults:test_a_curve_of_one_step",),
    "the first face is taken, not the largest": (
        "test_face_embeds:test_takes_the_faces_asked_for_and_shows_them", "test_faults:test_the_largest_face_is_the_default",
    ),
    "random choices disturb the global state": ("test_faults:test_the_global_random_state_is_left_alone",),
}  # fmt: skip


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.mark.parametrize("fault", HELD)
def test_every_fault_has_its_test(fault):
    for place in HELD[fault]:
        file, name = place.split(":")
        assert f"\ndef {name}(" in (Path(__file__).parent / f"{file}.py").read_text(), place


# Random numbers


def foreign(family):
    """An adapter that has not been built before."""
    return synth.adapter(family, "sd15")


def face(small):
    return small.apply(node="IPAdapterFaceID", ipadapter=foreign("faceid"), insightface=FaceStub(), clip_vision=None)


RANDOM = {
    **{
        f"noise: {kind}": lambda small, kind=kind: lab.call(
            small.pack["IPAdapterNoise"], type=kind, strength=0.7, blur=2, image_optional=lab.images(1, 40, 50)
        )[0]
        for kind in ("fade", "dissolve", "gaussian", "shuffle")
    },
    "noise without a picture": lambda small: lab.call(small.pack["IPAdapterNoise"], type="fade", strength=1.0, blur=0)[0],
    "random weights": lambda small: lab.call(small.pack["IPAdapterWeights"], weights="0, 1", timing="random", frames=9)[0],
    "random weights of a strategy": lambda small: lab.call(
        small.pack["IPAdapterWeightsFromStrategy"],
        weights_strategy=lab.call(small.pack["IPAdapterWeights"], weights="0, 1", timing="random", frames=9)[5],
    )[0],
    "the old node's noise": lambda small: lab.call(
        small.pack["IPAdapterApply"], ipadapter=small.adapter, clip_vision=small.encoder, image=lab.images(1), model=small.unet,
        weight=0.8, noise=0.4, weight_type="original", start_at=0.0, end_at=1.0, unfold_batch=False,
    )[0],
}  # fmt: skip
PLAIN = {
    "a file is loaded": lambda small: small.load(),
    "an adapter is built": lambda small: small.apply(ipadapter=foreign("base")),
    "a picture is encoded": lambda small: small.apply(image=lab.images(1, tag="random")),
    "a batch": lambda small: small.apply(node="IPAdapterBatch", image=lab.images(2, tag="random"), encode_batch_size=1),
    "tiles": lambda small: small.apply(node="IPAdapterTiled", image=lab.images(1, 90, 200), sharpening=0.3),
    "a face": face,
}


def states():
    """Of torch, of Python and of numpy."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())


@pytest.fixture
def align(monkeypatch):
    for name, module in face_align_modules().items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("what", [*RANDOM, *PLAIN])
def test_the_global_random_state_is_left_alone(small, what, align):
    plain.clear_caches()
    call = {**RANDOM, **PLAIN}[what]
    before = states()
    call(small)
    assert states() == before


@pytest.mark.parametrize("what", RANDOM)
def test_the_same_inputs_give_the_same_random_choice(small, what):
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        plain.clear_caches()
        one = RANDOM[what](small)
        made.append(small.out(one) if isinstance(one, type(small.unet)) else torch.as_tensor(one))
    assert torch.equal(*made)


# The rest


def embeds(small, weight):
    positive, negative = lab.call(
        small.pack["IPAdapterEncoder"], ipadapter=small.adapter, image=lab.images(1), weight=1.0, clip_vision=small.encoder
    )
    node = small.pack["IPAdapterEmbeds"]()
    return node.apply_ipadapter(small.unet, small.adapter, positive, weight, "linear", 0.0, 1.0, negative)


def regions(small, weight):
    call = dict(image=lab.images(1), image_weight=weight, prompt_weight=1.0, weight_type="linear", start_at=0.0, end_at=1.0)
    params = lab.call(small.pack["IPAdapterRegionalConditioning"], **call)[0]
    node = small.pack["IPAdapterFromParams"]()
    return node.apply_ipadapter(small.unet, small.adapter, ipadapter_params=params, clip_vision=small.encoder)


REPEATED = {
    "one for each latent": lambda small, w: small.apply(node="IPAdapterBatch", image=lab.images(3), encode_batch_size=2, weight=w),
    "tiles": lambda small, w: small.apply(node="IPAdapterTiled", image=lab.images(1, 90, 200), sharpening=0.2, weight=w),
    "embeds": embeds,
    "regions": regions,
    "a negative picture": lambda small, w: small.apply(image_negative=lab.images(1, tag="neg"), weight=w),
}


@pytest.mark.parametrize("how", REPEATED)
def test_another_weight_encodes_nothing(small, how):
    """Neither the encoder nor the adapter's projection runs again, whichever node was given the picture."""
    plain.clear_caches()
    ran = []
    hooks = [part.register_forward_hook(lambda *_: ran.append(1)) for part in (small.encoder.model, small.adapter.module.image_proj)]
    try:
        REPEATED[how](small, 0.8)
        first = len(ran)
        REPEATED[how](small, 0.3)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(ran) == first > 0


def test_comfyui_counts_and_unloads_the_adapter(small):
    import comfy.model_management as mm

    plain.clear_caches()
    want = small.out(small.apply())
    patcher = small.adapter.patcher
    assert any(loaded.model is patcher for loaded in mm.current_loaded_models)
    assert patcher.model_size() == sum(value.nbytes for part in small.state.values() for value in part.values())
    mm.unload_all_models()
    assert not any(loaded.model is patcher for loaded in mm.current_loaded_models)
    plain.clear_caches()
    assert torch.equal(small.out(small.apply()), want)


def test_a_long_reference_is_told_of_in_the_log(small, capsys, caplog):
    """One line in the log and none on stdout; what is used is the square in the middle."""
    picture = lab.images(1, 224, 320)
    with caplog.at_level(logging.INFO):
        got = small.out(small.apply(image=picture))
    assert [record.getMessage() for record in caplog.records if "reference is" in record.getMessage()] == [
        "The reference is 320x224: the encoder sees the square in its middle only."
    ]
    assert capsys.readouterr().out == ""
    assert torch.equal(got, small.out(small.apply(image=picture[:, :, 48:272])))


@pytest.mark.parametrize("timing", ["linear", "ease_in_out", "ease_in", "ease_out"])
def test_a_curve_of_one_step(pack, timing):
    """The last step of a curve is exactly its end, of the only one too."""
    call = dict(weights="0.25, 1.0", timing=timing, frames=3, start_frame=1, end_frame=2)
    assert lab.call(pack["IPAdapterWeights"], **call)[0] == [0.25, 1.0, 1.0]


def test_the_largest_face_is_the_default(pack):
    """Of the node that reads faces; the FaceID nodes of the established ids keep the first one, for the same picture as before."""
    options, told = pack["IPAdapterFaceEmbeds"].INPUT_TYPES()["required"]["faces"]
    assert options[0] == told["default"] == "largest"
