"""Pictures and text shown in a node."""

from __future__ import annotations

import sys
from typing import Any

from comfy_execution.utils import get_executing_context
from torch import Tensor

import nodes as comfy_nodes


def shown(images: Tensor) -> dict[str, Any]:
    """Images [n, h, w, 3] as the `ui` of an output node: ComfyUI's Preview Image keeps them in its temporary folder."""
    return comfy_nodes.PreviewImage().save_images(images)["ui"]  # type: ignore[attr-defined]


def told(text: str) -> dict[str, Any]:
    """Text as the `ui` of an output node. The editor shows that in Preview Any alone, so it is sent as what long work reports, too."""
    context = get_executing_context()
    server = getattr(sys.modules.get("server"), "PromptServer", None)  # never imported from here: it is there where one runs
    if context is not None and (running := getattr(server, "instance", None)) is not None:
        running.send_progress_text(text, context.node_id)
    return {"text": [text]}
