"""The pictures that come with the pack, for its examples and for first tries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[1] / "web" / "pictures"
NAMES = ("lighthouse", "poster", "ink drawing", "layout", "face", "dawn and night", "four frames", "left half")


class IPAdapterExamplePicture:
    DESCRIPTION = (
        "A picture that comes with the pack, so that every example runs at once. Put Load Image in its place for a picture of your own."
    )
    FUNCTION = "read"
    RETURN_TYPES = ("IMAGE", "MASK")
    OUTPUT_TOOLTIPS = (
        "The picture, for the image input of any IPAdapter or Image Prompt node. Those of an animation come as a batch.",
        "Where the main thing of the picture is: white there, black elsewhere. It fits mask_of_picture, mask, region and attn_mask.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        picture = (
            "'lighthouse' is wide, with something at its side; 'poster' and 'ink drawing' are two styles; 'layout' has little but its "
            "layout; 'face' is drawn, of nobody; 'dawn and night' are two pictures and 'four frames' four, for animations; 'left half' "
            "is a mask."
        )
        return {"required": {"picture": (list(NAMES), {"tooltip": picture})}}

    def read(self, picture: str) -> tuple[Tensor, Tensor]:
        name = picture.replace(" ", "_")
        images, mask = read_frames(FOLDER / f"{name}.webp"), read_frames(FOLDER / f"{name}.mask.webp")[..., 0]
        return images, mask.expand(len(images), -1, -1)  # frames of one mask are kept once in the file


def read_frames(path: Path) -> Tensor:
    """Every frame of a picture, [n, h, w, 3] in 0..1."""
    with Image.open(path) as file:
        frames = [np.asarray(frame.convert("RGB"), dtype=np.float32) for frame in ImageSequence.Iterator(file)]
    return torch.from_numpy(np.stack(frames)) / 255


NODE_CLASS_MAPPINGS = {"IPAdapterExamplePicture": IPAdapterExamplePicture}
NODE_DISPLAY_NAME_MAPPINGS = {"IPAdapterExamplePicture": "IPAdapter Example Picture"}
