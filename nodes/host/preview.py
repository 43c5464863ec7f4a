"""Pictures and text shown in a node."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

import nodes as comfy_nodes


def shown(images: Tensor) -> dict[str, Any]:
    """Images [n, h, w, 3] as the `ui` of an output node: ComfyUI's Preview Image keeps them in its temporary folder."""
    return comfy_nodes.PreviewImage().save_images(images)["ui"]  # type: ignore[attr-defined]


def tell(text: str, node_id: str | None) -> None:
    """Puts text into the node, where the editor shows what long work reports; nothing where no server runs."""
    server: Any = sys.modules.get("server")  # never imported from here: it is there where ComfyUI runs as a server
    if server is not None and node_id is not None:
        server.PromptServer.instance.send_progress_text(text, node_id)
