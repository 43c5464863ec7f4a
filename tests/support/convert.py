"""Workflow files as the server takes them: from the editor's format 0.4 to an API prompt, without a browser."""

from typing import Any

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SEEDS = ("seed", "noise_seed")
NEVER, BYPASS = 2, 4  # LiteGraph's node modes

Prompt = dict[str, dict[str, Any]]


def inputs_of(info: dict[str, Any]) -> dict[str, list]:
    """name -> [type, options] of a node's inputs, required ones first, as /object_info lists them."""
    found = {}
    for section in ("required", "optional"):
        for name, spec in info["input"].get(section, {}).items():
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            found[name] = [kind, spec[1] if len(spec) > 1 else {}]
    return found


def is_widget(kind: str, options: dict[str, Any]) -> bool:
    return kind in WIDGET_TYPES and not options.get("forceInput")


def widget_names(info: dict[str, Any]) -> list[str | None]:
    """The input that each saved widget value belongs to; None for values of the editor alone (control after generate, upload)."""
    found: list[str | None] = []
    for name, (kind, options) in inputs_of(info).items():
        if is_widget(kind, options):
            found.append(name)
            extra = options.get("control_after_generate", kind == "INT" and name in SEEDS) or options.get("image_upload")
            found.extend([None] if extra else [])
    return found


class Workflow:
    """A workflow in the editor's format, beside the /object_info of the server that is to run it."""

    def __init__(self, workflow: dict[str, Any], object_info: dict[str, Any]):
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
        self.info = object_info

    def prompt(self) -> Prompt:
        """The API prompt. Nodes that only the editor knows (notes) and muted ones are left out."""
        active = (node for node in self.nodes.values() if node["type"] in self.info and node.get("mode") not in (NEVER, BYPASS))
        return {str(node["id"]): {"class_type": node["type"], "inputs": self.inputs(node)} for node in active}

    def inputs(self, node: dict[str, Any]) -> dict[str, Any]:
        values = node.get("widgets_values") or []
        if isinstance(values, dict):
            found = dict(values)
        else:
            found = {name: value for name, value in zip(widget_names(self.info[node["type"]]), values, strict=False) if name}
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                value = self.source(slot["link"], slot["type"])
                if value is not None:
                    found[slot["name"]] = value
        return found

    def source(self, link: int, kind: str) -> Any:
        """What a link brings: [node, output], a primitive's value, or None; reroutes and bypassed nodes are seen through."""
        origin, output = self.links[link]
        node = self.nodes[origin]
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] != "Reroute" and node.get("mode") != BYPASS:
            return None if node.get("mode") == NEVER else [str(origin), output]
        fitting = (slot for slot in node.get("inputs", []) if slot.get("link") is not None)
        if node["type"] != "Reroute":
            fitting = (slot for slot in fitting if slot["type"] == kind)
        slot = next(fitting, None)
        return self.source(slot["link"], kind) if slot else None


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """An API prompt from either format."""
    return Workflow(workflow, object_info).prompt() if "nodes" in workflow else workflow


def only(prompt: Prompt, ends: set[str]) -> Prompt:
    """The nodes of `ends` (keys) and all that they need."""
    kept, todo = {}, list(ends)
    while todo:
        key = todo.pop()
        if key not in kept:
            kept[key] = prompt[key]
            todo += [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)]
    return kept


def without_adapters(prompt: Prompt, adapter_nodes: set[str]) -> Prompt:
    """What the nodes outside `adapter_nodes` end in, with every node of those that patches a model seen through: its `model` goes on."""

    def resolve(value: Any) -> Any:
        while isinstance(value, list):
            source = prompt[value[0]]
            if source["class_type"] not in adapter_nodes or value[1] != 0 or "model" not in source["inputs"]:
                break
            value = source["inputs"]["model"]
        return value

    kept = {}
    for key, node in prompt.items():
        kept[key] = {**node, "inputs": {name: resolve(value) for name, value in node["inputs"].items()}}
    used = {value[0] for node in kept.values() for value in node["inputs"].values() if isinstance(value, list)}
    return only(kept, {key for key, node in kept.items() if key not in used and node["class_type"] not in adapter_nodes})
