"""The arrows of the design: the core knows nothing of ComfyUI, and only nodes/host does among the nodes."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
HOST = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "execution", "folder_paths", "nodes", "server"}


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports absolutely, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def climbs_out(path: Path) -> bool:
    """Whether a file of ipadapter_core (flat) imports from above its own package."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return any(isinstance(node, ast.ImportFrom) and node.level > 1 for node in tree)


@pytest.mark.parametrize("path", sorted((REPO / "ipadapter_core").glob("**/*.py")), ids=lambda p: p.name)
def test_core_imports_nothing_of_the_host(path):
    assert not imported(path) & HOST
    assert not climbs_out(path)
