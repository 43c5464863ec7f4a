"""Pictures of any shape as squares: against PIL, numpy and transformers, which do the same in other ways."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.pictures.fit import FITS, MOST_TILES, boxes_of, fit, interpolate_positions, pool
from ipadapter_core.pictures.preprocess import CLIP_MEAN, CLIP_STD, clip_pixels
from support import lab

MEAN, STD = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
SHAPES = [(224, 224), (120, 300), (301, 120), (97, 98)]


def eight_bit(height, width, n=1):
    return (255 * lab.images(n, height, width)).round().byte()


def levels(squares):
    return (255 * squares).round().to(torch.int)


@pytest.mark.parametrize("shape", SHAPES)
def test_center_crop_is_what_the_encoder_takes_by_itself(shape):
    """Bit for bit: the new nodes' plain choice is the established nodes' only one."""
    image, mask = lab.images(2, *shape), lab.images(1, *shape)[..., 0]
    fitted = fit(image, "center crop", 2, 224, mask)
    assert len(fitted.boxes) == 1
    assert torch.equal(clip_pixels(fitted.squares, 224, mask=fitted.masks), clip_pixels(image, 224, mask=mask))


@pytest.mark.parametrize("shape", SHAPES)
def test_pad_as_llava_pads(shape):
    """LLaVA's expand2square (arXiv 2310.03744) with PIL: a square of the encoder's mean colour, the picture pasted in the middle.

    PIL rounds to 8 bits after each pass of its resize, torch once: a level apart, as in test_preprocess.
    """
    picture = Image.fromarray(eight_bit(*shape)[0].numpy())
    side = max(picture.size)
    canvas = Image.new("RGB", (side, side), tuple(round(255 * c) for c in CLIP_MEAN))
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    expected = np.asarray(canvas.resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    got = levels(fit(eight_bit(*shape) / 255, "pad", 2, 224).squares)[0].numpy()
    assert np.abs(got - expected).max() <= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_stretch_as_transformers(shape):
    picture = eight_bit(*shape)
    processor = CLIPImageProcessor(size={"height": 224, "width": 224}, do_center_crop=False)
    expected = processor(Image.fromarray(picture[0].numpy()), return_tensors="pt")["pixel_values"][0] * STD + MEAN
    got = fit(picture / 255, "stretch", 2, 224).squares[0].movedim(-1, 0)
    assert (255 * (got - expected)).abs().max() < 1.001  # one level, and the rounding of normalising and back


@pytest.mark.parametrize(("height", "width", "tiles", "count"), [
    (100, 100, 1, 1), (100, 100, 2, 4), (100, 100, 3, 9), (101, 99, 4, 20), (50, 200, 1, 4), (50, 210, 1, 5), (210, 50, 2, 18),
])  # fmt: skip
def test_tiles_cover_every_pixel_and_stay_inside(height, width, tiles, count):
    boxes = boxes_of("tiles", height, width, tiles)
    assert len(boxes) == count
    seen = torch.zeros(height, width)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert right - left == bottom - top == -(-min(height, width) // tiles)
        seen[top:bottom, left:right] = 1
    assert seen.all()


def test_tiles_are_cut_where_their_boxes_say():
    """Picture by picture, row by row; a tile of the encoder's size is not touched."""
    image = eight_bit(112, 168, n=2) / 255
    fitted = fit(image, "tiles", 2, 56)
    assert len(fitted.boxes) == 6
    expected = [image[n, top:bottom, left:right] for n in range(2) for left, top, right, bottom in fitted.boxes]
    assert torch.equal(levels(fitted.squares), levels(torch.stack(expected)))


@pytest.mark.parametrize("how", ["pad", "stretch", "tiles"])
def test_the_mask_is_cut_with_the_picture(how):
    """A mask that is the picture's own brightness, at half its size, ends up as the squares' brightness (bars are masked out)."""
    image = lab.images(1, 120, 200)[..., :1].expand(-1, -1, -1, 3)
    mask = torch.nn.functional.interpolate(image[..., 0][None], size=(60, 100), mode="area")[0]
    fitted = fit(image, how, 2, 112, mask, fill=(0.0, 0.0, 0.0))
    assert (fitted.masks - fitted.squares[..., 0])[:, 3:-3, 3:-3].abs().mean() < 0.01
    if how == "pad":
        assert (fitted.masks[:, :20] == 0).all() and (fitted.masks[:, -20:] == 0).all()


def test_one_mask_goes_with_all_pictures_or_one_with_each():
    image, mask = lab.images(2, 60, 60), torch.stack([torch.zeros(60, 60), torch.ones(60, 60)])
    assert torch.equal(fit(image, "stretch", 1, 28, mask).masks.mean((1, 2)), torch.tensor([0.0, 1.0]))
    assert torch.equal(fit(image, "stretch", 1, 28, mask[1:]).masks.mean((1, 2)), torch.tensor([1.0, 1.0]))


def test_pool_is_the_mean_by_the_white_share_of_the_masks():
    features = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    pictures = features.unflatten(0, (2, 3))
    assert torch.allclose(pool(features, 3), pictures.mean(1), atol=0, rtol=1e-6)
    shares = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    masks = shares.view(6, 1, 1).expand(6, 2, 2)
    expected = torch.stack([(2 * pictures[0, 0] + pictures[0, 1]) / 3, pictures[1].mean(0)])  # all black: plain
    assert torch.allclose(pool(features, 3, masks), expected, atol=1e-7, rtol=1e-6)
    assert torch.equal(pool(features[:2], 1, masks[:2]), features[:2])


@pytest.mark.parametrize("side", [16, 24, 32])
def test_positions_as_transformers_interpolates_them(side):
    """transformers' own interpolate_pos_encoding on the same table; bicubic both, so equal up to fp32 rounding."""
    config = CLIPVisionConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, image_size=224, patch_size=14)
    embeddings = CLIPVisionModelWithProjection(config).vision_model.embeddings
    with torch.no_grad():
        embeddings.position_embedding.weight.normal_(generator=torch.Generator().manual_seed(1))
    expected = embeddings.interpolate_pos_encoding(torch.zeros(1, side * side + 1, 8), 14 * side, 14 * side)[0]
    got = interpolate_positions(embeddings.position_embedding.weight, side)
    assert (got - expected).abs().max() <= 1e-6
    assert side != 16 or (got - embeddings.position_embedding.weight).abs().max() <= 1e-6


def test_positions_without_a_class_token_and_of_another_dtype():
    table = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    with_class = torch.cat([torch.full((1, 4), 7.0), table])
    assert torch.equal(interpolate_positions(with_class, 5)[1:], interpolate_positions(table, 5))
    assert torch.equal(interpolate_positions(with_class, 5)[0], with_class[0])
    assert interpolate_positions(table.half(), 5).dtype == torch.float16


@pytest.mark.parametrize(("call", "words"), [
    (lambda: boxes_of("tiles", 3, 9, 4), "too small for 4 tiles"),
    (lambda: boxes_of("tiles", 10, 10 * (MOST_TILES + 1), 1), f"{MOST_TILES + 1} tiles, more than {MOST_TILES}"),
    (lambda: boxes_of("zoom", 10, 10, 1), "Choose one of: center crop, pad, stretch, tiles"),
    (lambda: interpolate_positions(torch.zeros(14, 4), 3), "no square grid"),
])  # fmt: skip
def test_what_cannot_be_done_is_said(call, words):
    with pytest.raises(IPAdapterError, match=words):
        call()


def test_the_smallest_pictures_are_fitted():
    for how in FITS:
        assert fit(torch.rand(1, 1, 1, 3), how, 1, 28).squares.shape == (1, 28, 28, 3)
