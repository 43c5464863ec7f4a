"""Pictures and text shown in a node."""

from __future__ import annotations

import sys
from typing import Any

import torch
from comfy_execution.utils import get_executing_context
from torch import Tensor

import nodes as comfy_nodes

from ....ipadapter_core.look.plot import seen_view

MOST_SHOWN = 4  # pictures of a batch


def shown(images: Tensor) -> dict[str, Any]:
    """Images [n, h, w, 3] as the `ui` of an output node: ComfyUI's Preview Image keeps them in its temporary folder."""
    return comfy_nodes.PreviewImage().save_images(images)["ui"]  # type: ignore[attr-defined]


def told(text: str) -> dict[str, Any]:
    """Text as the `ui` of an output node. The editor shows that in Preview Any alone, so it is sent as what long work reports, too."""
    context, server = get_executing_context(), _server()
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)
    return {"text": [text]}


def seen(pictures: list[Tensor]) -> None:
    """Sends what an encoder sees of pictures, each [b, h, w, 3], to the open editor, where web/seen.js shows it on the node that runs.

    Nothing is done where no editor is open.
    """
    context = get_executing_context()
    if context is None or not pictures or not looked_at():
        return
    squares = torch.cat([seen_view(picture, "center crop", 1, None, MOST_SHOWN) for picture in pictures])[:MOST_SHOWN]
    told = {"node": context.node_id, "display_node": context.node_id, "prompt_id": context.prompt_id, "output": shown(squares)}
    server = _server()
    server.send_sync("ipadapter.seen", told, server.client_id)


def looked_at() -> bool:
    """Whether the prompt that runs comes from an editor that is open: nobody else sees what a node shows by the way."""
    server = _server()
    return server is not None and server.client_id in server.sockets


def _server() -> Any:
    """The server where one runs. Its module is never imported from here: it would not be the one that runs."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
