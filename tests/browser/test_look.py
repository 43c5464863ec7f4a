"""The nodes that show, in the real editor: pictures and text appear on the node."""

import pytest

from support.editor import Editor, chromium
from support.rig import REPO

BUILD = """() => {
    const { app, LiteGraph } = window
    app.graph.clear()
    const make = (type, x, y) => { const node = LiteGraph.createNode(type); node.pos = [x, y]; app.graph.add(node); return node }
    const picture = make('LoadImage', 100, 100), view = make('IPAdapterReferenceView', 500, 100)
    const inspector = make('IPAdapterInspector', 900, 100)
    picture.connect(0, view, 0)
    return [view.id, inspector.id]
}"""
SHOWN = "id => window.app.graph.getNodeById(id).imgs?.[0]?.naturalWidth > 0"
TEXT = "id => window.app.graph.getNodeById(id).widgets.map(widget => String(widget.value)).find(value => value.includes('is: '))"


@pytest.fixture
def editor(rig):
    rig.prompt(REPO / "workflows" / "simple.json")  # so that there is an adapter file to look at
    with chromium() as page:
        yield Editor(page, rig.server.url)


def test_a_view_and_a_report_appear_on_their_nodes(editor):
    editor.open()
    view, inspector = editor.page.evaluate(BUILD)
    editor.page.get_by_test_id("queue-button").click()
    editor.page.wait_for_function(f"({SHOWN})({view}) && ({TEXT})({inspector})", timeout=60_000)
    text = editor.page.evaluate(TEXT, inspector)
    assert "for models: SD1.5" in text and "preset: " in text
