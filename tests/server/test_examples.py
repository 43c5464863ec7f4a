"""comfy-cli accepts every example for the running server; the examples that save or look do so."""

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
from PIL import Image
from safetensors import safe_open

from support import comfy_cli
from support.convert import to_prompt
from support.rig import PACK, REPO, example

FILES = sorted((REPO / "workflows").glob("*.json"))
BLUEPRINTS = sorted((REPO / "subgraphs").glob("*.json"))


@pytest.fixture(scope="module")
def validate(rig, tmp_path_factory):
    """path -> the answer of `comfy workflow validate`, asked against what the server offers with all models in place."""
    rig.provide(*(to_prompt(json.loads(path.read_text(encoding="utf-8")), rig.info) for path in FILES))
    info = tmp_path_factory.mktemp("home") / "object_info.json"
    info.write_bytes(rig.server.get_bytes("/object_info"))
    return lambda path: comfy_cli.validate(path, info)


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


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda p: p.stem)
def test_comfy_cli_misses_nothing_in_a_blueprint_but_an_output(path, validate):
    """A blueprint is a part of a graph; tests/browser/test_blueprints.py has it checked inside one."""
    data = validate(path)["data"]
    (graph,) = json.loads(path.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    assert [error["code"] for error in data["errors"]] == ["prompt_no_outputs"] and data["warnings"] == []
    assert data["converted_node_count"] == sum(node["type"] != "MarkdownNote" for node in graph["nodes"])


def test_comfy_cli_is_no_rubber_stamp(validate, tmp_path):
    workflow = json.loads(example("01").read_text(encoding="utf-8"))
    loader = next(node for node in workflow["nodes"] if node["type"] == "IPAdapterModelLoader")
    loader["widgets_values"] = ["no such file"]
    (tmp_path / "broken.json").write_text(json.dumps(workflow))
    assert not validate(tmp_path / "broken.json")["ok"]


def test_the_template_browser_offers_each_with_its_thumbnail(rig):
    assert set(rig.server.get("/workflow_templates")[PACK]) == {path.stem for path in FILES}
    for path in FILES:
        for file in (path, path.with_suffix(".jpg")):
            assert rig.server.get_bytes(f"/api/workflow_templates/{PACK}/{quote(file.name)}") == file.read_bytes()


def test_embeds_are_saved(rig):
    rig.provide(rig.prompt(example("19")))  # which runs the one that saves
    shapes = []
    for name in ("ipadapter_reference_00001.ipadpt", "ipadapter_reference_negative_00001.ipadpt"):
        with safe_open(rig.base / "output" / name, "pt") as file:
            shapes.append(file.get_tensor("embeds").shape)
    assert shapes == [(1, 257, 1280)] * 2  # one blend of two pictures, as ViT-H gives it to a plus adapter


def test_look_inside_shows_file_reference_and_weights(rig):
    prompt = rig.prompt(example("17"))
    entry = rig.server.wait(rig.server.queue(prompt))
    outputs = {prompt[key]["class_type"]: output for key, output in entry["outputs"].items()}
    (text,) = outputs["PreviewAny"]["text"]
    assert "SD1.5" in text and "ViT-H" in text and "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors" in text
    assert len(outputs["IPAdapterReferenceView"]["images"]) == len(outputs["IPAdapterPlotModel"]["images"]) == 1
    for picture in rig.server.pictures(entry):
        assert len(Image.open(io.BytesIO(picture)).convert("RGB").getcolors(1 << 24) or []) > 20


def test_maps_are_drawn_anew_from_a_sampling_that_comfyui_still_holds(rig):
    """Another view, layers and scale ask for no second sampling; the record is still filled."""
    prompt = rig.prompt(example("16"))
    key = {node["class_type"]: key for key, node in prompt.items()}
    first = rig.server.wait(rig.server.queue(prompt))
    assert "ip-adapter-plus_sd15" in first["outputs"][key["ImagePromptLoader"]]["text"][0]
    assert "mean: " in first["outputs"][key["ImagePromptLikeness"]]["text"][0]
    prompt[key["ImagePromptAttention"]]["inputs"].update(view="side by side", layers="down")
    again = rig.server.wait(rig.server.queue(prompt))
    cached = next(data["nodes"] for kind, data in again["status"]["messages"] if kind == "execution_cached")
    assert {key["KSampler"], key["WatchImagePrompt"]} <= set(cached)
    maps = [entry["outputs"][key["ImagePromptAttention"]] for entry in (first, again)]
    assert all(one["text"][0].startswith("1: ip-adapter-plus_sd15: mean ") for one in maps) and maps[0]["text"] != maps[1]["text"]
    pictures = [Image.open(io.BytesIO(rig.server.pictures(entry)[0])) for entry in (first, again)]
    assert pictures[1].width == 2 * pictures[0].width
