"""ComfyUI_IPAdapter_plus beside this pack, both loaded by ComfyUI's own loader: said in the log, and their objects go together."""

import asyncio
import inspect
import logging
import shutil
import sys
from typing import Any

import pytest
import torch

from support import lab, plain
from support.rig import REPO
from support.server import link

OTHER = "ComfyUI_IPAdapter_plus"
STAND_IN = """
class IPAdapterAdvanced:
    RETURN_TYPES = ()
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

NODE_CLASS_MAPPINGS = {"IPAdapterAdvanced": IPAdapterAdvanced}
"""


def registry() -> Any:
    """ComfyUI's module of nodes."""
    return sys.modules["nodes"]


@pytest.fixture
def custom_nodes(pack, comfy, monkeypatch):
    """ComfyUI's custom_nodes folder, empty and with none of our nodes registered; all is as it was afterwards."""
    import folder_paths

    nodes = registry()
    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", {key: cls for key, cls in nodes.NODE_CLASS_MAPPINGS.items() if key not in pack})
    monkeypatch.setattr(nodes, "NODE_DISPLAY_NAME_MAPPINGS", dict(nodes.NODE_DISPLAY_NAME_MAPPINGS))
    monkeypatch.setattr(nodes, "EXTENSION_WEB_DIRS", dict(nodes.EXTENSION_WEB_DIRS))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([str(comfy / "custom_nodes")], set()))
    yield comfy / "custom_nodes"
    for path in (comfy / "custom_nodes").iterdir():
        path.unlink() if path.is_symlink() else shutil.rmtree(path)


def write(folder):
    folder.mkdir()
    (folder / "__init__.py").write_text(STAND_IN)
    return folder


def load(folder):
    """As ComfyUI does it at its start; a folder that is not there is this pack's."""
    nodes = registry()
    if not folder.exists():
        link(REPO, folder)

    loaded = nodes.load_custom_node(str(folder), module_parent="custom_nodes")
    assert asyncio.run(loaded) if inspect.iscoroutine(loaded) else loaded


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_other_pack_first(custom_nodes, caplog):
    nodes = registry()
    load(write(custom_nodes / OTHER))
    load(custom_nodes / "ours")
    assert nodes.NODE_CLASS_MAPPINGS["IPAdapterAdvanced"].CATEGORY == "ipadapter/established"
    (said,) = warnings(caplog)
    assert said == f"{OTHER} had already registered nodes with the same names; this pack's are used now. Remove one of the two packs."


@pytest.mark.parametrize("name", [OTHER, "comfyui-ipadapter-plus", "ComfyUI_IPAdapter_plus-main"])
def test_the_other_pack_later(custom_nodes, caplog, name):
    nodes = registry()
    other = write(custom_nodes / name)
    load(custom_nodes / "ours")
    load(other)
    assert nodes.NODE_CLASS_MAPPINGS["IPAdapterAdvanced"].FUNCTION == "run"
    (said,) = warnings(caplog)
    assert said == f"{name} is installed too and has nodes with the same names; those loaded last are used. Remove one of the two packs."


@pytest.mark.parametrize("name", ["ours", OTHER])
def test_this_pack_alone_and_loaded_again(custom_nodes, caplog, name):
    """In a folder of any name, the other pack's too."""
    load(custom_nodes / name)
    load(custom_nodes / name)
    assert warnings(caplog) == []


def test_a_pack_that_is_switched_off(custom_nodes, caplog):
    write(custom_nodes / f"{OTHER}.disabled")
    load(custom_nodes / "ours")
    assert warnings(caplog) == []


def test_their_nodes_take_our_adapter(pack, comfy):
    """A plain IP-Adapter that reads two state dicts gives one picture from our loader's value and from the dicts themselves."""
    small = plain.Small(pack, comfy)
    latents = []
    for state in (small.state, small.adapter):
        small.state = state
        model = small.plain_model(plain.by_sides(*small.sides(lab.images(1))))
        plain.name_sides(model, [lab.cond("sd15", tag="neg")[0][0]])
        latents.append(small.out(model))
    assert torch.equal(*latents)
    assert plain.error(latents[1], small.out(small.apply()), small.out(small.unet)) < 1e-4
