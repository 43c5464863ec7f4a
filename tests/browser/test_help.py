"""Help, as someone who uses ComfyUI's own editor comes upon it."""

import json

import numpy as np
from help_graphs import GRAPHS
from help_pictures import BUILD, PICTURES, shot
from PIL import Image

from support.rig import example

EXAMPLE = json.loads(example("16").read_text())
NODE = next(node["id"] for node in EXAMPLE["nodes"] if node["type"] == "IPAdapter")
SELECT = "id => { const node = window.app.graph.getNodeById(id); window.app.canvas.centerOnNode(node); window.app.canvas.selectNode(node) }"


def test_help_page_opens_in_the_panel(editor, tmp_path):
    editor.load(EXAMPLE)
    editor.page.evaluate(SELECT, NODE)
    editor.page.get_by_test_id("info-button").click()
    panel = editor.page.locator(".node-help-content")
    panel.get_by_role("heading", name="When something goes wrong").wait_for(timeout=30_000)
    panel.get_by_role("img").evaluate("picture => picture.decode()")
    editor.page.screenshot(path=tmp_path / "help.png")
    picture = panel.get_by_role("img").evaluate("picture => [picture.alt, picture.naturalWidth, picture.getBoundingClientRect().width]")
    assert picture[0] == "IPAdapter in the editor."
    assert 0.9 * picture[1] <= picture[2] <= panel.bounding_box()["width"], "shown as large as it is, so that it can be read"
    item = panel.get_by_role("listitem").filter(has=panel.page.locator("strong", has_text="attn_mask"))
    assert item.count() == 1 and item.bounding_box()["width"] > 0.75 * panel.bounding_box()["width"]
    assert "A picture as a prompt" in panel.inner_text()


def test_pictures_can_be_made_anew(editor):
    """Every graph can be built, and one that runs looks as on its page but for what fonts differ."""
    for graph in GRAPHS.values():
        editor.page.evaluate(BUILD, graph)
    editor.page.evaluate("window.app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
    _, nodes = shot(editor, "IPAdapterPlotWeights", GRAPHS["IPAdapterPlotWeights"])
    made = nodes["IPAdapterPlotWeights"]
    page = Image.open(PICTURES / "IPAdapterPlotWeights.webp")
    assert abs(made.width / made.height - page.width / page.height) < 0.1
    there, here = (np.asarray(image.convert("L").resize((86, 43)), dtype=float) for image in (page, made))
    assert np.corrcoef(there.flat, here.flat)[0, 1] > 0.8
