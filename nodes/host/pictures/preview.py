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
    context, server = get_executing_context(), _server()
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)
    return {"text": [text]}


def looked_at() -> bool:
    """Whether the prompt that runs comes from an editor that is open: nobody else sees what a node shows by the way."""
    server = _server()
    return server is not None and server.client_id in server.sockets


def _server() -> Any:
    """The server where one runs. Its module is never imported from here: it would not be the one that runs."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
