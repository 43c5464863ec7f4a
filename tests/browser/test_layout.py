"""Examples as they are drawn, in the editor that ComfyUI asks for and in the newest, on the canvas and by the page.

Measured from what is on the screen: the size of the whole, boxes of nodes and groups, labels, and the pixels of the wires.
"""

import json
from itertools import combinations

import pytest

from support.rig import examples

FILES = examples()
LARGEST = 2380, 1180  # units; a window of 1920 x 1080 then shows them at a zoom at which the editor draws texts
TITLE = 30
# What is drawn of the graph that is open: [left, top, right, bottom] of nodes with their titles, of groups, and of their titles; labels
# that do not fit; wires that run under a node. A page that draws the nodes tells their boxes itself, in units at zoom 1.
DRAWN = """async () => {
    const { canvas } = window.app, { graph } = canvas, nodes = {}, cut = [], under = []
    canvas.ds.scale = 0.5
    canvas.ds.offset = [200, 200]
    canvas.setDirty(true, true)
    await new Promise(done => setTimeout(done, 1500))
    const zoom = canvas.ds.scale, corner = canvas.canvas.getBoundingClientRect()
    const found = document.querySelectorAll('[data-node-id]')
    for (const element of found) {
        const { left, top, right, bottom } = element.getBoundingClientRect()
        const place = ([x, y]) => [(x - corner.left) / zoom - canvas.ds.offset[0], (y - corner.top) / zoom - canvas.ds.offset[1]]
        nodes[element.dataset.nodeId] = [...place([left, top]), ...place([right, bottom])]
        for (const label of element.querySelectorAll('[data-testid=widget-layout-field-label], .lg-slot .truncate'))
            if (label.scrollWidth > label.clientWidth + 1) cut.push(`${element.dataset.nodeId}: ${label.textContent}`)
    }
    for (const node of graph.nodes) nodes[node.id] ??= [0, 1, 2, 3].map(i => node.boundingRect[i % 2] + (i > 1 ? node.boundingRect[i] : 0))
    const wires = [...graph.links.values(), ...graph.reroutes.values()].filter(wire => wire.path)
    canvas.ctx.save()
    canvas.ctx.setTransform(1, 0, 0, 1, 0, 0)
    canvas.ctx.lineWidth = 3
    for (const [id, [left, top, right, bottom]] of Object.entries(nodes)) {
        const inside = 14, edge = []  // slots lie on the border: a wire ends within it
        for (let x = left + inside; x < right - inside; x += 2) edge.push([x, top + 4], [x, bottom - 4])
        for (let y = top + inside; y < bottom - inside; y += 2) edge.push([left + inside, y], [right - inside, y])
        for (const wire of wires)
            if (edge.some(([x, y]) => canvas.ctx.isPointInStroke(wire.path, x, y)))
                under.push(`${id}: wire ${wire.id} from ${wire.origin_id ?? [...wire.linkIds]}`)
    }
    canvas.ctx.restore()
    const groups = graph.groups.map(group => [group.title, Array.from(group.boundingRect)])
    return { nodes, groups, cut, under, wires: wires.length, page: found.length }
}"""
OPEN_BLUEPRINT = "() => { const [node] = app.graph.nodes; if (node.isSubgraphNode()) app.canvas.openSubgraph(node.subgraph, node) }"


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_everything_is_drawn_in_its_place(path, any_editor):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    any_editor.load(workflow)
    any_editor.page.evaluate(OPEN_BLUEPRINT)
    drawn = any_editor.page.evaluate(DRAWN)
    assert drawn["wires"] and drawn["page"] == (len(drawn["nodes"]) if any_editor.nodes_2 else 0)
    assert faults(drawn) == []


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
