"""Fixtures: a real ComfyUI in this process, the pack loaded into it, and the tiny models of the golden cases."""

import os
import sys
from pathlib import Path

import pytest

from support import lab
from support.rig import Rig

REPO = Path(__file__).resolve().parent.parent

if "ipadapter_core" not in sys.modules:  # the repo root stays off sys.path: its nodes/ would hide ComfyUI's nodes.py
    lab.load_module("ipadapter_core", REPO / "ipadapter_core")


@pytest.fixture(scope="session")
def comfy_root() -> Path:
    """The ComfyUI to test with; `python3 dev.py test` installs one where COMFYUI_PATH names none."""
    root = os.environ.get("COMFYUI_PATH")
    if not root:
        pytest.fail("set COMFYUI_PATH to a ComfyUI folder, or run the tests with: python3 dev.py test")
    return Path(root).resolve()


@pytest.fixture(scope="session")
def comfy(comfy_root, tmp_path_factory) -> Path:
    """ComfyUI booted once in this process; gives its base folder (models/, input/, output/)."""
    base = tmp_path_factory.mktemp("comfyui")
    for folder in ("models", "input", "output", "custom_nodes", "temp", "user"):
        (base / folder).mkdir()
    lab.boot(comfy_root, base)
    return base


@pytest.fixture(scope="session")
def pack(comfy) -> dict[str, type]:
    """The pack's NODE_CLASS_MAPPINGS, loaded as module `ipadapter_pack` as ComfyUI loads it."""
    return dict(lab.load_module("ipadapter_pack", REPO).NODE_CLASS_MAPPINGS)


@pytest.fixture(scope="session")
def world(comfy):
    """Tiny UNets, encoders, masks and adapter files of the golden cases."""
    from support.world import World

    return World(comfy / "models" / "ipadapter")


@pytest.fixture(scope="session")
def rig(comfy_root, tmp_path_factory):
    """A real server with the pack, tiny models and faults on demand, started once."""
    with Rig(comfy_root, tmp_path_factory.mktemp("server"), extra=("faults_pack",)) as started:
        yield started
