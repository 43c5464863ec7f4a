"""What the image encoder sees, against transformers' CLIPImageProcessor, which resizes 8-bit pictures with PIL.

PIL rounds to 8 bits after each of its two passes, this pack once at the end: a level of difference is to be expected.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor

from ipadapter_core.pictures.preprocess import CLIP_MEAN, CLIP_STD, clip_pixels
from support import lab

MEAN, STD = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)


def picture(kind, height, width):
    """An 8-bit picture [h, w, 3]: waves, or noise that leaves bicubic overshoot room inside 0..255."""
    if kind == "waves":
        image = lab.images(1, height, width)[0]
    else:
        image = 0.35 + 0.3 * torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))
    return (255 * image).round().byte()


def levels(pixels):
    """Normalised pixels back as 8-bit levels."""
    return 255 * (pixels * STD + MEAN)


def transformers_levels(image, size):
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return levels(processor(Image.fromarray(image.numpy()), return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("kind", ["waves", "noise"])
@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize("side", [100, 225, 300, 512, 1024])
def test_square_pictures_as_transformers(kind, size, side):
    """At most one level apart, in the fewer values. Measured: in 5 to 22 % of them."""
    image = picture(kind, side, side)
    got = levels(clip_pixels(image[None] / 255, size))
    difference = (got - transformers_levels(image, size)).abs()
    assert difference.max() < 1.001  # a level, and the rounding of normalising and back
    assert (difference > 0.5).float().mean() < 0.25


@pytest.mark.parametrize("size", [224, 336])
def test_pictures_of_the_right_size_are_not_touched(size):
    image = picture("noise", size, size)
    got = levels(clip_pixels(image[None] / 255, size))
    assert (got - transformers_levels(image, size)).abs().max() < 1e-3
    assert torch.equal(got.round()[0].movedim(0, -1), image.float())


@pytest.mark.parametrize(("height", "width"), [(512, 340), (301, 512), (480, 640), (900, 300)])
def test_the_middle_of_other_shapes_as_transformers(height, width):
    """transformers cuts the long side's length to a whole number where this rounds it (as ComfyUI does): up to half a pixel of shift
    beside the one level. Measured: at most 2 levels on waves."""
    image = picture("waves", height, width)
    for size in (224, 336):
        got = levels(clip_pixels(image[None] / 255, size))
        assert got.shape == (1, 3, size, size)
        assert (got - transformers_levels(image, size)).abs().max() < 2.001


def test_values_outside_0_to_1_are_clipped_and_all_are_8_bit():
    image = torch.tensor([-3.0, 0.0, 0.4997, 0.503, 1.0, 7.0]).view(1, 1, 6, 1).expand(1, 6, 6, 3)
    got = levels(clip_pixels(image, 6))
    assert got[0, 0, 0].tolist() == pytest.approx([0, 0, 127, 128, 255, 255], abs=1e-3)


def test_each_picture_by_itself():
    images = torch.stack([picture(kind, 90, 120) for kind in ("waves", "noise")]) / 255
    assert torch.equal(clip_pixels(images), torch.cat([clip_pixels(image[None]) for image in images]))


def test_other_mean_and_deviation():
    """SigLIP's, of a picture that needs no resize."""
    image = picture("waves", 64, 64)
    processor = SiglipImageProcessor(size={"height": 64, "width": 64})
    want = processor(Image.fromarray(image.numpy()), return_tensors="pt")["pixel_values"]
    got = clip_pixels(image[None] / 255, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.allclose(got, want, rtol=0, atol=1e-6)


def pil_mask(mask, size):
    """[H, W] cut to its middle square and resized by PIL in float."""
    height, width = mask.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = Image.fromarray(mask[top : top + side, left : left + side].numpy())
    return torch.from_numpy(np.array(cut.resize((size, size), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("shape", [(64, 64), (50, 90), (97, 60), (224, 224), (500, 301)])
def test_mask_is_multiplied_onto_the_normalised_pixels(shape):
    """PIL and torch resize floats by the same rule, in float32; measured: at most 1e-5 apart."""
    mask = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    images = torch.stack([picture(kind, 240, 300) for kind in ("waves", "noise")]) / 255
    plain = clip_pixels(images)
    got = clip_pixels(images, mask=mask)
    for i in range(2):
        assert torch.allclose(got[i], plain[i] * pil_mask(mask[i], 224), rtol=0, atol=3e-5)


def test_masks_that_do_not_match_the_pictures():
    """One mask serves all pictures; of another number of masks the first does."""
    images = torch.stack([picture(kind, 64, 64) for kind in ("waves", "noise")]) / 255
    masks = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
    first = clip_pixels(images, mask=masks[:1])
    assert torch.equal(first, torch.cat([clip_pixels(image[None], mask=masks[:1]) for image in images]))
    assert torch.equal(clip_pixels(images, mask=masks), first)
    assert torch.allclose(clip_pixels(images, mask=torch.ones(1, 64, 64)), clip_pixels(images), rtol=0, atol=1e-6)
    assert not clip_pixels(images, mask=torch.zeros(1, 64, 64)).any()
