"""What the engine costs: nothing is computed twice, little is added to a model call, nothing heavy is held."""

import gc
import types
import weakref
from functools import reduce
from typing import Any

import pytest
import torch

from support import lab, plain, synth
from support.counting import SYNCS, Operations, model_call

LAYERS = len(plain.KEYS)


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


# Nothing is computed twice


@pytest.fixture
def counted(small):
    """How often the encoder, the projection and a layer's to_k_ip were run since the caches were emptied."""
    counts = dict(encoder=0, projection=0, to_k=0)
    handles = []
    module = small.adapter.module
    for name, part in (("encoder", small.encoder.model), ("projection", module.image_proj), ("to_k", module.ip_adapter["1"]["to_k_ip"])):

        def count(*args, name=name):
            counts[name] += 1

        handles.append(part.register_forward_hook(count))
    plain.clear_caches()
    yield counts
    for handle in handles:
        handle.remove()


def test_what_changes_often_recomputes_nothing(small, counted):
    small.out(small.apply())
    before = dict(counted)
    assert before == dict(encoder=1, projection=2, to_k=1)
    changes = (
        dict(weight=0.3), dict(start_at=0.2), dict(end_at=0.6), dict(attn_mask=torch.ones(1, 8, 8)), dict(weight_type="ease in"),
        dict(weight_type="style transfer"), dict(embeds_scaling="K+V"), dict(weight=0.0), dict(),
    )  # fmt: skip
    for change in changes:
        small.out(small.apply(**change), steps=1)
    assert counted == before


def test_another_picture_is_encoded_once(small, counted):
    small.apply()
    small.apply(image=lab.images(1, tag="new"))
    assert counted == dict(encoder=2, projection=4, to_k=2)
    small.apply(image=torch.cat([lab.images(1), lab.images(1, tag="new")]))
    assert counted == dict(encoder=2, projection=6, to_k=3)


# What a model call costs


def prompted(small, *references, model=None, **given):
    """Image Prompt with references of these (weight, region)s side by side."""
    chain = None
    for number, (weight, region) in enumerate(references):
        picture = dict(image=lab.images(1, tag=f"{number}"), weight=weight, role="everything", fit="center crop", tiles=2)
        chain = lab.call(small.pack["ImagePromptReference"], **picture, region=region, more=chain)[0]
    given = dict(join="side by side", method="as IPAdapter Plus", weight=0.8, clip_vision=small.encoder) | given
    return lab.call(small.pack["ImagePrompt"], model=model or small.unet, ipadapter=small.adapter, reference=chain, **given)[0]


CASES = {
    "one": lambda small: small.apply(),
    "window": lambda small: small.apply(end_at=0.9),
    "mask": lambda small: small.apply(attn_mask=torch.ones(1, 20, 20)),
    "scaled": lambda small: small.apply(embeds_scaling="K+mean(V) w/ C penalty"),
    "each latent its own": lambda small: small.apply(
        node="IPAdapterBatch", encode_batch_size=0, image=lab.images(2), weight=[0.5, 0.7], attn_mask=torch.ones(2, 9, 9)
    ),
    "references": lambda small: prompted(small, *[(0.9 - i / 10, None) for i in range(8)]),
    "references with regions": lambda small: prompted(small, *[(0.9 - i / 10, torch.rand(1, 20, 20)) for i in range(4)]),
    "curve as a window": lambda small: prompted(small, (0.9, None), weight_over_steps="0:1, 1:0.5"),
    "four with curves as windows": lambda small: reduce(
        lambda model, end: prompted(small, (0.9, None), model=model, weight_over_steps=f"0:1, 1:{end}"), (0.1, 0.2, 0.3, 0.4), None
    ),
    "four with windows": lambda small: reduce(lambda model, end: small.apply(model, end_at=end), (0.9, 0.8, 0.95, 0.99), None),
}


@pytest.mark.parametrize("case", CASES)
def test_at_most_one_host_sync_per_model_call(small, case, monkeypatch):
    """Waiting for the device: none in a layer, one for the window where there is one. The first call lays out chunks and masks too."""
    count = 0

    def counting(method):
        def run(*args, **kw):
            nonlocal count
            count += 1
            return method(*args, **kw)

        return run

    model = CASES[case](small)
    for name in SYNCS:
        monkeypatch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))
    model_call(small.unet)
    bare, count = count, 0
    for _ in range(2):
        model_call(model)
        assert count - bare == ("window" in case)
        count = 0


@pytest.mark.parametrize("case", CASES)
def test_at_most_seven_operations_per_layer(small, case):
    model, adapters = CASES[case](small), 4 if "four" in case else 1
    model_call(model)
    counts = []
    for one in (small.unet, model):
        with Operations() as operations:
            model_call(one)
        counts.append(operations.count)
    assert counts[1] - counts[0] <= 7 * LAYERS * adapters + 2  # two for the window: sigmas[0], and its value


# What is held


def tensors_of(model):
    """The storages that a patched model's options reach."""
    found, seen, todo = {}, set(), [model.model_options["transformer_options"]]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, types.FunctionType):
            todo += [cell.cell_contents for cell in one.__closure__ or ()]
        elif type(one).__module__.startswith("ipadapter_") or isinstance(one, (dict, list, tuple)):
            todo += gc.get_referents(one)
    return found


def test_the_patch_holds_k_and_v_alone(small):
    """Two sides of four tokens, K and V of 15 layers, in one piece of memory that every layer and every call shares."""
    model = small.apply()
    small.out(model)
    sizes: Any = synth.TINY["sd15"]
    values = 2 * 4 * 2 * sum(sizes["dims"][:LAYERS])
    assert list(tensors_of(model).values()) == [values * 4]


@pytest.mark.parametrize(("arch", "dim", "heads"), [("sd15", 768, 12), ("sdxl", 1280, 20)])
def test_k_and_v_are_under_two_percent_of_a_full_size_adapter(arch, dim, heads):
    """Sixteen tokens and the published sizes of a plus adapter, on the meta device."""
    from torch import nn

    from ipadapter_core.adapter.attention import project_kv

    sizes: Any = synth.FULL[arch]
    context, dims = sizes["ctx"], sizes["dims"]
    inner = heads * 64
    layer = dim * inner * 2 + dim * inner * 2 + dim * dim * 8  # to_q and to_out, to_kv, feed-forward
    resampler = 16 * dim + 1280 * dim + dim * context + 4 * layer
    with torch.device("meta"):
        to_kv = {i: (nn.Linear(context, d, bias=False), nn.Linear(context, d, bias=False)) for i, d in enumerate(dims)}
        tokens = dict.fromkeys(to_kv, torch.empty(2, 16, context))
        kv = project_kv(to_kv, tokens, dict.fromkeys(to_kv, 8), torch.float32)
    weights = resampler + sum(k.weight.numel() + v.weight.numel() for k, v in to_kv.values())
    assert kv.rows.numel() < 0.02 * weights


def test_the_adapter_itself_is_not_held_by_the_model(small, comfy):
    """Once the loader's output is gone so are its weights, and the model samples as before."""
    want = small.out(small.apply())
    synth.save_adapter(small.state, comfy / "models" / "ipadapter" / "passing_sd15.safetensors")
    adapter = lab.call(small.pack["IPAdapterModelLoader"], ipadapter_file="passing_sd15.safetensors")[0]
    model = small.apply(ipadapter=adapter)
    gone = [weakref.ref(one) for one in (adapter, adapter.module, adapter.patcher, next(adapter.module.parameters()))]
    del adapter
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4
    assert torch.equal(small.out(model), want)


def test_caches_forget_the_oldest_beyond_their_bytes(pack):
    from ipadapter_pack.nodes.host.cache import ByteCache

    cache = ByteCache(100)
    cache.put("a", 1, 40)
    cache.put("b", 2, 40)
    assert cache.get("a") == 1  # used last
    cache.put("c", 3, 40)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]
    assert cache.held == 80
    cache.put("a", 5, 60)
    assert (cache.get("a"), cache.get("c"), cache.held) == (5, 3, 100)
    cache.put("big", 6, 101)
    assert (cache.get("big"), cache.get("a"), cache.held) == (None, 5, 100)
    cache.put("a", 7, 101)
    assert (cache.get("a"), cache.held) == (None, 40)
    made = [cache.get_or_make("d", lambda: 8, lambda value: 10) for _ in range(2)]
    assert (made, cache.held) == ([8, 8], 50)
    cache.clear()
    assert (cache.get("d"), cache.held) == (None, 0)


# Attention overrides and precision


def attention_calls(small, model):
    """(tokens of K, heads, attn_precision, block) of every cross-attention that an override is asked for in a model call."""
    seen = []

    def override(func, q, k, v, heads, *args, **kw):
        tokens = k.shape[2] if kw.get("skip_reshape") else k.shape[1]
        if tokens in (4, 77):
            seen.append((tokens, heads, kw["attn_precision"], kw["transformer_options"]["block"]))
        return func(q, k, v, heads, *args, **kw)

    watched = model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = override
    return seen, model_call(watched)


def test_an_override_sees_text_and_image_attention(small):
    seen, _ = attention_calls(small, small.apply())
    assert {one[3] for one in seen if one[0] == 4} == set(plain.KEYS)
    assert [one[0] for one in seen].count(4) == LAYERS
    assert [one[0] for one in seen].count(77) == LAYERS + 1  # the middle block has text only


def test_the_attention_precision_is_passed_on(small):
    """Some models ask for fp32 attention: text and image attention are told so."""
    model = small.apply()
    blocks = [module for module in small.unet.model.diffusion_model.modules() if hasattr(module, "attn_precision")]
    before = [block.attn_precision for block in blocks]
    try:
        for block in blocks:
            block.attn_precision = torch.float32
        seen, _ = attention_calls(small, model)
    finally:
        for block, precision in zip(blocks, before, strict=True):
            block.attn_precision = precision
    assert {one[2] for one in seen} == {torch.float32}
