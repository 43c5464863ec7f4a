"""Each file in workflows/: the published schema, a clean layout, a note, a thumbnail, the addresses of all models."""

import json
import re
import sys
from itertools import combinations

import jsonschema
import pytest
from PIL import Image

from ipadapter_core.files import published
from support.needs import PICTURES
from support.rig import PACK, REPO, SUPPORT, adapter_nodes, examples

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

FILES = examples()
APPS = sorted((REPO / "workflows").glob("*.app.json"))
WORKFLOWS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
SCHEMA = jsonschema.Draft202012Validator(json.loads((SUPPORT / "workflow.schema.json").read_text()))
VERSION = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
NOTES = ("Note", "MarkdownNote")
TITLE = 30  # pixels of a node's title, which stands above its position
OTHERS = {  # files that are not in the pack's own table
    "v1-5-pruned-emaonly-fp16.safetensors": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{}",
    "sd_xl_base_1.0.safetensors": "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/{}",
    "diffusion_pytorch_model.fp16.safetensors": "https://huggingface.co/Kwai-Kolors/Kolors/resolve/main/unet/{}",
    "buffalo_l.zip": "https://github.com/deepinsight/insightface/releases/download/v0.7/{}",
}
BASES = ("flux1-dev-fp8.safetensors", "sd3.5_large_fp8_scaled.safetensors")  # their addresses are left to ComfyUI's own templates
BEGIN = ("01", "02", "03", "04", "06", "07", "08")  # 05 is for faces, which need .bin files

every_example = pytest.mark.parametrize("name", WORKFLOWS)


def box(node):
    (x, y), (wide, high) = node["pos"], node["size"]
    return x, y - TITLE, x + wide, y + high


def frame(group):
    x, y, wide, high = group["bounding"]
    return x, y, x + wide, y + high


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a, b):
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


def number(name):
    return name.split()[1]


def notes(workflow):
    return [node for node in workflow["nodes"] if node["type"] in NOTES]


def test_there_are_enough_and_every_node_of_the_pack_is_in_one():
    assert len(FILES) >= 18
    assert adapter_nodes() <= {node["type"] for workflow in WORKFLOWS.values() for node in workflow["nodes"]}


def test_they_are_numbered_in_the_order_of_learning_and_found_by_their_names():
    """The gallery's search sees file names only."""
    assert [number(name) for name in WORKFLOWS] == [f"{i:02}" for i in range(1, len(WORKFLOWS) + 1)]
    assert all(re.fullmatch(r"IPAdapter \d\d - [A-Z][\w', .]+", name) for name in WORKFLOWS)
    for word in ("style", "face", "region"):
        assert sum(word in name.lower() for name in WORKFLOWS) >= 2


@every_example
def test_schema(name):
    assert [f"{list(error.absolute_path)}: {error.message}" for error in SCHEMA.iter_errors(WORKFLOWS[name])] == []


def test_the_schema_is_no_rubber_stamp():
    good = next(iter(WORKFLOWS.values()))
    node, *others = good["nodes"]
    for bad in (
        {**good, "version": 0.3},
        {**good, "nodes": [{**node, "pos": [1]}, *others]},
        {**good, "nodes": [{**node, "properties": {**node["properties"], "ver": "newest"}}, *others]},
        {**good, "links": [good["links"][0][:5]]},
        {**good, "models": [{"name": "a.safetensors"}]},
    ):
        assert not SCHEMA.is_valid(bad)


@every_example
def test_nothing_overlaps_and_links_run_from_left_to_right(name):
    """As saved; tests/browser/test_layout.py measures what is drawn."""
    workflow = WORKFLOWS[name]
    boxes, frames = {node["id"]: box(node) for node in workflow["nodes"]}, [frame(group) for group in workflow["groups"]]
    assert [pair for pair in combinations(boxes, 2) if overlap(boxes[pair[0]], boxes[pair[1]])] == []
    assert [pair for pair in combinations(frames, 2) if overlap(*pair)] == []
    outside = {node["id"] for node in notes(workflow)}
    for key, place in boxes.items():
        touched = [one for one in frames if overlap(place, one)]
        assert touched == [] if key in outside else len(touched) == 1 and inside(place, touched[0])
    assert [link for link in workflow["links"] if boxes[link[1]][0] > boxes[link[3]][0]] == []
    assert all(re.match(r"\d[ab]? \w", group["title"]) for group in workflow["groups"])


@every_example
def test_a_note_is_dark_as_those_of_the_templates_of_comfyui(name):
    (note,) = notes(WORKFLOWS[name])
    assert (note["color"], note["bgcolor"]) == ("#222", "#000"), "code and links are readable on it in both renderers"


@every_example
def test_it_runs_with_pictures_that_come_along(name):
    """Nobody has to load a picture first."""
    assert not {node["type"] for node in WORKFLOWS[name]["nodes"]} & set(PICTURES)


@every_example
def test_a_note_explains_it(name):
    (note,) = notes(WORKFLOWS[name])
    (text,) = note["widgets_values"]
    assert text.startswith("# ") and "**Try next**" in text and "**You need**" in text and len(text) > 500
    assert text.startswith(f"# {name.split(' - ', 1)[1]}\n")
    assert set(re.findall(r"\*IPAdapter (\d+)\*", text)) <= set(map(number, WORKFLOWS)), "the examples that it names are there"


@every_example
def test_nodes_say_what_pack_they_are_of(name):
    for node in WORKFLOWS[name]["nodes"]:
        ours = node["type"] in adapter_nodes()
        assert node["properties"]["Node name for S&R"] == node["type"]
        assert node["properties"]["cnr_id"] == (PACK if ours else "comfy-core")
        assert node["properties"]["ver"] == (VERSION if ours else "0.3.75")


@every_example
def test_loaders_have_the_published_addresses_and_the_note_links_them(name):
    workflow = WORKFLOWS[name]
    rows = {row.name: row for row in published.FILES}
    text = notes(workflow)[0]["widgets_values"][0]
    listed = list(workflow.get("models", []))
    for node in workflow["nodes"]:
        models = node["properties"].get("models", [])
        if set(node["widgets_values"]) & set(BASES):
            assert not models and all(f"`{name}`" in text for name in node["widgets_values"])
        elif re.search(r"Loader(?!Model)|Inspector", node["type"]) and node["type"] not in PICTURES:
            assert models, f"{node['type']} has no address"
        listed += models
    for model in listed:
        row = rows.get(model["name"])
        assert model["url"] == (row.url if row else OTHERS[model["name"]].format(model["name"]))
        assert not row or model["directory"] == row.folder
        assert model["url"] in text or model["name"] in text


@every_example
def test_the_editor_offers_every_file_for_download(name):
    """It compares the names of a node's files with the values of its widgets, and downloads no .bin. A unified loader's name none."""
    workflow = WORKFLOWS[name]
    offered = {
        model["name"] for node in workflow["nodes"] for model in node["properties"].get("models", [])
        if model["name"] in node["widgets_values"] and model["name"].endswith(".safetensors")
    }  # fmt: skip
    needed = set(re.findall(r"\[([^\]]+\.safetensors)\]", notes(workflow)[0]["widgets_values"][0]))
    by_preset = [node for node in workflow["nodes"] if node["type"].startswith(("IPAdapterUnifiedLoader", "ImagePromptLoader"))]
    assert needed == offered or by_preset
    assert not by_preset or number(name) not in BEGIN


@every_example
def test_the_editor_offers_what_the_unified_loaders_take(name):
    """Their widgets name no file, so the editor looks for their files in the workflow's own list. It downloads no .bin."""
    workflow = WORKFLOWS[name]
    unified = [node for node in workflow["nodes"] if node["type"].startswith(("IPAdapterUnifiedLoader", "ImagePromptLoader"))]
    wanted = {model["name"] for node in unified for model in node["properties"]["models"] if model["name"].endswith(".safetensors")}
    assert {model["name"] for model in workflow.get("models", [])} == wanted


@every_example
def test_thumbnail_is_a_square_picture_of_what_comes_out(name):
    path = REPO / "workflows" / f"{name}.jpg"
    assert path.stat().st_size < 60_000
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == (480, 480)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000



@pytest.mark.parametrize("path", APPS, ids=lambda path: path.stem)
def test_an_app_is_its_example_with_a_panel(path):
    """The editor opens it as a panel with these widgets and results; all else is the example, and so is its thumbnail."""
    app, example = json.loads(path.read_text(encoding="utf-8")), WORKFLOWS[path.name.removesuffix(".app.json")]
    panel = {key: app["extra"].pop(key) for key in ("linearMode", "linearData")}
    assert {**app, "id": example["id"]} == example and app["id"] != example["id"]
    assert panel["linearMode"] is True
    nodes = {node["id"]: node for node in example["nodes"]}
    inputs, outputs = panel["linearData"]["inputs"], panel["linearData"]["outputs"]
    for key, name in inputs:
        assert name in [slot["name"] for slot in nodes[key]["inputs"] if "widget" in slot and slot["link"] is None]
    assert {"picture", "text", "seed"} < {name for _, name in inputs} and any(name.endswith("weight") for _, name in inputs)
    assert [nodes[key]["type"] for key in outputs] == ["SaveImage"]
    assert path.with_suffix(".jpg").read_bytes() == (REPO / "workflows" / f"{path.name.removesuffix('.app.json')}.jpg").read_bytes()


def test_what_one_begins_with_is_there_as_apps():
    assert [number(path.name) for path in APPS] == ["01", "03", "05", "07"]
