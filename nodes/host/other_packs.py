"""Another pack with the same nodes, told of in the log: of two the one that is loaded last is used, and ComfyUI does not say so."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths

import nodes as comfy_nodes

log = logging.getLogger(__name__)

_SHARED = "IPAdapterAdvanced"
_FOLDER = "ipadapter_plus"  # part of the folder's name, whatever its case and hyphens
_OWN = Path(__file__).resolve().parents[2]


def warn_of_other_packs(own: str) -> None:
    """Logs a warning for another pack that has registered our nodes' ids, or that will; `own` is this pack's module name."""
    cls = comfy_nodes.NODE_CLASS_MAPPINGS.get(_SHARED)
    if cls is not None and not cls.__module__.startswith(f"{own}."):
        other = getattr(cls, "RELATIVE_PYTHON_MODULE", cls.__module__).removeprefix("custom_nodes.")
        log.warning("%s had already registered nodes with the same names; this pack's are used now. Remove one of the two packs.", other)
        return
    for name in _folders():
        log.warning("%s is installed too and has nodes with the same names; those loaded last are used. Remove one of the two packs.", name)


def _folders() -> list[str]:
    """Names of the folders in custom_nodes that ComfyUI will load and that are called as ComfyUI_IPAdapter_plus is."""
    found = [folder for root in folder_paths.get_folder_paths("custom_nodes") for folder in Path(root).glob("*")]
    others = [folder for folder in found if folder.is_dir() and folder.resolve() != _OWN]
    names = [folder.name for folder in others if not folder.name.startswith(".") and folder.suffix != ".disabled"]
    return sorted(name for name in names if _FOLDER in name.lower().replace("-", "_"))
