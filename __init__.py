"""IP-Adapter image prompts for ComfyUI."""

import logging

import nodes as comfy_nodes

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from .nodes.host.files import register_folder

WEB_DIRECTORY = "./web"

register_folder()

if "IPAdapterAdvanced" in comfy_nodes.NODE_CLASS_MAPPINGS:
    logging.getLogger(__name__).warning(
        "Another IP-Adapter pack (ComfyUI_IPAdapter_plus?) is installed and has registered the same nodes: the pack loaded last is used. "
        "Remove one of the two from custom_nodes."
    )

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
