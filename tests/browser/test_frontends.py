"""What the pack adds to the editor, in the three editors in which it has to work."""

import json
from importlib.metadata import version

from support.rig import REPO

SIMPLE = json.loads((REPO / "workflows" / "simple.json").read_text())
UNREADABLE = """() => {
    const { app, LiteGraph } = window
    app.graph.clear()
    const [weights, plot] = ['IPAdapterWeights', 'IPAdapterPlotWeights'].map(type => LiteGraph.createNode(type))
    for (const node of [weights, plot]) app.graph.add(node)
    weights.widgets.find(widget => widget.name === 'weights').value = 'one, two'
    weights.connect(0, plot, 0)
}"""
SENTENCE = "weights cannot be read: 'one, two'. Write numbers with commas between, such as 1.0, 0.5."


def test_each_editor_is_the_one_it_is_called(any_editor, request):
    name = request.node.callspec.params["any_editor"]
    installed = any_editor.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__") == version("comfyui_frontend_package")
    assert installed == (name == "installed")
    any_editor.load(SIMPLE)
    any_editor.page.wait_for_timeout(500)  # the page draws its nodes a moment later
    drawn = any_editor.page.locator("[data-node-id]").count()
    assert drawn == (len(SIMPLE["nodes"]) if name.endswith("Nodes 2.0") else 0)


def test_an_error_is_told_in_its_sentence(any_editor):
    page = any_editor.page
    page.evaluate(UNREADABLE)
    page.get_by_test_id("queue-button").click()
    toast = page.locator(".p-toast-message-error, [data-testid=toast]").filter(has_text=SENTENCE)
    toast.wait_for(timeout=60_000)
    assert "IPAdapter Weights" in toast.inner_text() and "/" not in toast.inner_text()
    page.keyboard.press("Escape")  # the dialog of the installed one
