"""Makes the pictures of the help pages: nodes of the graphs of help_graphs.py, laid out and where need be run in the real editor.

`python3 dev.py pictures` makes all, `python3 dev.py pictures NAME...` those of some graphs; they go to web/docs/images, each as wide as
its node: the help panel is hardly wider. Two whole graphs are for the README and go to docs/images. The models are small random ones,
so only what does not depend on their weights is shown: plots, masks, what an encoder sees.
"""

import argparse
import io
import math
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from help_graphs import GRAPHS, RUN, Graph

from support import lab
from support.editor import Editor, chromium
from support.rig import REPO, Rig

PAGES = REPO / "web" / "docs"
PICTURES = PAGES / "images"
GRAPHS_SHOWN, SHOWN = ("IPAdapter", "IPAdapterReferenceView"), REPO / "docs" / "images"
WIDEST, PANEL, WEIGHTS = 860, 350, "weight_types"
SETTINGS = {
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "Comfy.Canvas.SelectionToolbox": False,
}
BUILD = """nodes => {
    const { graph } = window.app, made = {}
    window.app.clean()
    graph.clear()
    for (const [name, [, type]] of Object.entries(nodes)) graph.add(made[name] = LiteGraph.createNode(type))
    for (const [name, [, , values]] of Object.entries(nodes))
        for (const [key, value] of Object.entries(values)) {
            const link = /^@(\\w+)\\.(\\w+)$/.exec(value)
            if (link) {
                const from = made[link[1]].findOutputSlot(link[2]), to = made[name].findInputSlot(key)
                if (from < 0 || to < 0) throw new Error(`${name}.${key}: there is no such link as ${value}`)
                made[link[1]].connect(from, made[name], to)
            } else {
                const widget = made[name].widgets.find(widget => widget.name === key)
                widget.value = value
                widget.callback?.(value)
            }
        }
    for (const [name, [, , , size]] of Object.entries(nodes)) {
        const node = made[name], least = node.computeSize(), [width, height] = size ?? [Math.max(270, 50 + 8.5 * node.title.length), 0]
        node.setSize([Math.max(least[0], width), Math.max(least[1], height)])
    }
    window.made = made
}"""
LOADED = """([nodes, types]) => Object.entries(nodes).every(
    ([name, [, type]]) => !types.includes(type) || window.made[name].imgs?.[0]?.naturalWidth)"""
RUN_IT = """async () => {
    await window.app.queuePrompt(0)
    for (let queue; !queue || queue.queue_running.length || queue.queue_pending.length; queue = await (await fetch("/queue")).json())
        await new Promise(resolve => setTimeout(resolve, 200))
}"""
SHOWING = ("PreviewImage", "IPAdapterReferenceView", "IPAdapterPlotModel", "IPAdapterPlotWeights")
TELLING = (*SHOWING, "IPAdapterInspector")  # wider than the help panel, and still telling something there
LAY_OUT = """([nodes, ours]) => {
    const gap = [60, 60], columns = {}
    for (const [name, [column, type]] of Object.entries(nodes)) {
        const node = window.made[name]
        if (ours.includes(type)) { node.color = "#2a4365"; node.bgcolor = "#2c5282" }
        ;(columns[column] ??= []).push(node)
    }
    let x = 0, box = [Infinity, Infinity, -Infinity, -Infinity]
    for (const column of Object.keys(columns).map(Number).sort((a, b) => a - b)) {
        let y = 0
        for (const node of columns[column]) {
            node.pos = [x, y]
            y += node.size[1] + gap[1]
        }
        if (column >= 0) box = [Math.min(box[0], x), 0, 0, Math.max(box[3], y - gap[1])]
        x += Math.max(...columns[column].map(node => node.size[0])) + gap[0]
    }
    const edge = 16, title = LiteGraph.NODE_TITLE_HEIGHT, { canvas } = window.app
    canvas.background_image = ""
    canvas.show_info = false
    canvas.clear_background_color = "#222222"
    canvas.deselectAll()
    canvas.ds.scale = 1
    canvas.ds.offset = [edge - box[0], edge + title]
    canvas.setDirty(true, true)
    const around = ({ pos, size }) => [pos[0] - box[0], pos[1], pos[0] - box[0] + size[0] + 2 * edge, pos[1] + size[1] + title + 2 * edge]
    const boxes = ours.map(type => around(Object.values(window.made).find(node => node.type === type)))
    return [x - gap[0] - box[0] + 2 * edge, box[3] + title + 2 * edge, boxes]
}"""


def lighthouse(width: int = 960, height: int = 480) -> Image.Image:
    """A picture that is wider than high, with something at its side."""
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    for y in range(height):
        share = y / height
        draw.line((0, y, width, y), (int(30 + 215 * share), int(70 + 110 * share), int(130 - 20 * share)))
    draw.ellipse((590, 190, 710, 310), (255, 226, 150))
    for y in range(300, height):
        draw.line((0, y, width, y), (16, 60 + (y - 300) // 4, 92 + (y - 300) // 4))
    for i in range(46):
        x, y = 470 + (i * 97) % 380, 306 + i * 4
        draw.line((x, y, x + 30 + i, y), (220, 190, 140), 2)
    draw.polygon([(0, height), (0, 350), (90, 300), (230, 310), (360, height)], (38, 44, 40))
    draw.polygon([(110, 320), (128, 130), (182, 130), (200, 320)], (240, 236, 226))
    for y in (170, 240):
        draw.polygon([(155 - 33, y), (155 + 33, y), (155 + 36, y + 34), (155 - 36, y + 34)], (186, 54, 48))
    draw.rectangle((132, 96, 178, 130), (255, 240, 170))
    draw.polygon([(124, 96), (155, 62), (186, 96)], (120, 36, 34))
    for x, y in ((760, 90), (800, 120), (720, 130)):
        draw.arc((x, y, x + 26, y + 18), 190, 350, (30, 34, 44), 3)
        draw.arc((x + 24, y, x + 50, y + 18), 190, 350, (30, 34, 44), 3)
    return image


def portrait(width: int = 480, height: int = 720) -> Image.Image:
    """A picture that is higher than wide, with a head at its top."""
    image = Image.new("RGB", (width, height), (92, 120, 116))
    draw = ImageDraw.Draw(image)
    draw.polygon([(40, height), (110, 470), (370, 470), (440, height)], (196, 92, 58))
    draw.rectangle((205, 380, 275, 490), (214, 164, 132))
    draw.ellipse((110, 70, 370, 430), (74, 44, 34))
    draw.ellipse((135, 110, 345, 410), (232, 184, 152))
    draw.pieslice((120, 70, 360, 330), 180, 360, (74, 44, 34))
    for x in (190, 290):
        draw.ellipse((x - 24, 235, x + 24, 263), (250, 248, 244))
        draw.ellipse((x - 12, 237, x + 12, 261), (52, 84, 92))
        draw.arc((x - 30, 205, x + 30, 245), 200, 340, (74, 44, 34), 7)
    draw.line((240, 255, 232, 310, 248, 314), (196, 142, 112), 5)
    draw.arc((195, 310, 285, 370), 20, 160, (168, 62, 58), 8)
    return image


def left_half(width: int = 512, height: int = 512) -> Image.Image:
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), (0, 0, width // 2, height))
    return image


def nodes_of(name: str) -> list[str]:
    """The nodes whose pages take their pictures from a graph: its own, and those that no other graph has the name of."""
    source = {kind: graph for graph, nodes in reversed(GRAPHS.items()) for _, kind, *_ in nodes.values()}
    source |= {graph: graph for graph in GRAPHS}
    return [kind for kind, graph in source.items() if graph == name and (PICTURES / f"{kind}.webp").exists()]


def save(image: Image.Image, path: Path, widest: int = WIDEST) -> Path:
    """A picture as small as it stays readable."""
    if image.width > widest:
        image = image.resize((widest, round(image.height * widest / image.width)), Image.Resampling.LANCZOS)
    image.convert("RGB").save(path, quality=80, method=6)
    return path


def shot(editor: Editor, name: str, graph: Graph) -> tuple[Image.Image, dict[str, Image.Image]]:
    """The graph, and each of the nodes that have their pictures from it."""
    page, ours = editor.page, nodes_of(name)
    page.set_viewport_size({"width": 2000, "height": 1400})  # only nodes in view load their pictures
    page.evaluate(BUILD, graph)
    page.evaluate(LAY_OUT, [graph, []])
    page.wait_for_function(LOADED, arg=[graph, ["LoadImage", "LoadImageMask"]])
    if name in RUN:
        page.evaluate(RUN_IT)
        page.wait_for_function(LOADED, arg=[graph, SHOWING])
    page.wait_for_timeout(500)  # nodes grow with their pictures
    width, height, boxes = page.evaluate(LAY_OUT, [graph, ours])
    page.set_viewport_size({"width": math.ceil(width), "height": math.ceil(height)})
    page.wait_for_timeout(700)  # the canvas and the widgets on it follow
    whole = Image.open(io.BytesIO(page.screenshot()))
    return whole, {node: whole.crop((left, top, right, bottom)) for node, (left, top, right, bottom) in zip(ours, boxes, strict=True)}


def weight_types() -> Image.Image:
    """The weight of each weight type in each layer of SD1.5; layers that push the picture away have theirs below 0."""
    lab.load_module("ipadapter_core", REPO / "ipadapter_core")
    from ipadapter_core.adapter.layers import WEIGHT_TYPES, layer_weights, layers, swapped_ts
    from ipadapter_core.look.plot import BACKGROUND, COLOURS, DIM, TEXT

    places = sorted({(layer.t, layer.name) for layer in layers("SD1.5")})
    colours: dict[str, tuple[int, int, int]] = dict(zip(("input", "output", "middle"), COLOURS, strict=False))
    width, height, columns, bar = 284, 108, 1, 14
    out = Image.new("RGB", (width * columns, height * -(-len(WEIGHT_TYPES) // columns) + 66), BACKGROUND)
    draw = ImageDraw.Draw(out)
    for i, kind in enumerate(WEIGHT_TYPES):
        left, top = i % columns * width + 20, i // columns * height + 10
        draw.text((left, top), kind, TEXT, ImageFont.load_default(14))
        bottom, weights = top + 90, layer_weights("SD1.5", kind, 1.0)
        for place, (t, block) in enumerate(places):
            x = left + place * (bar + 2)
            end = bottom - 62 * weights.get(t, 0.0) * (-1 if t in swapped_ts("SD1.5", kind) else 1)
            draw.rectangle((x, min(bottom, end), x + bar - 1, max(bottom, end)), colours[block])
        draw.line((left, bottom, left + len(places) * (bar + 2) - 3, bottom), DIM)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py pictures", description="Make the pictures of the help pages in the real editor.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="pictures to make; all without one")
    names = parser.parse_args().names or [WEIGHTS, *GRAPHS]
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base, Rig(Path(os.environ["COMFYUI_PATH"]), Path(base)) as rig, chromium() as page:
        for file, image in (("lighthouse", lighthouse()), ("portrait", portrait()), ("left", left_half())):
            image.save(rig.base / "input" / f"{file}.png")
        ran = [GRAPHS[name] for name in names if name in RUN]
        rig.provide(*({key: {"class_type": kind, "inputs": values} for key, (_, kind, values, *_) in graph.items()} for graph in ran))
        editor = Editor(page, rig.server.url)
        page.request.post(f"{rig.server.url}/settings", data=SETTINGS)
        editor.open()
        page.evaluate("window.app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
        page.add_style_tag(content=".comfy-menu-hamburger { display: none !important }")
        for name in names:
            whole, nodes = (weight_types(), {}) if name == WEIGHTS else shot(editor, name, GRAPHS[name])
            made = [save(image, PICTURES / f"{node}.webp", WIDEST if node in TELLING else PANEL) for node, image in nodes.items()]
            if name in (WEIGHTS, *GRAPHS_SHOWN):
                made.append(save(whole, (PICTURES if name == WEIGHTS else SHOWN) / f"{name}.webp"))
            for path in made:
                print(f"{path.relative_to(REPO)}: {path.stat().st_size / 1024:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
