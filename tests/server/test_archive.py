"""The registry's archive in the hands of a user: unpacked into the custom_nodes of a fresh ComfyUI, its first example runs."""

import io
import json
import re
import sys
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from support import archive, needs
from support.convert import to_prompt
from support.rig import PACK, RANDOM_MODELS, REPO, SUPPORT, example, make_models
from support.server import Server

COMFYUI_WRITES = {"custom_nodes", "extra_model_paths.yaml", "input", "models", "output", "server.log", "temp", "user"}


def files(folder: Path) -> dict[str, bytes]:
    """Every file under a folder by its name there, but for what Python compiles."""
    found = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def packed(folder: str, suffix: str) -> list[Path]:
    return sorted(REPO / name for name in archive.names() if name.startswith(f"{folder}/") and name.endswith(suffix))


@pytest.fixture(scope="module")
def zipped(tmp_path_factory) -> Path:
    return archive.make(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def base(zipped, tmp_path_factory) -> Path:
    """The base folder of a ComfyUI that has only the unpacked archive in it."""
    folder = tmp_path_factory.mktemp("fresh")
    with zipfile.ZipFile(zipped) as files:
        files.extractall(folder / "custom_nodes" / PACK)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home folder that nobody has used."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(base, home, comfy_root):
    """ComfyUI as it is, with the pack out of its archive; what reads tiny models comes along under another name."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "USERPROFILE"):
            patch.setenv(name, str(home))
        with Server(sys.executable, comfy_root, base, {"tiny_models_pack": SUPPORT / "tiny_models_pack"}, RANDOM_MODELS) as started:
            yield started


@pytest.fixture(scope="module")
def first_run(base, server, comfy_root) -> dict:
    """The history of the first example, as the archive has it."""
    first = base / "custom_nodes" / PACK / "workflows" / example("01").name
    prompt = to_prompt(json.loads(first.read_text()), server.get("/object_info"))
    missing = [name for name in needs.models(prompt) if not (RANDOM_MODELS / name).exists()]
    if missing:
        make_models(sys.executable, comfy_root, RANDOM_MODELS, missing)
    return server.wait(server.queue(prompt))


def test_comfy_cli_packs_what_comfyignore_leaves(zipped):
    with zipfile.ZipFile(zipped) as files:
        assert set(files.namelist()) == archive.names()


def test_the_first_example_makes_a_picture(first_run, base, server):
    (picture,) = server.pictures(first_run)
    assert Image.open(io.BytesIO(picture)).getextrema() != ((0, 0),) * 3
    assert [path.read_bytes() for path in (base / "output").rglob("*.png")] == [picture]


def test_the_log_has_no_complaint(first_run, server):
    starting, running = server.log_text().split("got prompt")
    (told,) = (line for line in starting.splitlines() if PACK in line)  # a fault would name the pack's files too
    assert re.fullmatch(r" *\d+\.\d seconds: .*", told)
    assert not re.search("traceback|error|fail|warn", running, re.IGNORECASE)


def test_every_node_is_there(server, pack):
    info = server.get("/object_info")
    assert {node for node, told in info.items() if told["python_module"] == f"custom_nodes.{PACK}"} == set(pack)


def test_examples_and_blueprints_are_offered(server):
    examples = packed("workflows", ".json")
    assert sorted(server.get("/workflow_templates")[PACK]) == sorted(path.stem for path in examples) != []
    for path in packed("workflows", ""):
        assert server.get_bytes(f"/api/workflow_templates/{PACK}/{quote(path.name)}") == path.read_bytes()
    told = [server.get(f"/global_subgraphs/{key}") for key in server.get("/global_subgraphs")]
    blueprints = {path.stem: path.read_text(encoding="utf-8") for path in packed("subgraphs", ".json")}
    assert {one["name"]: one["data"] for one in told if one["info"]["node_pack"] == f"custom_nodes.{PACK}"} == blueprints


def test_help_is_served_with_its_pictures(server):
    for path in packed("web", ""):
        assert server.get_bytes(f"/extensions/{PACK}/{path.relative_to(REPO / 'web').as_posix()}") == path.read_bytes()


def test_nothing_is_written_but_where_comfyui_writes(first_run, base, home):
    assert files(base / "custom_nodes" / PACK) == {name: (REPO / name).read_bytes() for name in archive.names()}
    assert {path.name for path in base.iterdir()} == COMFYUI_WRITES
    assert files(home) == {}
