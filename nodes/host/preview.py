"""Pictures shown in a node."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import nodes as comfy_nodes


def shown(images: Tensor) -> dict[str, Any]:
    """Images [n, h, w, 3] as the `ui` of an output node: ComfyUI's Preview Image keeps them in its temporary folder."""
    return comfy_nodes.PreviewImage().save_images(images)["ui"]  # type: ignore[attr-defined]
