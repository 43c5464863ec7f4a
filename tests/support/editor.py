"""ComfyUI's own editor in a real Chromium, driven with Playwright."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image
from playwright.sync_api import Page, Route, sync_playwright

ARGUMENTS = [
    "--no-sandbox", "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets",  # a page out of a folder may reach the server
]  # fmt: skip
READY = "!!(window.LiteGraph?.registered_node_types?.KSampler && window.app?.extensionManager?.workflow?.activeWorkflow)"
OPENED = "([file, api]) => api ? window.app.loadApiJson(file, 'workflow') : window.app.loadGraphData(file)"
SERIALIZED = "JSON.parse(JSON.stringify(window.app.graph.serialize()))"
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # texts are drawn at any zoom
}
PICTURES_SHOWN = "window.app.graph.nodes.every(node => node.type !== 'LoadImage' || node.imgs?.length)"
BOUNDS = """() => {
    window.app.extensionManager.focusMode = true  // no side bar, no menu
    const boxes = [...window.app.graph.nodes, ...window.app.graph.groups].map(item => Array.from(item.boundingRect))
    const [left, top] = [0, 1].map(i => Math.min(...boxes.map(box => box[i])))
    return [left, top, ...[left, top].map((start, i) => Math.max(...boxes.map(box => box[i] + box[i + 2])) - start)]
}"""
SHOWN_AT = """([left, top, scale]) => {
    Object.assign(window.app.canvas.ds, { scale, offset: [-left, -top] })
    window.app.canvas.setDirty(true, true)
    const canvas = window.app.canvas.canvas.getBoundingClientRect()
    return [canvas.left, canvas.top]
}"""
TEXT_WIDTHS = """() => {
    const minimum = LiteGraph.NODE_WIDTH
    const nodes = graph => graph.nodes.flatMap(node => [node, ...(node.isSubgraphNode() ? nodes(node.subgraph) : [])])
    LiteGraph.NODE_WIDTH = 0  // it would hide how wide the texts are
    try {
        return nodes(window.app.graph).map(node => [`${node.id} ${node.type}`, node.size[0], node.computeSize()[0]])
    } finally {
        LiteGraph.NODE_WIDTH = minimum
    }
}"""
FONT_MARGIN = 1.15  # fonts differ from machine to machine, and the editor widens a node that is too narrow for its texts
MARGIN = 30  # around the graph on its picture
SHARPNESS = 3  # a picture is taken so many times larger and scaled down

Workflow = dict[str, Any]


@contextmanager
def chromium() -> Iterator[Page]:
    """A page of a headless browser, large enough for a workflow to be read on a screenshot."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM_PATH", "/usr/bin/chromium"), args=ARGUMENTS)
        yield browser.new_page(viewport={"width": 1600, "height": 1000})
        browser.close()


class Editor:
    """The editor of the server at `url`, or the one whose files are in `frontend`; `nodes_2` has the page draw nodes, not the canvas."""

    def __init__(self, page: Page, url: str, frontend: Path | None = None, nodes_2: bool = False):
        self.page, self.url, self.nodes_2 = page, url, nodes_2
        if frontend:
            names = "|".join(re.escape(entry.name) for entry in frontend.iterdir())
            self.page.route(re.compile(rf"{re.escape(url)}/(({names})(/.*)?)?(\?.*)?$"), lambda route: answer(route, frontend))

    def open(self) -> None:
        """Load the editor, past the tour of a first visit, and wait until it has opened the workflow that it starts with."""
        self.page.request.post(f"{self.url}/settings", data={**SETTINGS, "Comfy.VueNodes.Enabled": self.nodes_2})
        self.page.goto(self.url, timeout=120_000)  # a busy machine
        self.page.wait_for_function(READY, timeout=120_000)

    def refresh(self) -> None:
        """Let the editor's lists of files follow what the server has now."""
        self.page.evaluate("window.app.refreshComboInNodes()")

    def load(self, workflow: Workflow) -> Workflow:
        """Open a workflow file of either format; returns the graph as the editor would save it."""
        self.page.evaluate(OPENED, [workflow, "nodes" not in workflow])
        return self.saved()

    def saved(self) -> Workflow:
        """The open graph as the editor would save it."""
        return self.page.evaluate(SERIALIZED)

    def narrow(self) -> list[str]:
        """Nodes of the open graph that a wider font than this browser's could make grow, in sentences."""
        widths = self.page.evaluate(TEXT_WIDTHS)
        return [f"node {node}: {width:.0f} wide, its texts {text:.0f}" for node, width, text in widths if width < FONT_MARGIN * text]

    def complaints(self) -> list[str]:
        """What dialogs and alerts say, such as missing nodes, missing models or an invalid file."""
        return self.page.locator(".p-dialog, .p-toast-message-warn, .p-toast-message-error").all_inner_texts()

    def picture(self, width: int) -> Image.Image:
        """The open graph as the editor draws it, whole, without menus."""
        self.page.wait_for_function(PICTURES_SHOWN)
        left, top, wide, high = self.page.evaluate(BOUNDS)
        wide, high = wide + 2 * MARGIN, high + 2 * MARGIN
        scale = SHARPNESS * width / wide
        across, down = SHARPNESS * width, round(high * scale)
        self.page.set_viewport_size({"width": across + 200, "height": down + 200})
        self.page.wait_for_timeout(300)  # the canvas follows the window
        x, y = self.page.evaluate(SHOWN_AT, [left - MARGIN, top - MARGIN, scale])
        self.page.wait_for_timeout(700)  # two slow frames: the canvas, then the text fields above it
        shot = Image.open(io.BytesIO(self.page.screenshot(clip={"x": x, "y": y, "width": across, "height": down})))
        return shot.convert("RGB").resize((width, down // SHARPNESS), Image.Resampling.LANCZOS)

    def unknown_types(self, workflow: Workflow) -> list[str]:
        """Node types of the file that the editor has no node for."""
        types = sorted({str(node.get("type") or node["class_type"]) for node in nodes_of(workflow)})
        return self.page.evaluate("types => types.filter(type => !(type in window.LiteGraph.registered_node_types))", types)

    def prompt(self) -> Workflow:
        """What the editor would send to the server."""
        output = self.page.evaluate("window.app.graphToPrompt().then(both => both.output)")
        return {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in output.items()}


def answer(route: Route, folder: Path) -> None:
    """Give the page a file of the folder in place of the server's; what is not in it, such as scripts of packs, the server has."""
    file = folder / (unquote(urlsplit(route.request.url).path).strip("/") or "index.html")
    if file.is_file():
        route.fulfill(path=file)
    else:
        route.fallback()


def nodes_of(workflow: Workflow) -> list[dict[str, Any]]:
    return workflow["nodes"] if "nodes" in workflow else list(workflow.values())


def links_of(workflow: Workflow) -> set[tuple[int, int, int, str]]:
    """(from node, output, to node, input's name) of every link; inputs by name, since editors insert slots for widgets."""
    inputs = {node["id"]: node.get("inputs") or [] for node in workflow["nodes"]}
    return {(source, output, target, inputs[target][slot]["name"]) for _, source, output, target, slot, *_ in workflow["links"]}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float) and not isinstance(a, bool):
        return abs(a - b) < 1e-9
    return a == b


def differences(file: Workflow, opened: Workflow) -> list[str]:
    """What was lost between a file in the editor's format and the graph that the editor made of it, in sentences."""
    found = [f"link lost: node {a} output {b} to node {c} input {d}" for a, b, c, d in sorted(links_of(file) - links_of(opened))]
    nodes = {node["id"]: node for node in opened["nodes"]}
    for node in file["nodes"]:
        saved, now = node.get("widgets_values") or [], nodes.get(node["id"], {}).get("widgets_values") or []
        for place, value in enumerate(saved) if isinstance(saved, list) else saved.items():
            got = now[place] if (place in now if isinstance(now, dict) else place < len(now)) else "nothing"
            if not same(value, got):
                found.append(f"value lost: node {node['id']} ({node['type']}) widget {place} was {value!r}, now {got!r}")
    return found


def changes(file: Workflow, opened: Workflow) -> list[str]:
    """Every difference between a file and the graph that the editor made of it; the view and the list of models are no part of that."""
    parts = ("version", "config", "last_node_id", "last_link_id", "links", "groups", "definitions")
    found = [f"{part}: was {file.get(part)}, now {opened.get(part)}" for part in parts if file.get(part) != opened.get(part)]
    before, now = ({node["id"]: node for node in workflow["nodes"]} for workflow in (file, opened))
    for key in before.keys() | now.keys():
        old, new = before.get(key, {}), now.get(key, {})
        names = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
        found += [f"node {key} {name}: was {old.get(name)!r}, now {new.get(name)!r}" for name in sorted(names)]
    return found


def prompt_differences(file: Workflow, prompt: Workflow) -> list[str]:
    """What was lost between an API prompt and the prompt that the editor gives back for it, in sentences."""
    found = []
    for key, node in file.items():
        now = prompt.get(key, {"inputs": {}})["inputs"]
        for name, value in node["inputs"].items():
            if not same(value, now.get(name)):
                found.append(f"value lost: node {key} ({node['class_type']}) {name} was {value!r}, now {now.get(name)!r}")
    return found
