"""IP-Adapter image prompts for ComfyUI."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from .nodes.host.files.find import register_folder
from .nodes.host.free import empty_on_free
from .nodes.host.other_packs import warn_of_other_packs

WEB_DIRECTORY = "./web"

register_folder()

empty_on_free()

warn_of_other_packs(__name__)

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
