"""Pictures before they reach an encoder: channels, squares, resizing, sharpening. A picture batch is [b, h, w, c], values 0..1."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import IPAdapterError
from ..values import check_choice, check_number

CROP_POSITIONS = ("top", "bottom", "left", "right", "center", "pad")
INTERPOLATIONS = ("LANCZOS", "BICUBIC", "HAMMING", "BILINEAR", "BOX", "NEAREST")


def rgb(image: Tensor, name: str = "image") -> Tensor:
    """Bring a batch [b, h, w, 1..4] to [b, h, w, 3] float32 in 0..1: grey is repeated, alpha dropped. A view where no value changes.

    Raises IPAdapterError, calling the picture `name`, for anything that is no batch of pictures or has values that are not finite.
    """
    if not isinstance(image, Tensor):
        raise IPAdapterError(f"The {name} input is not a picture but a {type(image).__name__}. Connect an IMAGE output.")
    if image.ndim != 4 or image.shape[3] not in (1, 2, 3, 4) or not image.is_floating_point():
        raise IPAdapterError(
            f"The {name} input is not a picture: its shape is {list(image.shape)} ({image.dtype}), not [batch, height, width, channels]. "
            "Connect an IMAGE output."
        )
    if image.numel() == 0:
        raise IPAdapterError(f"The {name} input is empty (shape {list(image.shape)}). Connect at least one picture.")
    channels = image[..., :3] if image.shape[3] >= 3 else image[..., :1]
    ends = torch.stack([torch.stack(picture.contiguous().aminmax()) for picture in channels])  # one by one: a batch may be large
    low, high = ends.min().item(), ends.max().item()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise IPAdapterError(f"The {name} input has pixels that are not numbers (NaN or infinite). Look at the node that made it.")
    channels = channels.float().expand(-1, -1, -1, 3)
    return channels if low >= 0 and high <= 1 else channels.clamp(0, 1)


def square(image: Tensor, position: str = "center") -> Tensor:
    """Make [b, h, w, c] square: cropped at the named side, or padded with black (`pad`). The other axis is centred."""
    h, w = image.shape[1:3]
    if position == "pad":
        size = max(h, w)
        top, left = -middle_start(h, size), -middle_start(w, size)
        return F.pad(image, (0, 0, left, size - w - left, top, size - h - top))
    size = min(h, w)
    top = {"top": 0, "bottom": h - size}.get(position, middle_start(h, size))
    left = {"left": 0, "right": w - size}.get(position, middle_start(w, size))
    return image[:, top : top + size, left : left + size]


def middle_start(length: int, size: int) -> int:
    """Where `size` pixels in the middle of a length begin: below 0 where they reach beyond it; halves of a pixel are left out."""
    return int((length - size) / 2)


def center_crop(image: Tensor, height: int, width: int) -> Tensor:
    """The middle of [b, h, w, c]; halves of a pixel are rounded to even (torchvision's CenterCrop)."""
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]


def resize(image: Tensor, height: int, width: int, interpolation: str = "LANCZOS") -> Tensor:
    """Resize [b, h, w, 3] with the named PIL filter. Pixels pass through 8 bits, rounded down."""
    resample = Image.Resampling[interpolation]
    bytes_in = (image * 255).to(torch.uint8).cpu().numpy()
    resized = [np.asarray(Image.fromarray(picture).resize((width, height), resample)) for picture in bytes_in]
    return torch.from_numpy(np.stack(resized)).to(image) / 255


def sharpen(image: Tensor, strength: float) -> Tensor:
    """Contrast-adaptive sharpening of [b, h, w, c], strength 0..1 (0 still sharpens a little: leave the call out for none).

    After AMD's FidelityFX CAS, every channel by itself, with a border of zeros; bounds are those of the cross plus those of the corners.
    """
    padded = F.pad(image, (0, 0, 1, 1, 1, 1))
    h, w = image.shape[1:3]
    shifted = torch.stack([padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)])
    cross, corners = shifted[[1, 3, 4, 5, 7]], shifted[[0, 2, 6, 8]]
    low = cross.amin(0).clamp(min=0) + corners.amin(0).clamp(min=0)
    high = cross.amax(0).clamp(max=1) + corners.amax(0).clamp(max=1)
    amplitude = (torch.minimum(low, 2 - high) / high).sqrt()
    ring = -amplitude * (strength * (1 / 5 - 1 / 8) + 1 / 8)
    sharp = (shifted[[1, 3, 5, 7]].sum(0) * ring + image) / (1 + 4 * ring)
    return sharp.nan_to_num().clamp(0, 1)


def prepare(image: Tensor, interpolation: str = "LANCZOS", position: str = "center", sharpening: float = 0.0, size: int = 224) -> Tensor:
    """Pictures [b, h, w, 1..4] as a CLIP vision encoder wants them: [b, size, size, 3], squared, resized, sharpened."""
    check_choice(interpolation, "interpolation", INTERPOLATIONS)
    check_choice(position, "crop_position", CROP_POSITIONS)
    check_number(sharpening, "sharpening", 0, 1)
    out = resize(square(rgb(image), position), size, size, interpolation)
    return sharpen(out, sharpening) if sharpening > 0 else out
