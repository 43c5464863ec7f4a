"""Lists of weights, pictures and masks of different counts, and what stands below our patch."""

import sys

import pytest
import torch

from support import lab
from support.world import FaceStub, face_align_modules


@pytest.fixture
def plus(pack, world):
    return pack["IPAdapterModelLoader"]().load_ipadapter_model(world.files["plus", "sd15"])[0]


def frame(out: torch.Tensor, i: int) -> torch.Tensor:
    return out[i : i + 1]


def test_weight_lists_of_precise_style_follow_the_latents(pack, world, plus):
    """A list of weights beside a list of boosts, of other lengths: latent i gets both lists' entry i, the last one repeating."""
    node = pack["IPAdapterPreciseStyleTransferBatch"]()
    call = dict(model=world.unet["sd15"], ipadapter=plus, image=lab.images(1), clip_vision=world.cv["h"])
    both = world.out("sd15", node.apply_ipadapter(**call, weight=[0.4, 0.9], style_boost=[1.2])[0], batch=2)
    for i, weight in enumerate((0.4, 0.9)):
        alone = world.out("sd15", node.apply_ipadapter(**call, weight=weight, style_boost=1.2)[0], batch=2)
        effect = (frame(alone, i) - frame(world.baseline("sd15", batch=2), i)).norm()
        assert (frame(both, i) - frame(alone, i)).norm() < 1e-4 * effect


def test_style_and_composition_pictures_of_other_counts(pack, world, plus):
    """Two style pictures and one composition picture: the composition repeats."""
    node = pack["IPAdapterStyleCompositionBatch"]()
    call = dict(model=world.unet["sd15"], ipadapter=plus, clip_vision=world.cv["h"], image_composition=lab.images(1, tag="b"))
    pictures = lab.images(2)
    both = world.out("sd15", node.apply_ipadapter(**call, image_style=pictures)[0], batch=2)
    for i in range(2):
        alone = world.out("sd15", node.apply_ipadapter(**call, image_style=pictures[i : i + 1])[0], batch=2)
        effect = (frame(alone, i) - frame(world.baseline("sd15", batch=2), i)).norm()
        assert (frame(both, i) - frame(alone, i)).norm() < 1e-4 * effect


def test_the_negative_side_of_a_batch_is_held_once(pack, world, plus):
    """All latents share the black picture: one set of tokens for it beside one for each picture."""
    from ipadapter_pack.nodes.host.engine.layer_patch import layer_patches

    model = pack["IPAdapterBatch"]().apply_ipadapter(world.unet["sd15"], plus, image=lab.images(3), clip_vision=world.cv["h"])[0]
    patch = next(iter(layer_patches(model.model_options["transformer_options"]).values()))
    assert patch.applications[0].kv.rows.shape[0] == 1 + 3


def test_each_picture_is_seen_through_its_own_mask(pack, world, plus):
    """Equal pictures with different masks, and a picture that is remembered from before."""
    node = pack["IPAdapterEncoder"]()
    pictures, masks = lab.images(1).repeat(2, 1, 1, 1), torch.stack([torch.eye(64), torch.ones(64, 64)])
    call = dict(ipadapter=plus, weight=1.0, clip_vision=world.cv["h"])
    both = node.encode(**call, image=pictures, mask=masks)[0]
    for i in (1, 0):
        alone = node.encode(**call, image=pictures[:1], mask=masks[i : i + 1])[0]
        assert torch.equal(both[i : i + 1], alone)
    assert not torch.equal(both[0], both[1])


class Recorder:
    """A replace patch of another pack with weights of its own."""

    def __init__(self):
        self.moved = []

    def to(self, target):
        self.moved.append(target)
        return self

    def models(self):
        return ["its model"]

    def __deepcopy__(self, memo):
        return self

    def __call__(self, q, k, v, extra_options):
        raise AssertionError("not sampled here")


def test_a_patch_below_ours_is_moved_and_its_models_are_loaded(pack, world, plus):
    """ComfyUI asks the object on the key for both; ours passes it on to the one it stands on."""
    theirs, model = Recorder(), world.unet["sd15"].clone()
    model.set_model_attn2_replace(theirs, "input", 1)
    patched = pack["IPAdapterAdvanced"]().apply_ipadapter(model, plus, image=lab.images(1), clip_vision=world.cv["h"])[0]
    assert "its model" in patched.model_patches_models()
    patched.model_patches_to(torch.device("cpu"))
    patched.model_patches_to(torch.float16)
    assert theirs.moved == [torch.device("cpu"), torch.float16]


def test_each_face_has_its_negative_picture(pack, world, monkeypatch):
    """FaceID plus: the negative identity is one row of zeros, the pictures beside it are as many as are given."""
    for name, module in face_align_modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    adapter = pack["IPAdapterModelLoader"]().load_ipadapter_model(world.files["faceid_plusv2", "sd15"])[0]
    call = dict(model=world.unet["sd15"], ipadapter=adapter, insightface=FaceStub(), clip_vision=world.cv["h"], weight=0.8)
    node, images, negatives = pack["IPAAdapterFaceIDBatch"](), lab.images(2), lab.images(2, tag="negative")
    both = world.out("sd15", node.apply_ipadapter(**call, image=images, image_negative=negatives)[0], batch=2)
    for i in range(2):
        one = slice(i, i + 1)
        alone = world.out("sd15", node.apply_ipadapter(**call, image=images[one], image_negative=negatives[one])[0], batch=2)
        effect = (frame(alone, i) - frame(world.baseline("sd15", batch=2), i)).norm()
        assert (frame(both, i) - frame(alone, i)).norm() < 1e-4 * effect
