"""What an apply keeps for the next one: nothing is read twice, everything lies in system memory and goes when it is of no more use."""

import asyncio
import gc
import logging
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support import lab, plain, synth
from support.world import FaceStub, face_align_modules


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture(autouse=True)
def caches(pack):
    """The pack's caches by name, emptied."""
    from ipadapter_pack.nodes.host.apply import face_features
    from ipadapter_pack.nodes.host.load import adapter
    from ipadapter_pack.nodes.host.pictures import encoder

    plain.clear_caches()
    return SimpleNamespace(features=encoder._FEATURES, kv=adapter._KV_CACHE, tokens=adapter._TOKENS, faces=face_features._FOUND)


@pytest.fixture
def hashed(pack, monkeypatch):
    """The shapes of what is fingerprinted."""
    from ipadapter_pack.nodes.host import cache

    shapes, digest = [], cache.digest
    for module in [module for name, module in sys.modules.items() if name.startswith("ipadapter_pack.nodes.host")]:
        if getattr(module, "digest", None) is digest:
            monkeypatch.setattr(module, "digest", lambda tensor: shapes.append(tuple(tensor.shape)) or digest(tensor))
    return shapes


class Counter:
    """Counts the runs of the small adapter's projection and of one of its layers."""

    def __init__(self, module):
        self.projection = self.to_k = 0
        self.handles = [
            module.image_proj.register_forward_hook(lambda *_: self._count("projection")),
            module.ip_adapter["1"]["to_k_ip"].register_forward_hook(lambda *_: self._count("to_k")),
        ]

    def _count(self, name):
        setattr(self, name, getattr(self, name) + 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def kv_of(model):
    from ipadapter_pack.nodes.host.engine.layer_patch import layer_patches

    return next(iter(layer_patches(model.model_options["transformer_options"]).values())).applications[0].kv.rows


# Once for each apply


class Seen(TorchDispatchMode):
    """Which tensors are searched for their ends, and the largest new storage that an operation makes."""

    def __init__(self):
        super().__init__()
        self.searched, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
        if func._schema.name == "aten::aminmax":
            self.searched.append(tuple(args[0].shape))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, one.untyped_storage().nbytes())
        return out


def test_a_picture_is_looked_through_and_fingerprinted_once(small, hashed):
    pictures, negative = lab.images(3, 40, 50), lab.images(1, 44, 52, tag="negative")
    with Seen() as seen:
        small.apply(image=pictures, image_negative=negative)
    for shape, count in (((40, 50, 3), 3), ((44, 52, 3), 1)):
        assert (seen.searched.count(shape), hashed.count(shape)) == (count, count)


def test_a_mask_for_all_pictures_is_fingerprinted_once(small, hashed):
    node = small.pack["IPAdapterEncoder"]()
    node.encode(small.adapter, lab.images(3), 1.0, mask=torch.eye(33).unsqueeze(0), clip_vision=small.encoder)
    assert hashed.count((33, 33)) == 1


@pytest.mark.parametrize("node", ["IPAdapterBatch", "IPAdapterClipVisionEnhancerBatch"])
def test_a_batch_of_pictures_is_never_copied_whole(small, node):
    """At most the 16 pictures that are encoded together, whatever the batch."""
    pictures = lab.images(1, 360, 420).repeat(40, 1, 1, 1) * torch.linspace(0.5, 1, 40).view(-1, 1, 1, 1)
    more = {"enhance_tiles": 2, "enhance_ratio": 0.5} if "Enhancer" in node else {}
    with Seen() as seen:
        small.apply(node=node, image=pictures, encode_batch_size=0, **more)
    assert 0 < seen.largest <= pictures[:16].nbytes


@pytest.mark.parametrize("kind", ["alpha", "grey", "half", "out of range"])
def test_pictures_that_need_bringing_to_rgb_are_the_same_picture(small, caches, kind):
    """A picture in another form has the fingerprint of the plain one: it is not encoded again."""
    picture = lab.images(1, 40, 50).half().float()
    if kind == "grey":
        picture = picture[..., :1].expand(-1, -1, -1, 3)
    small.apply(image=picture.contiguous())
    held = caches.features.held
    other = {
        "alpha": torch.cat([picture, torch.full((1, 40, 50, 1), torch.nan)], -1),
        "grey": picture[..., :1],
        "half": picture.half(),
        "out of range": torch.where(picture == picture.amax(), 1.5, picture),
    }[kind]
    if kind == "out of range":
        small.apply(image=other.clamp(0, 1))
        held = caches.features.held
    small.apply(image=other)
    assert caches.features.held == held > 0


def test_kolors_projection_is_not_fingerprinted(pack, hashed):
    """It is told by which parameter it is: another one, or the same with other numbers, makes K and V anew."""
    from ipadapter_pack.nodes.host.apply.project import apply_features
    from ipadapter_pack.nodes.host.apply.settings import Settings
    from ipadapter_pack.nodes.host.load.adapter import as_adapter

    adapter = as_adapter(synth.adapter("base", "sdxl"))
    adapter.info = replace(adapter.info, family="kolors-faceid-plus")  # a real one is too large for a quick test
    model, features = lab.unet("sdxl"), synth.noise("features", (1, 1024))
    layer = model.model.diffusion_model.encoder_hid_proj = torch.nn.Linear(2048, 2048).requires_grad_(False)

    def rows():
        return kv_of(apply_features(model, adapter, (features,), (torch.zeros_like(features),), Settings()))

    first = rows()
    assert rows() is first and (2048, 2048) not in hashed
    layer.weight.mul_(2)
    second = rows()
    assert not torch.equal(second, first) and rows() is second
    layer.weight = torch.nn.Parameter(layer.weight / 2, requires_grad=False)
    assert torch.equal(rows(), first)
    layer.bias.add_(1)
    assert not torch.equal(rows(), first)


# Kept where they are small


def test_an_animation_too_large_to_keep_is_not_projected_again(small, caches, monkeypatch):
    """K and V of three pictures are over the limit, their tokens are not."""
    monkeypatch.setattr(caches.kv, "limit", 1)
    batch = dict(node="IPAdapterBatch", image=lab.images(3), encode_batch_size=0)
    with Counter(small.adapter.module) as counter:
        first = kv_of(small.apply(**batch, weight=0.4))
        assert (counter.projection, counter.to_k) == (2, 1)
        second = kv_of(small.apply(**batch, weight=0.7))
        assert (counter.projection, counter.to_k) == (2, 2)
    assert torch.equal(first, second) and caches.kv.held == 0
    positive, negative = small.sides(lab.images(3))
    assert caches.tokens.held == positive.nbytes + negative[:1].nbytes


# In system memory


class Foreign:
    """An image encoder of another pack: it has encode_image and nothing else."""

    def __init__(self, encoder, runs=None):
        self.encoder, self.runs = encoder, runs

    def encode_image(self, image):
        if self.runs is not None:
            self.runs.append(len(image))
        return self.encoder.encode_image(image)


def test_features_and_kv_lie_in_system_memory(small, caches, monkeypatch):
    """--gpu-only makes a graphics card of the device for what nodes hand on; "meta" stands for it."""
    import comfy.model_management
    from ipadapter_pack.nodes.host.pictures.encoder import encode

    made = small.encoder.encode_image(lab.images(1))
    foreign = Foreign(SimpleNamespace(encode_image=lambda image: made))
    monkeypatch.setattr(comfy.model_management, "intermediate_device", lambda: torch.device("meta"))
    assert encode(foreign, lab.images(1), "image_embeds").device.type == "meta"
    (kept, _), *_ = caches.features._entries.values()
    assert kept.device.type == "cpu" and torch.equal(kept, made["image_embeds"][0].float())
    model = lab.call(
        small.pack["IPAdapterEmbeds"], model=small.unet, ipadapter=small.adapter, pos_embed=made["image_embeds"], weight=1.0,
        weight_type="linear", start_at=0.0, end_at=1.0,
    )[0]  # fmt: skip
    assert kv_of(model).device.type == "cpu"


# Gone when they are of no more use


def test_what_is_kept_goes_with_its_adapter(small, caches):
    adapter = synth.adapter("base", "sd15")
    small.apply(ipadapter=adapter)
    mine = caches.kv.held, caches.tokens.held
    small.apply()
    assert min(mine) > 0 and (caches.kv.held, caches.tokens.held) == (2 * mine[0], 2 * mine[1])
    del adapter
    gc.collect()
    assert (caches.kv.held, caches.tokens.held) == mine


def test_what_is_kept_goes_with_its_encoder(small, caches):
    foreign = Foreign(small.encoder)
    small.apply(clip_vision=foreign)
    small.apply(image=lab.images(2))
    assert caches.features.held == 3 * 1024 * 4
    del foreign
    gc.collect()
    assert caches.features.held == 2 * 1024 * 4


def test_what_is_kept_goes_with_its_recogniser(small, caches, monkeypatch):
    for name, module in face_align_modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    analyser = FaceStub()
    small.apply(node="IPAdapterFaceID", ipadapter=synth.adapter("faceid", "sd15"), insightface=analyser, clip_vision=None)
    assert caches.faces.held > 0
    del analyser
    gc.collect()
    assert caches.faces.held == 0


def test_the_collector_may_come_in_the_middle_of_a_call(pack):
    """An owner that goes while the cache is in use, as the garbage collector has it: nothing waits for itself."""
    from ipadapter_pack.nodes.host.cache import ByteCache

    cache = ByteCache(100)
    cache.put((1, "a"), 1, 40)
    cache.put((2, "a"), 2, 40)
    with cache._locked():
        cache.forget(1)
        assert (1, "a") in cache._entries
    assert (cache.get((1, "a")), cache.get((2, "a")), cache.held) == (None, 2, 40)


class Slotted:
    """An encoder that cannot be weakly referenced."""

    __slots__ = ("encoder",)

    def __init__(self, encoder):
        self.encoder = encoder

    def encode_image(self, image):
        return self.encoder.encode_image(image)


class Unhashable(Foreign):
    """An encoder that compares by value: Python gives it no hash."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other):
        return isinstance(other, Unhashable)


@pytest.mark.parametrize("kind", [Foreign, Slotted, Unhashable])
def test_encoders_of_any_make(small, caches, kind):
    """What one that cannot be weakly referenced gives is not kept: nothing would tell when it goes."""
    want = small.out(small.apply())
    caches.features.clear()
    foreign = kind(small.encoder)
    for _ in range(2):
        assert torch.equal(small.out(small.apply(clip_vision=foreign)), want)
    assert (caches.features.held > 0) is (kind is not Slotted)


@pytest.mark.parametrize(("asked", "emptied"), [("unload_models", True), ("free_memory", True), ("neither", False)])
def test_post_free_empties_the_caches(small, caches, comfy_root, monkeypatch, asked, emptied):
    """On ComfyUI's own server, as its buttons for unloading ask for it."""
    from aiohttp.test_utils import TestClient, TestServer
    from ipadapter_pack.nodes.host.free import empty_on_free

    monkeypatch.delitem(sys.modules, "utils", raising=False)  # main.py imports the server before comfy/ is on sys.path, which has utils.py
    monkeypatch.syspath_prepend(str(comfy_root))
    import server

    def held():
        return [caches.features.held, caches.kv.held, caches.tokens.held]

    async def ask():
        monkeypatch.setattr(server.PromptServer, "instance", None, raising=False)
        prompt_server = server.PromptServer(asyncio.get_running_loop())
        empty_on_free()
        prompt_server.add_routes()
        async with TestClient(TestServer(prompt_server.app)) as client:
            for path in ("/free", "/api/free"):
                small.apply()
                assert (await client.get("/queue")).status == 200
                assert min(held()) > 0
                assert (await client.post(path, json={asked: True})).status == 200
                assert (sum(held()) == 0) is emptied

    asyncio.run(ask())


# Lists of files, lists of weights


def test_the_input_folder_is_walked_once_for_all_lists(pack, comfy, monkeypatch):
    """Within one /object_info, as ComfyUI's server makes it; the next one sees what is new."""
    import os

    import folder_paths

    walks, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda top, *args, **kw: walks.append(top) or walk(top, *args, **kw))
    files = [comfy / "input" / "in a folder" / name for name in ("walked.ipadpt", "walked.faces.safetensors")]
    files[0].parent.mkdir()

    def lists():
        with folder_paths.cache_helper:
            combos = [pack[name].INPUT_TYPES()["required"] for name in ("IPAdapterLoadEmbeds", "IPAdapterLoadFaceEmbeds")]
        return [combo[name][0] for combo, name in zip(combos, ("embeds", "face_embeds"), strict=True)]

    try:
        before = lists()
        assert walks == [folder_paths.get_input_directory()]
        for file in files:
            file.touch()
        wanted = [f"in a folder/{file.name}" for file in files]
        assert [sorted(set(new) - set(old)) for new, old in zip(lists(), before, strict=True)] == [[name] for name in wanted]
        assert wanted[0] in pack["IPAdapterLoadEmbeds"].INPUT_TYPES()["required"]["embeds"][0]  # outside of an /object_info
    finally:
        for file in files:
            file.unlink(missing_ok=True)
        files[0].parent.rmdir()


def told(caplog):
    return [record.getMessage() for record in caplog.records if "list of weights" in record.getMessage()]


def test_a_list_of_weights_for_one_weight_is_told_once(small, caplog):
    """The first of the list is used; a list of one, and a list on a Batch node, need no word."""
    with caplog.at_level(logging.WARNING):
        listed = small.apply(weight=[0.3, 0.9])
        assert len(told(caplog)) == 1
        small.apply(weight=[0.3])
        small.apply(node="IPAdapterBatch", weight=[0.3, 0.9], encode_batch_size=0)
        assert len(told(caplog)) == 1
    assert torch.equal(small.out(listed), small.out(small.apply(weight=0.3)))
