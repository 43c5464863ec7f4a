"""The nodes that show, in the real editor: pictures and text appear on the node."""

import json

from support.rig import example

BUILD = """() => {
    const { app, LiteGraph } = window
    app.graph.clear()
    const make = (type, x, y) => { const node = LiteGraph.createNode(type); node.pos = [x, y]; app.graph.add(node); return node }
    const picture = make('LoadImage', 100, 100), view = make('IPAdapterReferenceView', 500, 100)
    const inspector = make('IPAdapterInspector', 900, 100), loader = make('IPAdapterModelLoader', 100, 500)
    const encoder = make('CLIPVisionLoader', 100, 700), encode = make('IPAdapterEncoder', 500, 500)
    const save = make('IPAdapterSaveEmbeds', 900, 500)
    for (const node of [inspector, loader]) node.widgets[0].value = ADAPTER
    encoder.widgets[0].value = ENCODER
    const join = (from, to, input) => from.connect(0, to, to.findInputSlot(input))
    join(picture, view, 'image'), join(picture, encode, 'image'), join(loader, encode, 'ipadapter')
    join(encoder, encode, 'clip_vision'), join(encode, save, 'embeds')
    return [view.id, inspector.id, save.id]
}"""
SHOWN = "id => window.app.graph.getNodeById(id).imgs?.[0]?.naturalWidth > 0"
TEXT = "([id, words]) => window.app.graph.getNodeById(id).widgets.map(widget => String(widget.value)).find(text => text.includes(words))"


def test_pictures_reports_and_file_names_appear_on_their_nodes(rig, editor):
    prompt = rig.prompt(example("10"))
    values = {node["class_type"]: node["inputs"] for node in prompt.values()}
    build = BUILD.replace("ADAPTER", json.dumps(values["IPAdapterModelLoader"]["ipadapter_file"]))
    view, inspector, save = editor.page.evaluate(build.replace("ENCODER", json.dumps(values["CLIPVisionLoader"]["clip_name"])))
    editor.page.get_by_test_id("queue-button").click()
    editor.page.wait_for_function(f"({SHOWN})({view})", timeout=60_000)
    report = editor.page.wait_for_function(TEXT, arg=[inspector, "is: "], timeout=60_000).json_value()
    assert "for models: SD1.5" in report and "preset: " in report
    saved = editor.page.wait_for_function(TEXT, arg=[save, ".ipadpt"], timeout=60_000).json_value()
    assert (rig.base / "output" / saved).is_file()
