"""Image Prompt as published: its whole UNet equals diffusers' with diffusers' own IP-Adapter, from the same encoder's features.

As in test_whole_unet.py, two implementations of one network differ by rounding: beside the size of the effect by 1e-5 or so.
"""

from functools import cached_property

import pytest
import torch

from support import lab, synth
from support.whole_unet import Pair, comfyui_noise, diffusers_noise, error, load

RELATIVE = 1e-4
FULL = {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}


class Both:
    """A layout's two UNets, an encoder of ViT-H's widths, and both ways to apply an adapter to them."""

    def __init__(self, pack, encoder, arch):
        self.pack, self.encoder, self.pair = pack, encoder, Pair(arch)

    def prompt(self, reference, family, **given):
        pipeline = {"ipadapter": {"model": self.pair.file(family)}, "clipvision": {"model": self.encoder}}
        given = {"weight": 0.8, "join": "side by side", "method": "as published", **given}
        model = lab.call(self.pack["ImagePrompt"], model=self.pair.model, ipadapter=pipeline, reference=reference, **given)[0]
        return comfyui_noise(model, self.pair.arch)

    def published(self, images, family, scale, masks=None, negative=None):
        """diffusers' prediction with these pictures; the negative side of pixels that are 0 after normalisation, or of zero embeds."""
        positive = self.features(images, family)
        if negative is None:
            negative = torch.zeros_like(positive) if family == "base" else self.hidden_of_zeros.expand_as(positive)
        load(self.pair.reference, [self.pair.file(family)])
        self.pair.reference.set_ip_adapter_scale(scale)
        found = diffusers_noise(self.pair.reference, self.pair.model, self.pair.arch, [(positive, negative)], masks)
        self.pair.reference.unload_ip_adapter()
        return found

    def features(self, images, family):
        return self.encoder.encode_image(images)["image_embeds" if family == "base" else "penultimate_hidden_states"].float()

    @cached_property
    def hidden_of_zeros(self):
        with torch.no_grad():
            return self.encoder.model(pixel_values=torch.zeros(1, 3, 224, 224), intermediate_output=-2)[1]

    def refer(self, image, weight=1.0, role="everything", fit="center crop", **given):
        return lab.call(self.pack["ImagePromptReference"], image=image, weight=weight, role=role, fit=fit, tiles=2, **given)[0]


@pytest.fixture(scope="module")
def layouts(pack):
    encoder = lab.clip_vision()
    return {arch: Both(pack, encoder, arch) for arch in ("sd15", "sdxl")}


@pytest.fixture
def both(layouts, arch):
    return layouts[arch]


def masks(count):
    """Grey ones of several sizes of detail, so that the way they are brought to a grid shows; the last one is hard."""
    made = synth.noise("masks", (count, 1, 6, 6), 1.0).sigmoid()
    made = torch.nn.functional.interpolate(made, size=(32, 32), mode="bilinear")[:, 0]
    made[-1] = (made[-1] > 0.5).float()
    return made


every = pytest.mark.parametrize(("arch", "family"), [("sd15", "plus"), ("sd15", "base"), ("sdxl", "base")])


@every
def test_text_and_picture(both, family):
    image = lab.images(1)
    got, want = both.prompt(both.refer(image), family), both.published(image, family, 0.8)
    assert error(got, want, both.pair.plain) < RELATIVE


@pytest.mark.parametrize(("arch", "family"), [("sd15", "plus"), ("sdxl", "base")])
def test_several_pictures_and_scales_of_blocks(both, family):
    """A batch and one more reference in the chain, side by side, with diffusers' dictionary as it is."""
    scales = {"down": 0.4, "up": {"block_1": [0.9, 0.0, 0.5]}} if both.pair.arch == "sd15" else FULL
    images = lab.images(3)
    chain = both.refer(images[2:], more=both.refer(images[:2]))
    got = both.prompt(chain, family, weight=1.0, layers=str(scales))
    assert error(got, both.published(images, family, scales), both.pair.plain) < RELATIVE


@pytest.mark.parametrize(("arch", "family"), [("sd15", "base"), ("sdxl", "base")])
def test_masks(both, family):
    """A mask and a weight for each picture, each by itself."""
    images, white = lab.images(3), masks(3)
    chain = None
    for image, weight, region in zip(images.split(1), (0.9, 0.5, -0.4), white.split(1), strict=True):
        chain = both.refer(image, weight, region=region, more=chain)
    got = both.prompt(chain, family, weight=1.0, join="each by itself")
    assert error(got, both.published(images, family, [[0.9, 0.5, -0.4]], [white[None]]), both.pair.plain) < RELATIVE


@pytest.mark.parametrize(("arch", "family"), [("sd15", "plus")])
@pytest.mark.parametrize("join", ["side by side", "each by itself", "blended"])
def test_one_picture_with_a_mask_is_the_same_in_every_join(both, family, join):
    image, white = lab.images(1), masks(1)
    got = both.prompt(both.refer(image, 0.7, region=white), family, weight=1.0, join=join)
    assert error(got, both.published(image, family, [[0.7]], [white[None]]), both.pair.plain) < RELATIVE


@pytest.mark.parametrize(("arch", "family"), [("sd15", "plus")])
def test_a_negative_reference_is_the_negative_side(both, family):
    images = lab.images(2)
    chain = both.refer(images[1:], role="negative", more=both.refer(images[:1]))
    want = both.published(images[:1], family, 0.8, negative=both.features(images[1:], family))
    assert error(both.prompt(chain, family), want, both.pair.plain) < RELATIVE


@pytest.mark.parametrize(("arch", "family"), [("sd15", "plus")])
def test_the_two_methods_differ(both, family):
    """So that the tests above tell them apart."""
    reference = both.refer(lab.images(1))
    published, plus = (both.prompt(reference, family, method=method) for method in ("as published", "as IPAdapter Plus"))
    assert error(plus, published, both.pair.plain) > 100 * RELATIVE
