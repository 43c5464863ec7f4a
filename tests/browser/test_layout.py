"""Examples and blueprints as they are drawn, in the editor that ComfyUI asks for and in the newest, on the canvas and by the page.

Measured from what is on the screen: the size of the whole, boxes of nodes and groups, labels, and the pixels of the wires. Nodes show what
they show after a run, which makes them higher.
"""

import json
from itertools import combinations

import pytest

from support.rig import REPO, examples

FILES, BLUEPRINTS = examples(), sorted((REPO / "subgraphs").glob("*.json"))
LARGEST = 2150, 1125  # units; a window of 1920 x 1080 then shows them at a zoom at which the editor draws texts
TITLE = 30
# What is drawn of the graph that is open, once it stands still: [left, top, right, bottom] of nodes with their titles, and of groups;
# labels that do not fit; wires that run under a node. A page that draws the nodes tells their boxes itself, in units at zoom 1.
DRAWN = """async () => {
    const { canvas } = window.app, { graph } = canvas, slots = [graph.inputNode, graph.outputNode].filter(Boolean)
    canvas.ds.scale = 0.5
    canvas.ds.offset = [200, 200]
    const elements = () => [...document.querySelectorAll('[data-node-id]')]
    const wires = () => [...graph.links.values(), ...graph.reroutes.values()].filter(wire => wire.path)
    const boxes = () => {
        const zoom = canvas.ds.scale, corner = canvas.canvas.getBoundingClientRect(), found = {}
        const place = ([x, y]) => [(x - corner.left) / zoom - canvas.ds.offset[0], (y - corner.top) / zoom - canvas.ds.offset[1]]
        for (const node of [...graph.nodes, ...slots])
            found[node.id] = [0, 1, 2, 3].map(i => node.boundingRect[i % 2] + (i > 1 ? node.boundingRect[i] : 0))
        for (const element of elements()) {
            const { left, top, right, bottom } = element.getBoundingClientRect()
            found[element.dataset.nodeId] = [...place([left, top]), ...place([right, bottom])]
        }
        return found
    }
    let before, now, tries = 0
    do {
        if (tries++ > 50) throw Error('the nodes do not stand still')
        canvas.setDirty(true, true)
        await new Promise(done => setTimeout(done, 100))
        await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
        before = now
        now = JSON.stringify([boxes(), wires().map(wire => [...wire._pos])])
    } while (now !== before || ![0, graph.nodes.length].includes(elements().length))
    const nodes = boxes(), cut = [], under = []
    for (const element of elements())
        for (const label of element.querySelectorAll('[data-testid=widget-layout-field-label], .lg-slot .truncate'))
            if (label.scrollWidth > label.clientWidth + 1) cut.push(`${element.dataset.nodeId}: ${label.textContent}`)
    canvas.ctx.save()
    canvas.ctx.setTransform(1, 0, 0, 1, 0, 0)
    const on = (wire, points, width) => {
        canvas.ctx.lineWidth = width
        return points.some(([x, y]) => canvas.ctx.isPointInStroke(wire.path, x, y))
    }
    for (const [id, [left, top, right, bottom]] of Object.entries(nodes)) {
        const inside = 14, pieces = []  // slots lie on the border: a wire ends within it
        const side = (from, to, point) => {
            for (let at = from + inside; at < to - inside; at += 40) {
                const fine = []
                for (let step = at; step < Math.min(at + 40, to - inside); step += 2) fine.push(point(step))
                pieces.push([[point(at + 20)], fine])
            }
        }
        for (const y of [top + 4, bottom - 4]) side(left, right, x => [x, y])
        for (const x of [left + inside, right - inside]) side(top, bottom, y => [x, y])
        const own = wire => id < 0 && [wire.origin_id, wire.target_id].some(end => end == id)  // a subgraph's slots lie deep in their box
        for (const wire of wires())  // a thick line first: most wires are far away
            if (!own(wire) && pieces.some(([middle, fine]) => on(wire, middle, 50) && on(wire, fine, 3)))
                under.push(`${id}: wire ${wire.id} from ${wire.origin_id ?? [...wire.linkIds]}`)
    }
    canvas.ctx.restore()
    const groups = graph.groups.map(group => [group.title, Array.from(group.boundingRect)])
    return { nodes, groups, cut, under, wires: wires().length, page: elements().length, count: graph.nodes.length }
}"""
# What nodes show after a run, without a run: pictures and texts arrive as they do from the server.
SHOW = """({ pictures, texts, seen }) => {
    const { api } = window.comfyAPI.api, output = { images: [{ filename: 'example.png', subfolder: '', type: 'input' }] }
    for (const [event, nodes] of [['executed', pictures], ['ipadapter.seen', seen]])
        for (const node of nodes) api.dispatchCustomEvent(event, { node, display_node: node, prompt_id: '', output })
    for (const nodeId of texts) api.dispatchCustomEvent('progress_text', { nodeId, text: 'a report' })
    window.app.canvas.setDirty(true, true)
}"""
SHOWN = """({ pictures, texts, seen }) => {
    const node = id => window.app.graph.getNodeById(Number(id))
    const loaded = id => [...document.querySelectorAll(`[data-node-id='${id}'] img`), ...node(id).imgs ?? []].some(one => one.naturalWidth)
    const said = id => node(id).widgets.some(widget => String(widget.value).includes('a report'))
    const small = id => node(id).widgets.find(widget => widget.name === 'seen')?.element.querySelector('img')?.naturalWidth
    return pictures.every(loaded) && texts.every(said) && seen.every(small)
}"""
TEXTS = ("IPAdapterInspector", "IPAdapterSaveEmbeds", "IPAdapterSaveFaceEmbeds")  # outputs that show no picture
INSIDE = "() => { const [node] = window.app.graph.nodes; window.app.canvas.openSubgraph(node.subgraph, node) }"
UNPACKED = """() => {
    window.app.canvas.setGraph(window.app.graph)
    window.app.graph.unpackSubgraph(window.app.graph.nodes[0])
}"""


def shown(workflow, info):
    """Its nodes that show something after a run: pictures, texts, or what an encoder saw."""
    found = {"pictures": [], "texts": [], "seen": []}
    for node in workflow["nodes"]:
        kind, known = node["type"], info.get(node["type"])
        if known is None:
            continue
        fed = "IMAGE" in [one[0] for group in ("required", "optional") for one in known["input"].get(group, {}).values()]
        if kind.startswith("IPA") and fed and "MODEL" in known["output"] and kind != "IPAdapterApplyFaceEmbeds":  # which has no picture
            found["seen"].append(str(node["id"]))
        elif kind in TEXTS or kind.startswith(("IPAdapterUnifiedLoader", "ImagePromptLoader")):
            found["texts"].append(str(node["id"]))
        elif (known["output_node"] and kind != "PreviewAny") or kind == "ImagePromptReference":
            found["pictures"].append(str(node["id"]))
    return found


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a, b):
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


def faults(drawn) -> list[str]:
    """What is wrong with it, in sentences."""
    nodes = drawn["nodes"]
    groups = {title: (x, y, x + wide, y + high) for title, (x, y, wide, high) in drawn["groups"]}
    boxes = [*nodes.values(), *groups.values()]
    size = [max(box[i + 2] for box in boxes) - min(box[i] for box in boxes) for i in (0, 1)]
    found = [f"{size[0]:.0f} x {size[1]:.0f} units"] if size[0] > LARGEST[0] or size[1] > LARGEST[1] else []
    found += [f"nodes {a} and {b} overlap" for a, b in combinations(nodes, 2) if overlap(nodes[a], nodes[b])]
    found += [f"groups {a} and {b} overlap" for a, b in combinations(groups, 2) if overlap(groups[a], groups[b])]
    for title, frame in groups.items():
        strip = frame[0], frame[1], frame[2], frame[1] + TITLE
        for key, box in nodes.items():
            if overlap(box, strip):
                found.append(f"node {key} covers the title of {title}")
            elif overlap(box, frame) and not inside(box, frame):
                found.append(f"node {key} sticks out of {title}")
    return found + [f"label cut: {label}" for label in drawn["cut"]] + [f"wire under node {wire}" for wire in drawn["under"]]


def show(editor, info):
    """Have the open graph look as after a run."""
    showing = shown(editor.saved(), info)
    editor.page.evaluate(SHOW, showing)
    editor.page.wait_for_function(SHOWN, arg=showing, timeout=60_000)


def measured(editor):
    drawn = editor.page.evaluate(DRAWN)
    assert drawn["wires"] and drawn["page"] == (drawn["count"] if editor.nodes_2 else 0)
    return drawn


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_everything_is_drawn_in_its_place(path, rig, any_editor):
    any_editor.load(json.loads(path.read_text(encoding="utf-8")))
    show(any_editor, rig.info)
    assert faults(measured(any_editor)) == []


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_what_is_in_a_blueprint_is_drawn_in_its_place(path, rig, any_editor):
    """Placed alone, looked into, and unpacked."""
    any_editor.load(json.loads(path.read_text(encoding="utf-8")))
    assert any_editor.page.evaluate(DRAWN)["cut"] == []
    any_editor.page.evaluate(INSIDE)
    assert faults(measured(any_editor)) == []
    any_editor.page.evaluate(UNPACKED)
    show(any_editor, rig.info)
    assert faults(measured(any_editor)) == []


def test_faults_are_noticed(any_editor):
    """The measure is no rubber stamp: a node on another, one out of its group, a wire under a node and a graph too wide are told."""
    workflow = json.loads(FILES[0].read_text(encoding="utf-8"))
    kinds = {node["type"]: node for node in workflow["nodes"]}
    kinds["SaveImage"]["pos"][0] += 2000
    kinds["CLIPVisionLoader"]["pos"][1] -= 60
    workflow["extra"] = {}
    any_editor.load(workflow)
    told = "\n".join(faults(any_editor.page.evaluate(DRAWN)))
    for words in ("units", "overlap", "wire under node"):
        assert words in told
