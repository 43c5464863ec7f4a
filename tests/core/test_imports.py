"""The arrows of the design: nodes -> nodes/host -> ipadapter_core, never back, from room to room; only nodes/host knows ComfyUI."""

import ast
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "PIL", "safetensors", "einops"}
CORE = ("", "adapter", "files", "pictures", "weights", "look")  # each may import itself and those before it, "" the folder itself
HOST = ("", "files", "faces", "pictures", "engine", "load", "apply", "look")


def rooms(folder: str, names: tuple[str, ...]) -> list[str]:
    return [f"{folder}/{name}".rstrip("/") for name in names]


IN_CORE, IN_HOST = rooms("ipadapter_core", CORE), rooms("nodes/host", HOST)
MAY = {  # what the files of a folder may import of the pack
    **{room: set(IN_CORE[: i + 1]) for i, room in enumerate(IN_CORE)},
    **{room: {*IN_HOST[: i + 1], *IN_CORE} for i, room in enumerate(IN_HOST)},
    "nodes": {"nodes", *IN_HOST, *IN_CORE},
}
FILES = {path.relative_to(REPO).as_posix(): path for folder in MAY for path in sorted((REPO / folder).glob("*.py"))}
every_file = pytest.mark.parametrize("file", FILES)


def imported(text: str, file: str) -> tuple[set[str], set[str]]:
    """(top-level modules that a file imports absolutely, folders of the pack that it imports from), wherever in the file."""
    absolute, folders = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            absolute.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            absolute.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            above = Path(file).parents[node.level - 1]
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                module = above.joinpath(*name.split("."))
                folders.add((module if (REPO / module).is_dir() else module.parent).as_posix())
    return absolute, folders


def wrong(text: str, file: str) -> set[str]:
    """What the file imports and may not."""
    folder = Path(file).parent.as_posix()
    absolute, folders = imported(text, file)
    return (set() if folder in IN_HOST else absolute - LIBRARIES) | (folders - MAY[folder])


def test_all_code_is_in_these_folders():
    code = {path.relative_to(REPO).as_posix() for folder in ("ipadapter_core", "nodes") for path in (REPO / folder).rglob("*.py")}
    assert code == set(FILES) and len(code) > 50


@every_file
def test_arrows(file):
    assert wrong(FILES[file].read_text(encoding="utf-8"), file) == set()


@pytest.mark.parametrize(("file", "line", "found"), [
    ("nodes/look.py", "import comfy.samplers", "comfy"),
    ("nodes/look.py", "def f():\n    from folder_paths import models_dir", "folder_paths"),
    ("nodes/inputs.py", "import nodes", "nodes"),
    ("nodes/inputs.py", "from server import PromptServer", "server"),
    ("nodes/host/files/find.py", "from ...loaders import CHAINED", "nodes"),
    ("nodes/host/files/find.py", "from ... import inputs", "nodes"),
    ("nodes/host/files/find.py", "from .... import __version__", "."),
    ("ipadapter_core/pictures/fit.py", "import comfy.utils", "comfy"),
    ("ipadapter_core/pictures/fit.py", "import insightface", "insightface"),
    ("ipadapter_core/pictures/fit.py", "from ...nodes.host.files.find import FOLDER", "nodes/host/files"),
    ("ipadapter_core/pictures/fit.py", "from ...nodes import inputs", "nodes"),
    ("ipadapter_core/pictures/fit.py", "from ..look import plot", "ipadapter_core/look"),
    ("nodes/host/engine/layout.py", "from ..apply.settings import Settings", "nodes/host/apply"),
    ("nodes/host/cache.py", "from .engine import layout", "nodes/host/engine"),
])  # fmt: skip
def test_a_wrong_arrow_is_noticed(file, line, found):
    assert wrong(line, file) == {found}
