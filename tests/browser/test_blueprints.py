"""The blueprints in subgraphs/: the server lists them, the editor's search finds them, and they do what their nodes do."""

import copy
import json

import jsonschema
import pytest

from support import comfy_cli
from support.convert import to_prompt
from support.editor import changes
from support.rig import PACK, REPO, SUPPORT, adapter_nodes
from support.rig import example as example_file

FILES = sorted((REPO / "subgraphs").glob("*.json"))
CHECKPOINT, PICTURE = ("CheckpointLoaderSimple", 0), ("IPAdapterExamplePicture", 0)  # a tuple is a link: a node's class, and the output
LOADER = dict(model=CHECKPOINT, adapter="auto", lora_strength=0.6, provider="CPU")
REFERENCE = dict(image=PICTURE, weight=1, role="everything", fit="center crop", tiles=2)
PROMPT = dict(join="side by side", method="as published", weight_over_steps="", layers="everything", start_at=0, end_at=1)
LOADED = dict(model=("ImagePromptLoader", 0), ipadapter=("ImagePromptLoader", 1), reference=("ImagePromptReference", 0))
FACES = dict(model=("IPAdapterUnifiedLoaderFaceID", 0), ipadapter=("IPAdapterUnifiedLoaderFaceID", 1))
NODES = {  # blueprint -> (an example that it is put into, in place of the pack's nodes there; the nodes that it stands for)
    "Image prompt from a picture": ("01", {
        "ImagePromptLoader": LOADER, "ImagePromptReference": REFERENCE, "ImagePrompt": {**PROMPT, **LOADED, "weight": 0.75},
    }),
    "Image prompt from a style": ("03", {
        "ImagePromptLoader": LOADER,
        "ImagePromptReference": {**REFERENCE, "role": "style"},
        "ImagePrompt": {**PROMPT, **LOADED, "weight": 1},
    }),
    "Image prompt from a face": ("05", {
        "IPAdapterUnifiedLoaderFaceID": dict(model=CHECKPOINT, preset="FACEID PLUS V2", lora_strength=0.6, provider="CPU"),
        "IPAdapterInsightFaceLoader": dict(provider="CPU", model_name="buffalo_l"),
        "IPAdapterFaceEmbeds": dict(insightface=("IPAdapterInsightFaceLoader", 0), image=PICTURE, faces="largest"),
        "ImagePromptFaceReference": dict(face_embeds=("IPAdapterFaceEmbeds", 0), weight=1, role="everything"),
        "ImagePrompt": {**PROMPT, **FACES, "reference": ("ImagePromptFaceReference", 0), "weight": 0.8},
    }),
}  # fmt: skip
ADAPTERS = adapter_nodes() - {"IPAdapterExamplePicture"} | {"CLIPVisionLoader"}  # what a blueprint stands for
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
    one('IPAdapterExamplePicture').connect(0, blueprint, 1)
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
            name: (prompt[value[0]]["class_type"], value[1]) if isinstance(value, list) else value for name, value in node["inputs"].items()
        }
        for node in prompt.values()
        if node["class_type"] in ADAPTERS | {"KSampler"}
    }


def written_out(prompt, nodes):
    """The prompt with these nodes in place of the pack's, the sampler and a preview connected to them."""
    made = {key: node for key, node in copy.deepcopy(prompt).items() if node["class_type"] not in ADAPTERS}
    keys = {node["class_type"]: key for key, node in made.items()} | {kind: kind for kind in nodes}

    def linked(value):
        return [keys[value[0]], value[1]] if isinstance(value, tuple) else value

    made |= {
        kind: {"class_type": kind, "inputs": {name: linked(value) for name, value in inputs.items()}} for kind, inputs in nodes.items()
    }
    made[keys["KSampler"]]["inputs"]["model"] = ["ImagePrompt", 0]
    if "PreviewImage" in keys:
        made[keys["PreviewImage"]]["inputs"]["images"] = ["IPAdapterFaceEmbeds", 1]
    return made


def test_there_are_three_and_the_server_lists_them(rig):
    listed = rig.server.get("/global_subgraphs")
    assert {(entry["name"], entry["info"]["node_pack"]) for entry in listed.values()} == {(name, f"custom_nodes.{PACK}") for name in NODES}
    assert {path.stem for path in FILES} == set(NODES)
    for key, entry in listed.items():
        assert json.loads(rig.server.get(f"/global_subgraphs/{key}")["data"]) == read(REPO / "subgraphs" / f"{entry['name']}.json")


@every_blueprint
def test_schema_and_addresses(path):
    blueprint = read(path)
    jsonschema.validate(blueprint, read(SUPPORT / "workflow.schema.json"), jsonschema.Draft202012Validator)
    (node,), (graph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert node["type"] == graph["id"] and graph["name"] == path.stem and blueprint["extra"]["BlueprintDescription"].endswith(".")
    assert graph["category"] == "ipadapter", "its folder in newer editors, among the blueprints"
    (note,) = (inner for inner in graph["nodes"] if inner["type"] == "MarkdownNote")
    assert (note["color"], note["bgcolor"]) == ("#222", "#000"), "code and links are readable on it in both renderers"
    examples = [inner for file in sorted((REPO / "workflows").glob("*.json")) for inner in read(file)["nodes"]]
    for inner in graph["nodes"]:
        here, there = (dict(one["properties"]) for one in (inner, next(one for one in examples if one["type"] == inner["type"])))
        models = here.pop("models", [])
        assert all(model in models for model in there.pop("models", []))  # and those for the other base
        assert here == there


def test_what_people_type_finds_one():
    """Newer editors search these words too."""
    found = {path.stem: read(path)["extra"]["BlueprintSearchAliases"] for path in FILES}
    for words in ("style reference", "reference image", "image prompt", "character", "face swap", "likeness", "ip-adapter"):
        assert any(words in aliases for aliases in found.values()), words
    assert "face swap" in found["Image prompt from a face"] and "style reference" in found["Image prompt from a style"]
    assert all(len(set(aliases)) == len(aliases) for aliases in found.values())


@every_blueprint
def test_is_opened_and_saved_without_a_difference(path, editor):
    blueprint = read(path)
    opened = editor.load(blueprint)
    del blueprint["definitions"]["subgraphs"][0]["category"]  # read from the file, for the tree, and not kept with a graph
    assert changes(blueprint, opened) == []
    assert editor.narrow() == []
    assert editor.complaints() == []


@every_blueprint
def test_is_put_in_by_the_search_and_gives_the_picture_of_its_nodes(path, rig, editor, tmp_path):
    number, nodes = NODES[path.stem]
    example = example_file(number)
    plain = written_out(rig.prompt(example), nodes)
    if rig.provide(plain):
        editor.refresh()
    editor.load(read(example))
    editor.page.evaluate(EMPTY_SPOT)
    editor.page.mouse.dblclick(800, 500)
    search = editor.page.locator(".comfy-vue-node-search-container input")
    search.fill(path.stem)
    editor.page.locator(".comfy-vue-node-search-container").get_by_text(path.stem, exact=True).first.wait_for()
    focused = editor.page.locator(".p-autocomplete-option.p-focus")
    assert focused.inner_text().split() == [*path.stem.split(), "Subgraph", "Blueprints", PACK]
    search.press("Enter")
    editor.page.wait_for_function("window.app.graph.nodes.some(node => node.isSubgraphNode())")
    editor.page.evaluate(CONNECTED, sorted(ADAPTERS))
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


def test_a_blueprint_of_before_keeps_its_nodes(rig, editor):
    """Saved in a workflow by the name that it had in version 0.1: it is told what the example with its nodes is told."""
    example = example_file("05")
    plain = rig.prompt(example)
    graph, before = read(example), read(SUPPORT / "blueprint_before.json")
    graph["definitions"] = before["definitions"]
    graph["nodes"].append({**before["nodes"][0], "id": 900, "pos": [0, 2000], "order": len(graph["nodes"])})
    editor.load(graph)
    editor.page.evaluate(CONNECTED, sorted(ADAPTERS))
    assert work(editor.prompt()) == work(plain)


def test_a_blueprint_is_no_workflow_for_the_server(rig):
    """Its one node is drawn by the editor: nothing of it is known to the server as a node."""
    assert to_prompt(read(FILES[0]), rig.info) == {}
