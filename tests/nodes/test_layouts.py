"""How often an application is laid out, how much of K and V the layouts copy, and that several devices and threads may ask at once."""

import threading

import pytest
import torch
import torch.nn.functional as F

from support import lab, plain, synth

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


def application(model):
    from ipadapter_pack.nodes.host.engine.layer_patch import applications

    (one,) = applications(model.model_options["transformer_options"])
    return one


def batch_node(small, **kw):
    return small.apply(node="IPAdapterBatch", encode_batch_size=0, **kw)


def call(model, batch=2, hw=(8, 8), device=None, **options):
    """One call of the UNet with two chunks, as the sampler does it."""
    from comfy.patcher_extension import merge_nested_dicts

    x, t = synth.noise("x", (2 * batch, 4, *hw), 1.7), torch.full((2 * batch,), 5.0)
    text = torch.cat([lab.cond("sd15", tag=tag)[0][0].expand(batch, -1, -1) for tag in ("neg", "pos")])
    given = {**model.model_options["transformer_options"], "cond_or_uncond": [1, 0], "sigmas": t, **options}
    given = merge_nested_dicts(given, {"wrappers": model.wrappers})
    move = (lambda one: one) if device is None else (lambda one: one.to(device))
    with torch.inference_mode():
        return model.model.apply_model(move(x), move(t), c_crossattn=move(text), transformer_options=given)


class Window:
    dim = 0

    def __init__(self, index_list):
        self.index_list = index_list


def test_windows_are_laid_out_once_and_masks_resized_once(small, monkeypatch):
    """24 frames in five windows over three steps: five layouts, and one resize for each of three levels (the middle block has none)."""
    resized = []
    resize = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, *args, **kw: (x.shape[1] == 1 and resized.append(x.shape), resize(x, *args, **kw))[1])
    masks = torch.rand(24, 20, 20, generator=torch.Generator().manual_seed(0))
    model = batch_node(small, image=lab.images(24), weight=[i / 24 for i in range(24)], attn_mask=masks)
    for _ in range(3):
        for start in (0, 5, 10, 15, 16):
            call(model, batch=8, context_window=Window(list(range(start, start + 8))))
    assert application(model).layouts.made == 5
    assert resized == [(24, 1, 20, 20)] * 3


def test_one_picture_is_laid_out_once_for_all_windows(small):
    model = small.apply(attn_mask=torch.ones(1, 8, 8))
    for start in (0, 2, 4):
        call(model, context_window=Window([start, start + 1]))
    assert application(model).layouts.made == 1


def test_sdxls_first_level_has_no_mask(pack, comfy, small):
    """Nothing attends there: grids are made for the two levels below alone."""
    files = plain.AdapterFiles(comfy / "models" / "ipadapter")
    adapter = lab.call(pack["IPAdapterModelLoader"], ipadapter_file=files["base", "sdxl"])[0]
    model = small.apply(lab.unet("sdxl"), ipadapter=adapter, attn_mask=torch.ones(1, 9, 9))
    lab.sample(model, "sdxl", steps=1)
    (layout,) = application(model).layouts._layouts.values()
    assert {size for _, _, size, *_ in layout.masks._made} == {(4, 4), (2, 2)}


@pytest.mark.parametrize(
    ("pictures", "weight"),
    [(lambda: lab.images(1), 0.8), (lambda: lab.images(1).repeat(8, 1, 1, 1), 0.8), (lambda: lab.images(1), [0.8, 0.1, 0.5])],
    ids=["one picture", "equal pictures", "one picture, many weights"],
)
def test_latents_that_are_alike_share_a_row(small, pictures, weight):
    """Two rows of K and V, one for each side, whatever the number of latents: nothing is copied."""
    model = batch_node(small, image=pictures(), weight=weight)
    call(model, batch=8)
    (layout,) = application(model).layouts._layouts.values()
    k, _ = layout.kv[1]
    assert (k.shape[0], layout.copied) == (2, 0)
    assert application(model).kv.rows.shape[0] == 2
    single = small.apply(weight=weight) if isinstance(weight, float) else None
    if single is not None:
        assert plain.error(call(model, batch=8), call(single, batch=8), call(small.unet, batch=8)) < TOLERANCE


def test_pictures_that_come_again_are_projected_once(small):
    """Two pictures for four frames each: three rows of K and V, and the pictures of eight rows."""
    two = lab.images(2)
    model = batch_node(small, image=two.repeat_interleave(4, 0))
    assert application(model).kv.rows.shape[0] == 3
    for index in ((0, 1), (3, 4), (5, 7)):
        want = batch_node(small, image=two[[i // 4 for i in index]])
        got = call(model, context_window=Window(list(index)))
        assert plain.error(got, call(want), call(small.unet)) < TOLERANCE


def test_two_devices_from_two_threads(small):
    """As MultiGPU does it: the same patch objects, `.to` before every call, each device in a thread of its own.

    "cpu" and "cpu:0" are different keys for the same memory. One layout for each device and kind of call, equal pictures, no exception.
    """
    model = small.apply(attn_mask=torch.ones(1, 8, 8), embeds_scaling="K+V")
    patches = model.model_options["transformer_options"]["patches_replace"]["attn2"]
    from ipadapter_pack.nodes.host.engine.chunks import chunks_of
    from ipadapter_pack.nodes.host.engine.layout import layout_of

    one, failed = application(model), []
    want = call(model)
    one.layouts.clear()
    made = one.layouts.made

    def work(device):
        try:
            for number in range(500):
                for patch in patches.values():
                    patch.to(device)
                size = ((8, 8), (8, 16))[number % 2]
                layout = layout_of(one, chunks_of({"cond_or_uncond": [1, 0]}, 4, size), device, torch.float32)
                assert layout is not None and layout.size == size
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=work, args=(torch.device(name),)) for name in ("cpu", "cpu:0")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert one.layouts.made - made == 4
    assert torch.equal(call(model), want)


def test_two_threads_sample_the_same_model(small):
    """The UNet itself from two threads, each on a device of its own: the pictures of one thread alone."""
    model = batch_node(small, image=lab.images(2), weight=[0.5, 0.9])
    want, got = call(model), {}

    def work(name):
        got[name] = [call(model, device=torch.device(name)) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(name,)) for name in ("cpu", "cpu:0")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, want) for name in ("cpu", "cpu:0") for one in got[name])
