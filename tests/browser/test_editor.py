"""Workflows in ComfyUI's own editor in a real Chromium."""

import json

import pytest
from check_workflows import check

from support.convert import inputs_of, to_prompt
from support.editor import PICTURES_SHOWN, changes
from support.rig import example, examples

WORKFLOWS = examples()
SIMPLE = example("01")
SHOWN = "id => window.app.graph.getNodeById(id).imgs?.[0]?.naturalWidth"


def known(prompt, info):
    """The prompt without what the editor adds for itself: PreviewAny's text field is no input of the node."""
    return {
        key: {**node, "inputs": {name: value for name, value in node["inputs"].items() if name in inputs_of(info[node["class_type"]])}}
        for key, node in prompt.items()
    }


def shortened(workflow):
    """Two steps and a small picture, for a transformer's 57 blocks."""
    for node in workflow["nodes"]:
        if node["type"] == "EmptySD3LatentImage":
            node["widgets_values"][:2] = [128, 128]
        elif node["type"] == "KSampler":
            node["widgets_values"][2] = 2
    return workflow


@pytest.mark.parametrize(("number", "width"), [("01", 512), ("34", 128)])
def test_a_simple_workflow_is_run_from_the_editor_and_shows_its_picture(number, width, rig, editor, tmp_path):
    workflow = json.loads(example(number).read_text())
    workflow = workflow if number == "01" else shortened(workflow)
    assert editor.unknown_types(workflow) == []
    editor.load(workflow)
    assert editor.complaints() == []  # nothing about missing nodes or models
    saving = next(node["id"] for node in workflow["nodes"] if node["type"] == "SaveImage")
    before = set(rig.server.get("/history"))
    editor.page.get_by_test_id("queue-button").click()
    editor.page.wait_for_function(f"({SHOWN})({saving}) === {width}", timeout=300_000)
    editor.page.screenshot(path=tmp_path / f"{number}.png")
    finished = [entry for key, entry in rig.server.get("/history").items() if key not in before]
    assert [entry["status"]["status_str"] for entry in finished] == ["success"]
    assert len(rig.server.pictures(finished[0])) == 1


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflow_is_opened_and_saved_without_a_difference(path, rig, editor):
    """No dialog and no alert either; and what the editor would send is what the tests without a browser run."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    editor.load(workflow)
    editor.page.wait_for_function(PICTURES_SHOWN)
    assert changes(workflow, editor.saved()) == []
    assert editor.narrow() == []
    assert editor.complaints() == []
    assert known(editor.prompt(), rig.info) == to_prompt(workflow, rig.info)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_api_format_keeps_everything_in_the_editor(path, rig, editor, tmp_path):
    saved = tmp_path / path.name
    saved.write_text(json.dumps(rig.prompt(path)))
    assert check(saved, rig, editor, run=False) == []


def test_losses_are_noticed(rig, editor, tmp_path):
    """The check is no rubber stamp: an unknown node, a link to nowhere and a value too many are each reported."""
    workflow = json.loads(SIMPLE.read_text())
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({**workflow, "nodes": [{**node, "type": f"No{node['type']}"} for node in workflow["nodes"]]}))
    assert len(check(broken, rig, editor, run=False)) == len({node["type"] for node in workflow["nodes"]})
    sampler = next(node for node in workflow["nodes"] if node["type"] == "KSampler")
    sampler["widgets_values"].append("one too many")
    broken.write_text(json.dumps(workflow))
    assert any("value lost" in problem for problem in check(broken, rig, editor, run=False))
    assert any("widgets_values" in change for change in changes(workflow, editor.saved()))


def test_narrow_nodes_are_noticed(editor):
    """A node that is opened as wide as its texts are here would grow with a wider font."""
    workflow = json.loads(SIMPLE.read_text())
    loader = next(node for node in workflow["nodes"] if node["type"] == "IPAdapterAdvanced")
    loader["size"][0] = 1
    loader["size"] = next(node["size"] for node in editor.load(workflow)["nodes"] if node["id"] == loader["id"])
    assert changes(workflow, editor.load(workflow)) == []
    (narrow,) = editor.narrow()
    assert narrow.startswith(f"node {loader['id']} IPAdapterAdvanced: ")


def test_missing_models_are_told_with_their_address(editor):
    """The files that the loaders' widgets name are offered when they are not there."""
    workflow = json.loads(SIMPLE.read_text())
    files = [model for node in workflow["nodes"] for model in node["properties"].get("models", [])]
    for model in files:
        for node in workflow["nodes"]:
            values = node["widgets_values"]
            node["widgets_values"] = [f"not-here-{value}" if value == model["name"] else value for value in values]
        model["name"] = f"not-here-{model['name']}"
    editor.load(workflow)
    editor.page.locator(".p-dialog").wait_for()
    (told,) = editor.complaints()
    assert len(files) == 3 and all(f"{model['directory']} / {model['name']}" in told for model in files)
