"""comfy-cli accepts every example for the running server; the examples that save or look do so."""

import io
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from support.convert import to_prompt
from support.rig import PACK, REPO

FILES = sorted((REPO / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def validate(rig, tmp_path_factory):
    """path -> the answer of `comfy workflow validate`, asked against what the server offers with all models in place."""
    rig.provide(*(to_prompt(json.loads(path.read_text(encoding="utf-8")), rig.info) for path in FILES))
    home = tmp_path_factory.mktemp("home")
    info = home / "object_info.json"
    info.write_bytes(rig.server.get_bytes("/object_info"))
    program = shutil.which("comfy", path=str(Path(sys.executable).parent))
    assert program, "comfy-cli is in tests/requirements.txt"
    environment = {**os.environ, "HOME": str(home), "DO_NOT_TRACK": "1"}

    def run(path):
        command = [program, "--json", "workflow", "validate", "--workflow", path, "--input", info]
        answer = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, stdin=subprocess.DEVNULL)
        return json.loads(answer.stdout)

    return run


@pytest.fixture(scope="module")
def answers(validate):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(FILES, pool.map(validate, FILES), strict=True))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_comfy_cli_finds_nothing_to_complain_about(path, answers):
    answer = answers[path]
    workflow = json.loads(path.read_text(encoding="utf-8"))
    assert answer["ok"] and answer["data"]["valid"], answer
    assert answer["data"]["errors"] == answer["data"]["warnings"] == []
    assert answer["data"]["converted_node_count"] == sum(node["type"] != "MarkdownNote" for node in workflow["nodes"])


def test_comfy_cli_is_no_rubber_stamp(validate, tmp_path):
    workflow = json.loads((REPO / "workflows" / "simple.json").read_text(encoding="utf-8"))
    loader = next(node for node in workflow["nodes"] if node["type"] == "IPAdapterUnifiedLoader")
    loader["widgets_values"] = ["no such preset"]
    (tmp_path / "broken.json").write_text(json.dumps(workflow))
    assert not validate(tmp_path / "broken.json")["ok"]


def test_the_template_browser_offers_each_with_its_thumbnail(rig):
    assert set(rig.server.get("/workflow_templates")[PACK]) == {path.stem for path in FILES}
    for path in FILES:
        for file in (path, path.with_suffix(".jpg")):
            assert rig.server.get_bytes(f"/api/workflow_templates/{PACK}/{file.name}") == file.read_bytes()


def test_embeds_are_saved(rig):
    rig.provide(rig.prompt(REPO / "workflows" / "embeds_load.json"))  # which runs embeds_save
    shapes = []
    for name in ("ipadapter_reference_00001.ipadpt", "ipadapter_reference_negative_00001.ipadpt"):
        with safe_open(rig.base / "output" / name, "pt") as file:
            shapes.append(file.get_tensor("embeds").shape)
    assert shapes == [(1, 257, 1280)] * 2  # one blend of two pictures, as ViT-H gives it to a plus adapter


def test_look_inside_shows_file_reference_and_weights(rig):
    prompt = rig.prompt(REPO / "workflows" / "look_inside.json")
    entry = rig.server.wait(rig.server.queue(prompt))
    outputs = {prompt[key]["class_type"]: output for key, output in entry["outputs"].items()}
    (text,) = outputs["PreviewAny"]["text"]
    assert "SD1.5" in text and "ViT-H" in text and "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors" in text
    assert len(outputs["IPAdapterReferenceView"]["images"]) == len(outputs["IPAdapterPlotModel"]["images"]) == 1
    for picture in rig.server.pictures(entry):
        assert len(Image.open(io.BytesIO(picture)).convert("RGB").getcolors(1 << 24) or []) > 20
