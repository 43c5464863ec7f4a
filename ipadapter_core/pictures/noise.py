"""Noise pictures for the negative side, the same for the same picture; the global random state stays as it is."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import IPAdapterError
from ..values import check_choice, check_number, check_whole
from .images import center_crop, rgb

NOISE_TYPES = ("fade", "dissolve", "gaussian", "shuffle")
ELASTIC_ALPHA = 75.0
ELASTIC_SIGMA = 3.5


def noise(kind: str, strength: float, blur: int = 0, image: Tensor | None = None, size: int = 224) -> Tensor:
    """Noise of one of NOISE_TYPES, strength 0..1, over a picture [b, h, w, 1..4] (black without one): [b, size, size, 3].

    The random numbers are those of torch.manual_seed(int(sum of the pixels) mod 1000000007). `blur` 0 is none, else the width in
    pixels of a Gaussian (the next odd number).
    """
    check_choice(kind, "noise type", NOISE_TYPES)
    check_number(strength, "strength", 0, 1)
    check_whole(blur, "blur", 0, size // 2)
    x = torch.zeros(1, size, size, 3) if image is None else _fit(rgb(image).cpu(), size)
    generator = Generator().manual_seed(int(x.sum()) % 1000000007)
    out = _add_noise(kind, x, strength, generator).clamp(0, 1)
    if blur > 0:
        out = gaussian_blur(out.movedim(-1, 1), blur + 1 - blur % 2).movedim(1, -1)
    return out.contiguous() if image is None else out.contiguous().to(image.device)


def _fit(image: Tensor, size: int) -> Tensor:
    """Centre square of [b, h, w, c], resized. The memory order matters, for the random numbers are dealt out in it: a single wide
    picture lies plane by plane, all others pixel by pixel (the orders that torchvision's resize leaves)."""
    b, h, w, _ = image.shape
    image = center_crop(image, min(h, w), min(h, w))
    if min(h, w) == size:
        return image.contiguous()
    image = F.interpolate(image.movedim(-1, 1), size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return image.contiguous().movedim(1, -1) if b == 1 and w > h else image.movedim(1, -1).contiguous()


def _add_noise(kind: str, x: Tensor, s: float, generator: Generator) -> Tensor:
    def uniform() -> Tensor:
        return torch.empty_like(x).uniform_(generator=generator)

    if kind == "fade":
        return x * (1 - s) + uniform() * s
    if kind == "dissolve":
        return torch.where(uniform() < s, uniform(), x)
    if kind == "gaussian":
        return x + torch.empty_like(x).normal_(generator=generator) * s
    if kind == "shuffle":
        x = elastic(x.movedim(-1, 1), ELASTIC_ALPHA, ELASTIC_SIGMA * (1 - s), generator).flip(2, 3).movedim(1, -1)
        torch.rand(2, generator=generator)  # torchvision's random flips draw a number each, whatever their probability
        n = torch.empty_like(x).normal_(generator=generator) * (0.75 * s)
        return x * (1 - n) + n
    raise IPAdapterError(f"There is no noise type '{kind}'. The noise types are: {', '.join(NOISE_TYPES)}.")


def gaussian_blur(x: Tensor, kernel_size: int, sigma: float | None = None) -> Tensor:
    """Blur [b, c, h, w] with an odd kernel, borders mirrored. sigma defaults to 0.3 ((kernel_size - 1) / 2 - 1) + 0.8 (as in OpenCV)."""
    sigma = 0.15 * kernel_size + 0.35 if sigma is None else sigma
    half = kernel_size // 2
    weights = torch.softmax(-0.5 * (torch.linspace(-half, half, kernel_size) / sigma) ** 2, 0).to(x)
    padded = F.pad(x, (half, half, half, half), mode="reflect")
    kernel = (weights[:, None] * weights).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(padded, kernel, groups=x.shape[1])


def elastic(x: Tensor, alpha: float, sigma: float, generator: Generator) -> Tensor:
    """Push the pixels of [b, c, h, w] around at random, the same way in the whole batch; what comes from outside is black.

    Displacements are uniform, smoothed with sigma and scaled by alpha, in pixels: ElasticTransform of torchvision
    (Simard et al. 2003), drawing the same numbers.
    """
    h, w = x.shape[2:]

    def displacement(length: int) -> Tensor:
        d = torch.rand(1, 1, h, w, generator=generator) * 2 - 1
        if sigma > 0:
            d = gaussian_blur(d, int(8 * sigma + 1) // 2 * 2 + 1, sigma)
        return d * alpha / length

    shift = torch.cat([displacement(w), displacement(h)], 1).movedim(1, -1)
    y, x0 = (torch.linspace((1 - n) / n, (n - 1) / n, n) for n in (h, w))
    grid = (torch.stack(torch.meshgrid(x0, y, indexing="xy"), -1) + shift).expand(x.shape[0], -1, -1, -1)
    inside = F.grid_sample(torch.ones(x.shape[0], 1, h, w), grid, align_corners=False)
    return F.grid_sample(x, grid, align_corners=False) * inside
