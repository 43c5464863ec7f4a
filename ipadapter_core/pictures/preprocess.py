"""What a CLIP image encoder sees of a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .images import middle_start

SIZE = 224  # pixels on a side that CLIP sees
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
LONGEST = 32  # times the short side of a picture


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(image, size=(height, width), mode="bicubic", antialias=True)


def _middle(image: Tensor, size: int) -> Tensor:
    top, left = (middle_start(length, size) for length in image.shape[-2:])
    return image[..., top : top + size, left : left + size]


def clip_pixels(
    image: Tensor,
    size: int = SIZE,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    mask: Tensor | None = None,
) -> Tensor:
    """Pictures [b, h, w, 3] in 0..1 -> pixel values [b, 3, size, size].

    The middle square, normalised. mask [m, H, W], cropped to its middle and resized, is multiplied onto the normalised pixels.
    """
    x = middle_square(image, size).movedim(-1, 1)
    x = (x - x.new_tensor(mean).view(3, 1, 1)) / x.new_tensor(std).view(3, 1, 1)
    if mask is not None:
        weight = middle_mask(mask, size).unsqueeze(1)
        x = x * (weight if weight.shape[0] in (1, x.shape[0]) else weight[:1])
    return x


def around_middle(image: Tensor, size: int) -> Tensor:
    """[b, h, w, c] without the ends of a side more than LONGEST times the other, which the middle square of `size` pixels cannot see.

    1 x 4000 pixels scaled to a short side of 224 would be 2.4 GB. What is left is on the same grid of scaled pixels, or half of one
    beside it where no length near the shortest would be.
    """
    height, width = image.shape[1:3]
    short, long = min(height, width), max(height, width)
    if long <= LONGEST * short:
        return image
    whole = short // math.gcd(short, size)  # so many pixels become a whole number of scaled ones
    lengths = range(-(-LONGEST * short // whole) * whole, long, whole)[:8]
    scaled = round(size / short * long)
    fitting = (one for one in lengths if (long - one) % 2 == 0 and (scaled - size * one // short) % 2 == 0)
    length = next(fitting, LONGEST * short + (long - LONGEST * short) % 2)
    start = (long - length) // 2
    return image.narrow(2 if width == long else 1, start, length)


def middle_square(image: Tensor, size: int) -> Tensor:
    """[b, h, w, 3] -> [b, size, size, 3]: the short side scaled to `size` (antialiased bicubic), the middle of the long side kept."""
    x = around_middle(image, size).movedim(-1, 1).float()
    height, width = x.shape[-2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        x = _middle(_resize(x, round(scale * height), round(scale * width)), size)
    return _eight_bit(x).movedim(1, -1)


def middle_mask(mask: Tensor, size: int) -> Tensor:
    """[m, H, W] -> [m, size, size], cropped to its middle and resized."""
    return _resize(_middle(mask.unsqueeze(1).float(), min(mask.shape[-2:])), size, size)[:, 0]


def stretched(image: Tensor, size: int) -> Tensor:
    """[b, h, w, 3] -> [b, size, size, 3], whatever the shape."""
    return _eight_bit(_resize(image.movedim(-1, 1).float(), size, size)).movedim(1, -1)


def _eight_bit(x: Tensor) -> Tensor:
    """Rounded to 1/255, as a picture file has it."""
    return (255 * x).clip(0, 255).round() / 255
