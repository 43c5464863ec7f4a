"""The blueprints in subgraphs/: the server lists them, the editor's search finds them, and they do what their nodes do."""

import json

import jsonschema
import pytest

from support import comfy_cli
from support.convert import to_prompt
from support.editor import changes
from support.rig import PACK, REPO, SUPPORT, adapter_nodes

FILES = sorted((REPO / "subgraphs").glob("*.json"))
SAME = {"Image prompt": "simple", "Style from picture": "style", "Face": "face_id"}  # the example with the same nodes and settings
EMPTY_SPOT = """async () => {
    window.app.canvas.ds.offset = [9000, 9000]
    window.app.canvas.setDirty(true, true)
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
}"""
CONNECTED = """pack => {
    const graph = window.app.graph
    for (const node of graph.nodes.filter(node => pack.includes(node.type))) graph.remove(node)
    const one = type => graph.nodes.find(node => node.type === type)
    const [blueprint] = graph.nodes.filter(node => node.isSubgraphNode())
    one('CheckpointLoaderSimple').connect(0, blueprint, 0)
    one('LoadImage').connect(0, blueprint, 1)
    blueprint.connect(0, one('KSampler'), 0)
    if (one('PreviewImage')) blueprint.connect(1, one('PreviewImage'), 0)
}"""
UNPACKED = "window.app.graph.unpackSubgraph(window.app.graph.nodes.find(node => node.isSubgraphNode()))"

every_blueprint = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def work(prompt):
    """What the pack's and the sampler's nodes are told, whatever the numbers of the nodes."""
    return {
        node["class_type"]: {
            name: prompt[value[0]]["class_type"] if isinstance(value, list) else value for name, value in node["inputs"].items()
        }
        for node in prompt.values()
        if node["class_type"] in adapter_nodes() | {"KSampler"}
    }


def test_there_are_three_and_the_server_lists_them(rig):
    listed = rig.server.get("/global_subgraphs")
    assert {(entry["name"], entry["info"]["node_pack"]) for entry in listed.values()} == {(name, f"custom_nodes.{PACK}") for name in SAME}
    assert {path.stem for path in FILES} == set(SAME)
    for key, entry in listed.items():
        assert json.loads(rig.server.get(f"/global_subgraphs/{key}")["data"]) == read(REPO / "subgraphs" / f"{entry['name']}.json")


@every_blueprint
def test_schema_and_addresses(path):
    blueprint = read(path)
    jsonschema.validate(blueprint, read(SUPPORT / "workflow.schema.json"), jsonschema.Draft202012Validator)
    (node,), (graph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert node["type"] == graph["id"] and graph["name"] == path.stem and blueprint["extra"]["BlueprintDescription"].endswith(".")
    examples = {inner["type"]: inner["properties"] for inner in read(REPO / "workflows" / f"{SAME[path.stem]}.json")["nodes"]}
    for inner in graph["nodes"]:
        here, there = dict(inner["properties"]), dict(examples[inner["type"]])
        models = here.pop("models", [])
        assert all(model in models for model in there.pop("models", []))  # and those for the other base
        assert here == there


@every_blueprint
def test_is_opened_and_saved_without_a_difference(path, editor):
    blueprint = read(path)
    assert changes(blueprint, editor.load(blueprint)) == []
    assert editor.narrow() == []
    assert editor.complaints() == []


@every_blueprint
def test_is_put_in_by_the_search_and_gives_the_picture_of_its_nodes(path, rig, editor, tmp_path):
    example = REPO / "workflows" / f"{SAME[path.stem]}.json"
    plain = rig.prompt(example)
    editor.refresh()
    editor.load(read(example))
    editor.page.evaluate(EMPTY_SPOT)
    editor.page.mouse.dblclick(800, 500)
    search = editor.page.locator(".comfy-vue-node-search-container input")
    search.fill(path.stem)
    editor.page.locator(".comfy-vue-node-search-container").get_by_text(path.stem, exact=True).first.wait_for()
    focused = editor.page.locator(".p-autocomplete-option.p-focus")
    if "Subgraph Blueprints" not in focused.inner_text():  # the node of that name, whose capitals alone differ, comes first
        search.press("ArrowDown")
    assert focused.inner_text().split() == [*path.stem.split(), "Subgraph", "Blueprints", PACK]
    search.press("Enter")
    editor.page.wait_for_function("window.app.graph.nodes.some(node => node.isSubgraphNode())")
    editor.page.evaluate(CONNECTED, sorted(adapter_nodes()))
    prompt = editor.prompt()
    assert work(prompt) == work(plain)
    (tmp_path / "object_info.json").write_bytes(rig.server.get_bytes("/object_info"))
    (tmp_path / "with_blueprint.json").write_text(json.dumps(editor.saved()))
    answer = comfy_cli.validate(tmp_path / "with_blueprint.json", tmp_path / "object_info.json")
    assert answer["ok"] and answer["data"]["errors"] == answer["data"]["warnings"] == [], answer
    editor.page.evaluate(UNPACKED)
    assert work(editor.prompt()) == work(plain)
    for node in (*prompt.values(), *plain.values()):
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 3
    assert rig.server.run(prompt) == rig.server.run(plain)


def test_a_blueprint_is_no_workflow_for_the_server(rig):
    """Its one node is drawn by the editor: nothing of it is known to the server as a node."""
    assert to_prompt(read(FILES[0]), rig.info) == {}
