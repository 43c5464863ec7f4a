"""The three editors in which the pack's scripts are tested are what they are called."""

import json
from importlib.metadata import version

from support.rig import example

SIMPLE = json.loads(example("01").read_text())


def test_each_editor_is_the_one_it_is_called(any_editor, request):
    name = request.node.callspec.params["any_editor"]
    installed = any_editor.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__") == version("comfyui_frontend_package")
    assert installed == (name == "installed")
    any_editor.load(SIMPLE)
    any_editor.page.wait_for_function("window.app.graph.nodes.length")
    any_editor.page.wait_for_timeout(500)  # the page draws its nodes a moment later
    drawn = any_editor.page.locator("[data-node-id]").count()
    assert drawn == (len(SIMPLE["nodes"]) if name.endswith("Nodes 2.0") else 0)
