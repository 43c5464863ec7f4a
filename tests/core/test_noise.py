"""Noise pictures, against torchvision's transforms fed from the global generator."""

import random

import pytest
import torch
import torchvision.transforms.v2 as tv

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.pictures.noise import NOISE_TYPES, elastic, gaussian_blur, noise

SIZES = [(200, 240), (240, 200), (224, 224), (224, 300), (500, 225), (90, 90), (1, 1)]


def waves(b: int, h: int, w: int) -> torch.Tensor:
    y, x = torch.linspace(0, 5, h)[:, None, None], torch.linspace(0, 4, w)[:, None]
    return torch.stack([0.5 + 0.3 * torch.sin(x + y * i + torch.arange(3.0)) for i in range(1, b + 1)])


def with_torchvision(kind: str, s: float, image: torch.Tensor, blur: int) -> torch.Tensor:
    """The same noise by torchvision: [b, h, w, 3] -> [b, 224, 224, 3]. Disturbs the global generator."""
    fit = tv.Compose([tv.CenterCrop(min(image.shape[1:3])), tv.Resize((224, 224), interpolation=tv.InterpolationMode.BICUBIC)])
    x = fit(image.movedim(-1, 1)).movedim(1, -1)
    torch.manual_seed(int(x.sum()) % 1000000007)
    if kind == "fade":
        x = x * (1 - s) + torch.rand_like(x) * s
    elif kind == "dissolve":
        chosen = torch.rand_like(x) < s
        x = torch.where(chosen, torch.rand_like(x), x)
    elif kind == "gaussian":
        x = x + torch.randn_like(x) * s
    else:
        warp = tv.Compose([tv.ElasticTransform(75.0, 3.5 * (1 - s)), tv.RandomVerticalFlip(1.0), tv.RandomHorizontalFlip(1.0)])
        x = warp(x.movedim(-1, 1)).movedim(1, -1)
        n = torch.randn_like(x) * (0.75 * s)
        x = x * (1 - n) + n
    x = x.clamp(0, 1).movedim(-1, 1)
    return (tv.functional.gaussian_blur(x, [blur // 2 * 2 + 1] * 2) if blur else x).movedim(1, -1)


@pytest.mark.parametrize("kind", NOISE_TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_same_pixels_as_torchvision(kind, size):
    # Sums of up to 33 x 33 float32 products; shuffle samples at positions that are such sums themselves, 112 pixels from the middle.
    tolerance = 1e-4 if kind == "shuffle" else 1e-6
    for count, strength, blur in ((1, 0.6, 0), (2, 1.0, 6), (1, 0.0, 7)):
        image = waves(count, *size)
        want = with_torchvision(kind, strength, image, blur)
        assert (noise(kind, strength, blur, image) - want).abs().max() < tolerance


@pytest.mark.parametrize("kind", NOISE_TYPES)
def test_the_global_random_state_is_left_alone(kind):
    states = torch.get_rng_state(), random.getstate()
    first = noise(kind, 0.5, 3, waves(1, 60, 60))
    torch.rand(100)
    torch.set_rng_state(states[0])
    assert torch.equal(first, noise(kind, 0.5, 3, waves(1, 60, 60)))
    assert not torch.equal(first, noise(kind, 0.5, 3, waves(1, 60, 60) * 0.9))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


@pytest.mark.parametrize("kind", ["fade", "dissolve", "gaussian"])
def test_strength_zero_is_the_picture(kind):
    image = waves(2, 224, 224)
    assert torch.equal(noise(kind, 0.0, 0, image), image)


def test_without_a_picture_there_is_noise_on_black():
    out = noise("fade", 1.0)
    torch.manual_seed(0)
    assert torch.equal(out, torch.rand(1, 224, 224, 3))


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha_pictures(channels):
    image = waves(1, 50, 40)[..., :1].repeat(1, 1, 1, channels)
    assert torch.equal(noise("gaussian", 0.3, 0, image), noise("gaussian", 0.3, 0, image[..., :1].repeat(1, 1, 1, 3)))


def test_unknown_kinds_and_broken_pictures_are_refused():
    with pytest.raises(IPAdapterError, match=r"no noise type 'salt'.*fade, dissolve"):
        noise("salt", 1.0)
    with pytest.raises(IPAdapterError, match="not numbers"):
        noise("fade", 1.0, 0, torch.full((1, 4, 4, 3), float("nan")))


@pytest.mark.parametrize("kernel_size", [1, 3, 7, 33])
@pytest.mark.parametrize("sigma", [None, 0.4, 3.5])
def test_gaussian_blur_is_torchvisions(kernel_size, sigma):
    x = waves(2, 40, 60).movedim(-1, 1)
    want = tv.functional.gaussian_blur(x, [kernel_size, kernel_size], None if sigma is None else [sigma, sigma])
    assert (gaussian_blur(x, kernel_size, sigma) - want).abs().max() < 1e-6


@pytest.mark.parametrize("sigma", [0.0, 0.7, 3.5])
def test_elastic_is_torchvisions(sigma):
    x = waves(2, 61, 80).movedim(-1, 1)
    torch.manual_seed(3)
    want = tv.ElasticTransform(75.0, sigma)(x)
    got = elastic(x, 75.0, sigma, torch.Generator().manual_seed(3))
    assert (got - want).abs().max() < 1e-4  # sampling positions differ by rounding; the border drops to black within a pixel
    assert (got - want).abs().mean() < 1e-6
