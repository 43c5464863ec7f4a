"""What the pack adds to the editor, in the three editors in which it has to work."""

import json
from importlib.metadata import version

import pytest
from playwright.sync_api import TimeoutError

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.weights.layer_weights import shares_of
from support.rig import adapter_nodes, example

SIMPLE = json.loads(example("01").read_text())
ALONE = """type => {
    const { app, LiteGraph } = window, node = LiteGraph.createNode(type)
    app.graph.clear()
    node.pos = [100, 100]
    app.graph.add(node)
    Object.assign(app.canvas.ds, { scale: 1, offset: [200, 0] })
    app.canvas.setDirty(true, true)
    return node.id
}"""
UNREADABLE = """() => {
    const { app, LiteGraph } = window
    app.graph.clear()
    const [weights, plot] = ['IPAdapterWeights', 'IPAdapterPlotWeights'].map(type => LiteGraph.createNode(type))
    for (const node of [weights, plot]) app.graph.add(node)
    weights.widgets.find(widget => widget.name === 'weights').value = 'one, two'
    weights.connect(0, plot, 0)
}"""
NO_TEXTS = """() => {
    for (const widget of window.app.graph.nodes[0].widgets ?? []) if (typeof widget.value === 'string') widget.value = ''
    window.app.canvas.setDirty(true, true)
}"""
SENTENCE = "weights cannot be read: 'one, two'. Write numbers with commas between, such as 1.0, 0.5."
SLIDERS = """() => Object.fromEntries(window.app.graph.nodes[0].widgets.filter(widget => widget.type === 'slider')
    .map(widget => [widget.name, widget.label?.startsWith('(') ? null : widget.value]))"""
LAYERS = "window.app.graph.nodes[0].widgets.find(widget => widget.name === 'layers').value"
CURVE = """value => {
    const widget = window.app.graph.nodes[0].widgets.find(widget => widget.name === 'curve')
    if (value) widget.value = value
    return widget?.value ?? null
}"""
WRITE = """text => {
    const widget = window.app.graph.nodes[0].widgets.find(widget => widget.name === 'layers')
    widget.value = text
    widget.callback(text)
}"""
SPOT = """([name, share]) => {  // on the canvas, of a slider that stands at `share` of its way
    const [node] = window.app.graph.nodes, { ds, canvas } = window.app.canvas, rect = canvas.getBoundingClientRect()
    const spot = [15 + share * (node.size[0] - 30), node.widgets.find(widget => widget.name === name).y + 10]
    return spot.map((at, i) => (at + node.pos[i] + ds.offset[i]) * ds.scale + [rect.left, rect.top][i])
}"""
TEXTS = (
    "everything", "", "up: 0.5", "mid: 0", "1/4: 0.3, up 1/4: 0.7", "UP  1/2: 0.5\nmiddle: 2", "everything: 0.4, down: 1.5",
    "up: 2, up 1: 0.5", "up 1: 0.5, up: 0.25", "style", "layout, up: 0.5", "style: 1.2", "layout: 0.5, everything: 1", "up 1.0: 0.5",
    "1/8: 0.5", "linear, down 1/1: 0", '{"up": {"block_1": [0.0, 1.0, 0.0]}}', "weak input, middle: 0.5",
)  # fmt: skip
NAMES = """const node = window.app.graph.nodes[0], shown = slot => slot.label || slot.localized_name || slot.name
    const unnamed = widget => widget.hidden || widget.advanced || widget.options.advanced || widget.element
    const widgets = (node.widgets ?? []).filter(widget => !unnamed(widget)).map(widget => widget.label || widget.name)
    const slots = [...node.inputs.filter(input => !input.widget), ...node.outputs].map(shown)
    const names = [...(widgets.length ? [node.title] : []), ...widgets, ...slots]"""
CUT_ON_CANVAS = f"""() => {{
    {NAMES}
    const texts = new Set(), drawing = CanvasRenderingContext2D.prototype, draw = drawing.fillText
    drawing.fillText = function (text, ...where) {{ texts.add(text); return draw.call(this, text, ...where) }}
    window.app.canvas.draw(true, true)
    drawing.fillText = draw
    return names.filter(name => !texts.has(name))
}}"""
CUT_ON_PAGE = f"""() => {{
    {NAMES}
    const whole = one => one.scrollWidth <= one.clientWidth || getComputedStyle(one).overflowX === 'visible'
    const places = [...document.querySelectorAll('[data-node-id] *')].filter(one => !one.childElementCount)
    return names.filter(name => !places.some(one => one.textContent.trim() === name && whole(one) && whole(one.parentElement)))
}}"""
ONE_STEP = """() => {
    const { nodes } = window.app.graph
    nodes.find(node => node.type === 'KSampler').widgets.find(widget => widget.name === 'steps').value = 1
    return nodes.filter(node => node.type === 'ImagePromptReference').map(node => node.id)
}"""
SEEN = """id => {
    const frame = window.app.graph.getNodeById(id).widgets.find(widget => widget.name === 'seen')?.element
    return frame?.offsetHeight > 0 && frame.querySelector('img')?.naturalHeight === 224
}"""
ON_CANVAS = "id => window.app.graph.getNodeById(id).imgs?.[0]?.naturalHeight"
ON_PAGE = "id => document.querySelector(`[data-node-id='${id}'] img`)?.naturalHeight"


def mouse_along(editor, name, to):
    """Drag a slider of Image Prompt with the mouse to a share of its way; returns where it stands then."""
    page = editor.page
    if editor.nodes_2:
        track = page.locator(f'[aria-label="{name}"]').first
        track.wait_for()
        box = track.bounding_box()
        start, end = ((box["x"] + share * box["width"], box["y"] + box["height"] / 2) for share in (0.5, to))
    else:
        start, end = (page.evaluate(SPOT, [name, share]) for share in (0.5, to))
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=5)
    page.mouse.up()
    return page.evaluate(SLIDERS)[name]


def unfold(editor):
    if editor.nodes_2:
        editor.page.get_by_text("Show advanced inputs").click()
    else:
        editor.page.evaluate("window.app.graph.nodes[0].toggleAdvanced()")
        editor.page.wait_for_timeout(500)  # the canvas puts them in place as it draws


def test_each_editor_is_the_one_it_is_called(any_editor, request):
    name = request.node.callspec.params["any_editor"]
    installed = any_editor.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__") == version("comfyui_frontend_package")
    assert installed == (name == "installed")
    any_editor.load(SIMPLE)
    any_editor.page.wait_for_function("window.app.graph.nodes.length")
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


def test_a_curve_is_drawn_where_the_editor_can(any_editor, request):
    page, newest = any_editor.page, request.node.callspec.params["any_editor"] != "installed"
    page.evaluate(ALONE, "ImagePrompt")
    page.wait_for_function(f"Object.keys(({SLIDERS})()).length === 7")
    assert page.evaluate(CURVE, None) == ({"points": [[0, 1], [1, 1]], "interpolation": "linear"} if newest else None)
    assert page.evaluate("window.app.graph.nodes[0].inputs.find(input => input.name === 'curve').type") == "CURVE,FLOAT"
    if newest:
        drawn = {"points": [[0, 1], [0.4, 0.2], [1, 0]], "interpolation": "linear"}
        page.evaluate(CURVE, drawn)
        (prompt,) = any_editor.prompt().values()
        assert prompt["inputs"]["curve"]["__value__"] == drawn
        assert any_editor.saved()["nodes"][0]["widgets_values"][7] == drawn


def test_a_slider_writes_the_text_and_the_text_moves_the_sliders(any_editor):
    page = any_editor.page
    page.evaluate(ALONE, "ImagePrompt")
    page.wait_for_function(f"Object.keys(({SLIDERS})()).length === 7")
    unfold(any_editor)
    stands = mouse_along(any_editor, "up 1/4", 0.8)
    assert 1.2 < stands < 1.9 and stands == pytest.approx(round(stands * 20) / 20)
    assert page.evaluate(LAYERS) == f"everything, up 1/4: {stands:g}"
    (prompt,) = any_editor.prompt().values()
    assert prompt["inputs"]["layers"] == f"everything, up 1/4: {stands:g}" and "up 1/4" not in prompt["inputs"]
    saved = any_editor.saved()
    values = saved["nodes"][0]["widgets_values"]
    assert len(values) == 7 + (page.evaluate(CURVE, None) is not None) and values[4] == page.evaluate(LAYERS)
    if any_editor.nodes_2:
        page.locator("[data-node-id]").get_by_role("textbox", name="layers").fill("layout, up: 0.5, middle: 0")
    else:
        page.mouse.dblclick(*page.evaluate(SPOT, ["layers", 0.7]))
        page.locator(".graphdialog input").fill("layout, up: 0.5, middle: 0")
        page.keyboard.press("Enter")
    ups = {"up 1/4": 0.5, "up 1/2": 0.5, "up 1/1": 0.5}
    typed = {"down 1/1": None, "down 1/2": None, "down 1/4": None, "middle": 0, **ups}
    assert page.evaluate(SLIDERS) == typed
    stands = mouse_along(any_editor, "down 1/2", 0.3)
    assert page.evaluate(LAYERS) == f"layout, up: 0.5, middle: 0, down 1/2: {stands:g}"
    any_editor.load(saved)
    page.wait_for_function(f"({SLIDERS})()['down 1/2'] === 1")
    scales = '{"up": {"block_1": 0.5}}'
    page.evaluate(WRITE, scales)
    assert set(page.evaluate(SLIDERS).values()) == {None}
    mouse_along(any_editor, "up 1/4", 0.9)
    assert page.evaluate(LAYERS) == scales


def test_sliders_stand_where_the_layers_do(any_editor):
    """As the text is read for a model, of whichever base: a slider that says a number says that of all its layers."""
    page = any_editor.page
    page.evaluate(ALONE, "ImagePrompt")
    page.wait_for_function(f"Object.keys(({SLIDERS})()).length === 7")
    compared = 0
    for text in TEXTS:
        page.evaluate(WRITE, text)
        told = page.evaluate(SLIDERS)
        assert len(told) == 7
        for base in ("SD1.5", "SDXL"):
            for slider, number in told.items():
                try:
                    shares, block = shares_of(base, text), shares_of(base, f"everything: 0, {slider}: 1")
                except IPAdapterError:
                    continue  # the base has no such block, which the text or the slider names
                if number is not None:
                    assert {shares.get(t, 0) for t, on in block.items() if on} == {number}, (text, base, slider)
                    compared += 1
    assert compared > 100


def run_in(rig, editor, number):
    """Open an example and run one step of it; gives the ids of its reference nodes."""
    rig.server.post("/free", {"free_memory": True})  # else what has run in another editor is not run again, and shows nothing here
    editor.load(json.loads(example(number).read_text()))
    references = editor.page.evaluate(ONE_STEP)
    editor.page.get_by_test_id("queue-button").click()
    return references


def test_references_show_what_the_encoder_sees(rig, any_editor):
    references = run_in(rig, any_editor, "08")
    assert len(references) == 2
    for node in references:
        shown = f"id => ({ON_PAGE if any_editor.nodes_2 else ON_CANVAS})(id) === 224"
        any_editor.page.wait_for_function(shown, arg=node, timeout=120_000)


def test_loaders_show_which_files_they_took_and_apply_nodes_what_was_seen(rig, any_editor):
    run_in(rig, any_editor, "24")
    told = any_editor.page.locator(".lg-node, .dom-widget").get_by_text("image encoder: CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors")
    told.first.wait_for(timeout=120_000)
    for node in json.loads(example("24").read_text())["nodes"]:
        if node["type"] == "IPAdapterAdvanced":
            any_editor.page.wait_for_function(SEEN, arg=node["id"], timeout=60_000)


def test_no_label_is_cut(any_editor):
    """Of nodes as wide as the editor makes them: each title, input, output and widget has its whole name.

    But for titles of nodes without widgets, and names beside long values: the canvas makes no room for these, whoever's node it is. Texts
    of several lines and pictures are parts of the page and have no names.
    """
    page, cut = any_editor.page, CUT_ON_PAGE if any_editor.nodes_2 else CUT_ON_CANVAS
    for node in sorted(adapter_nodes()):
        page.evaluate(ALONE, node)
        page.evaluate(NO_TEXTS)
        try:
            page.wait_for_function(f"({cut})().length === 0", timeout=5_000)  # drawn a moment later
        except TimeoutError:
            pytest.fail(f"{node}: {page.evaluate(cut)}")
