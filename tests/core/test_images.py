"""Pictures before the encoder, against PIL, torchvision and the sharpening equation written out."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import CenterCrop

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.pictures.images import CROP_POSITIONS, INTERPOLATIONS, center_crop, prepare, resize, rgb, sharpen, square


def picture(h: int, w: int, c: int = 3, b: int = 1, seed: int = 0) -> torch.Tensor:
    """8-bit noise [b, h, w, c] in 0..1."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (b, h, w, c), dtype=np.uint8)) / 255.0


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).squeeze(-1).numpy())


def from_pil(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)) / 255.0


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_rgb_is_pils_convert(channels):
    image = picture(5, 7, channels, b=2)
    out = rgb(image)
    assert out.shape == (2, 5, 7, 3)
    for got, source in zip(out, image, strict=True):
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        assert torch.equal(got, from_pil(Image.frombytes(mode, (7, 5), (source * 255).round().byte().numpy().tobytes()).convert("RGB")))


def test_rgb_brings_half_precision_and_overshoot_into_range():
    out = rgb(torch.tensor([-0.25, 0.5, 1.5], dtype=torch.float16).view(1, 1, 1, 3))
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(8, 8, 3), "not a picture.*8, 8, 3"),
        (torch.zeros(1, 8, 8, 16), "not a picture"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "not a picture.*uint8"),
        (torch.zeros(0, 8, 8, 3), "is empty"),
        (torch.zeros(1, 0, 8, 3), "is empty"),
        (torch.full((1, 8, 8, 3), float("nan")), "not numbers"),
        (torch.full((1, 8, 8, 3), float("inf")), "not numbers"),
    ],
)
def test_rgb_refuses_in_a_sentence_that_names_the_input(image, words):
    with pytest.raises(IPAdapterError, match=f"The image_negative input .*{words}"):
        rgb(image, "image_negative")


def test_a_nan_in_the_alpha_channel_is_dropped_with_it():
    image = picture(3, 3, 4)
    image[..., 3] = float("nan")
    assert torch.equal(rgb(image), image[..., :3])


BOXES = {  # left, top, right, bottom of the crop out of a picture 9 wide and 6 high, or 6 wide and 9 high
    "top": ((1, 0, 7, 6), (0, 0, 6, 6)),
    "bottom": ((1, 0, 7, 6), (0, 3, 6, 9)),
    "left": ((0, 0, 6, 6), (0, 1, 6, 7)),
    "right": ((3, 0, 9, 6), (0, 1, 6, 7)),
    "center": ((1, 0, 7, 6), (0, 1, 6, 7)),
}


@pytest.mark.parametrize("position", BOXES)
def test_square_crops_at_the_named_side(position):
    for image, box in zip((picture(6, 9), picture(9, 6)), BOXES[position], strict=True):
        assert torch.equal(square(image, position)[0], from_pil(pil(image[0]).crop(box)))


@pytest.mark.parametrize(("h", "w", "corner"), [(6, 9, (0, 1)), (9, 6, (1, 0)), (4, 8, (0, 2)), (5, 5, (0, 0))])
def test_square_pads_with_black_to_an_exact_square(h, w, corner):
    image = picture(h, w)
    canvas = Image.new("RGB", (max(h, w),) * 2)
    canvas.paste(pil(image[0]), corner)
    assert torch.equal(square(image, "pad")[0], from_pil(canvas))


@pytest.mark.parametrize("size", [(9, 14), (10, 15), (7, 8), (12, 5), (11, 6)])
def test_center_crop_is_torchvisions(size):
    image = picture(*size)
    for side in range(1, min(size) + 1):
        assert torch.equal(center_crop(image, side, side).movedim(-1, 1), CenterCrop(side)(image.movedim(-1, 1)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_resize_is_pils_on_bytes(interpolation):
    image = picture(31, 47, b=2)
    out = resize(image, 20, 33, interpolation)
    for got, source in zip(out, image, strict=True):
        assert torch.equal(got, from_pil(pil(source).resize((33, 20), Image.Resampling[interpolation])))


def test_resize_box_is_the_rounded_mean_of_blocks():
    """A filter whose result can be written down: the mean of a 4 x 4 block, rounded to bytes along the rows and again along the columns."""
    image = picture(16, 24)
    blocks = (image.double() * 255).view(4, 4, 6, 4, 3).mean((1, 3))
    assert (resize(image, 4, 6, "BOX")[0] * 255 - blocks).abs().max() <= 1 + 1e-4


def test_resize_rounds_pixels_down():
    assert resize(torch.full((1, 2, 2, 3), 100.99 / 255), 2, 2).mean() * 255 == 100


def cas(image: np.ndarray, s: float) -> np.ndarray:
    """Contrast-adaptive sharpening of one channel [h, w], pixel by pixel in float64."""
    h, w = image.shape
    padded = np.zeros((h + 2, w + 2))
    padded[1:-1, 1:-1] = image
    out = np.zeros((h, w))
    for y in range(h):
        for x in range(w):
            (a, b, c), (d, e, f), (g, hh, i) = padded[y : y + 3, x : x + 3]
            low = max(0, min(b, d, e, f, hh)) + max(0, min(a, c, g, i))
            high = min(1, max(b, d, e, f, hh)) + min(1, max(a, c, g, i))
            if high == 0:
                continue
            k = -np.sqrt(min(low, 2 - high) / high) * (s * (1 / 5 - 1 / 8) + 1 / 8)
            out[y, x] = np.clip(((b + d + f + hh) * k + e) / (1 + 4 * k), 0, 1)
    return out


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_sharpen_is_the_equation(strength):
    image = picture(12, 17) * 0.6 + 0.3
    image[:, :, 10:] = image[:, :, 10:] * 2 - 0.5  # beyond 0..1
    image[:, 2:6, 3:8] = 0  # black on black: 0 / 0
    want = np.stack([cas(image[0, :, :, c].double().numpy(), strength) for c in range(3)], -1)
    # float32 on values of 1, divided by 1 + 4k >= 1/5
    assert np.abs(sharpen(image, strength)[0].numpy() - want).max() < 2e-6


def test_prepare_leaves_a_square_picture_of_the_size_alone():
    image = picture(224, 224)
    for position in CROP_POSITIONS:
        assert torch.equal(prepare(image, "LANCZOS", position), image)
    assert torch.equal(prepare(image, sharpening=0.5), sharpen(image, 0.5))


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 300, 1, 4), (1, 40, 90, 1)])
@pytest.mark.parametrize("position", CROP_POSITIONS)
def test_prepare_takes_odd_pictures(shape, position):
    out = prepare(torch.full(shape, 0.4), "BICUBIC", position, 0.2)
    assert out.shape == (shape[0], 224, 224, 3)
    assert ((out >= 0) & (out <= 1)).all()
