"""Many pictures and extreme shapes: progress that moves, work that stops when it is told to, results that are numbers."""

import threading

import pytest
import torch

from support import lab, plain

PICTURES = 80


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture
def fresh():
    plain.clear_caches()


@pytest.fixture
def updates(monkeypatch):
    """(value, total) of each update of a progress bar, as ComfyUI's server is told of them."""
    import comfy.utils

    told: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: told.append((value, total)))
    return told


def batch(small, pictures):
    return small.apply(node="IPAdapterBatch", image=pictures, encode_batch_size=0)


def advanced_encoder(small, pictures):
    return lab.call(
        small.pack["IPAdapterEncoderAdvanced"], ipadapter=small.adapter, image=pictures, weight=1.0, fit="tiles", tiles=1, size=0,
        clip_vision=small.encoder,
    )  # fmt: skip


def enhancer(small, pictures):
    how = dict(enhance_tiles=2, enhance_ratio=0.5, encode_batch_size=0)
    return small.apply(node="IPAdapterClipVisionEnhancerBatch", image=pictures, **how)


WORK = {"batch": batch, "fitted": advanced_encoder, "enhanced": enhancer}


@pytest.mark.parametrize("work", WORK)
def test_progress_moves_to_its_end(small, fresh, updates, work):
    """At least once for each 32 pictures, and each bar reaches its total."""
    WORK[work](small, lab.images(PICTURES, 32, 48))
    assert sum(total == PICTURES for _, total in updates) >= PICTURES // 32
    ends = [(value, total) for (value, total), after in zip(updates, [*updates[1:], (0, 0)], strict=True) if after[0] <= value]
    assert all(value == total for value, total in ends)


def test_projecting_moves_too(small, fresh, updates):
    small.adapter.project(torch.zeros(PICTURES, 1024))
    assert [value for value, _ in updates] == [32, 64, 80]


@pytest.mark.parametrize(("part", "most"), [("encoder", 16), ("projection", 32)])
def test_an_interrupt_from_another_thread_stops_within_a_batch(small, fresh, part, most):
    """Asked for while the first batch of many pictures is in the works: no other is begun."""
    import comfy.model_management as mm

    module = small.encoder.model if part == "encoder" else small.adapter.module.image_proj
    seen: list[int] = []

    def interrupt(_, args, kwargs):
        seen.append(len(args[0] if args else kwargs["pixel_values"]))
        if seen[-1] == most:
            thread = threading.Thread(target=mm.interrupt_current_processing)
            thread.start()
            thread.join()

    with module.register_forward_pre_hook(interrupt, with_kwargs=True), pytest.raises(mm.InterruptProcessingException):
        batch(small, lab.images(PICTURES, 32, 32))
    assert seen.count(most) == 1 and seen[-1] == most
    assert not mm.processing_interrupted()


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (3, 3999)])
@pytest.mark.parametrize("node", ["IPAdapterAdvanced", "IPAdapterTiled"])
def test_a_reference_that_is_nearly_a_line(small, fresh, shape, node):
    how = dict(sharpening=0.0, combine_embeds="concat") if node == "IPAdapterTiled" else {}
    got = small.out(small.apply(node=node, image=lab.images(1, *shape), **how))
    assert torch.isfinite(got).all() and not torch.equal(got, small.out(small.unet))


def test_the_middle_of_a_line_is_what_is_seen(small, fresh):
    """1 x 4000 as its middle 64 pixels, whose length makes the same grid."""
    line = lab.images(1, 1, 4000)
    assert torch.equal(small.out(small.apply(image=line)), small.out(small.apply(image=line[:, :, 1968:2032])))


MASKS = {
    "one pixel": torch.ones(1, 1, 1),
    "a line": torch.ones(1, 1, 5000),
    "4096 x 4096": torch.ones(1, 4096, 4096),
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks_of_any_size(small, fresh, mask):
    """White masks are no mask, whatever their size; the rounding of one more multiplication."""
    got, want, without = (small.out(model) for model in (small.apply(attn_mask=MASKS[mask]), small.apply(), small.unet))
    assert plain.error(got, want, without) < 1e-5
