"""The encoder's pixels against ComfyUI's own preprocessing: the same arithmetic, so the same numbers to the last bit."""

import pytest
import torch

from ipadapter_core.pictures.preprocess import CLIP_STD, clip_pixels
from support import lab


@pytest.fixture(scope="module")
def clip_preprocess(comfy):
    from comfy.clip_vision import clip_preprocess

    return clip_preprocess


@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize("shape", [(224, 224), (300, 300), (480, 640), (97, 1013), (512, 340), (1, 1), (5, 3)])
def test_same_pixels_as_comfyui(clip_preprocess, shape, size):
    """Waves, and noise beyond 0..1, which both cut."""
    noise = torch.randn(1, *shape, 3, generator=torch.Generator().manual_seed(0))
    images = torch.cat([lab.images(1, *shape), noise])
    assert torch.equal(clip_pixels(images, size), clip_preprocess(images, size=size))


@pytest.mark.parametrize("shape", [(1, 1000), (56, 2010), (7, 401), (3, 331), (9, 601)])
def test_same_of_very_long_pictures(clip_preprocess, shape):
    """Their ends are cut off before they are scaled: the same but for values on the border of two levels, which fall to either."""
    images = torch.rand(1, *shape, 3, generator=torch.Generator().manual_seed(0))
    for given in (images, images.transpose(1, 2)):
        levels = (clip_pixels(given) - clip_preprocess(given)) * torch.tensor(CLIP_STD).view(3, 1, 1) * 255
        assert levels.abs().max() < 1.1 and (levels.abs() > 0.1).float().mean() < 0.02


def test_same_with_another_encoders_mean_and_deviation(clip_preprocess):
    images, half = lab.images(2), [0.5, 0.5, 0.5]
    assert torch.equal(clip_pixels(images, 384, half, half), clip_preprocess(images, size=384, mean=half, std=half))


def test_encoding_through_a_mask_of_ones_is_encoding_without_one(comfy, pack):
    """The pack preprocesses by itself where a mask is given, and leaves it to ComfyUI elsewhere."""
    from ipadapter_pack.nodes.host.pictures.encoder import encode

    clip_vision, images = lab.clip_vision(hidden=64, proj=32, heads=4), lab.images(2)
    for feature in ("image_embeds", "penultimate_hidden_states"):
        plain = encode(clip_vision, images, feature)
        masked = encode(clip_vision, images, feature, mask=torch.ones(1, 224, 224))
        assert (masked - plain).norm() < 1e-6 * plain.norm()
        assert (encode(clip_vision, images, feature, mask=torch.zeros(1, 224, 224)) - plain).norm() > 0.01 * plain.norm()
