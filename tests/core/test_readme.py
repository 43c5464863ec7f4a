"""The README's tables of model files are those of ipadapter_core/published.py, and its links and commands lead somewhere."""

import json
import re
import runpy
from pathlib import Path

from ipadapter_core.published import FILES, PRESETS

REPO = Path(__file__).resolve().parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")
FAMILIES = {
    "standard": "standard", "plus": "plus", "full-face": "full face", "faceid": "FaceID", "faceid-plus": "FaceID plus",
    "faceid-plus-v2": "FaceID plus v2", "portrait": "FaceID portrait", "portrait-unnorm": "FaceID portrait unnorm",
    "kolors-plus": "plus", "kolors-faceid-plus": "FaceID plus",
}
VARIANTS = {"plain": "", "light": ", light", "face": ", face", "composition": ", composition"}


def link(row) -> str:
    return f"[{row.name}]({row.url})"


def adapters() -> list[str]:
    lines = ["| file | base | family | image encoder | LoRA | preset | licence |", "|---|---|---|---|---|---|---|"]
    for row in FILES:
        if row.family:
            presets = [name.split(" - ")[0].split(" (")[0] for name, bases in PRESETS.items() if row.name in bases.get(row.base, ())]
            encoder = row.encoder.name if row.encoder else "none"
            family, lora = FAMILIES[row.family] + VARIANTS[row.variant], row.lora or "-"
            lines.append(f"| {link(row)} | {row.base} | {family} | {encoder} | {lora} | {', '.join(presets)} | {row.licence} |")
    return lines


def encoders() -> list[str]:
    used = {row.encoder.file: row.encoder for row in FILES if row.encoder}
    lines = ["| save it as | encoder | input | licence |", "|---|---|---|---|"]
    for row in FILES:
        if row.name in used:
            lines.append(f"| {link(row)} | {used[row.name].name} | {used[row.name].size} px | {row.licence} |")
    return lines


def loras() -> list[str]:
    return ["| file | licence |", "|---|---|"] + [f"| {link(row)} | {row.licence} |" for row in FILES if row.folder == "loras"]


def section(folder: str) -> list[str]:
    """The lines of the table under the heading that names a folder."""
    text = README.split(f"### `{folder}/`\n")[1].split("\n#")[0]
    return [line for line in text.splitlines() if line.startswith("|")]


def test_table_of_adapters():
    assert section("models/ipadapter") == adapters()


def test_table_of_encoders():
    assert section("models/clip_vision") == encoders()


def test_table_of_loras():
    assert section("models/loras") == loras()


def test_the_first_screen_names_real_files():
    """The short list at the top, with the same names and addresses."""
    first = README.split("\n## ")[0] + README.split("\n## ")[1]
    links = dict(re.findall(r"\[([\w.-]+\.(?:safetensors|bin))\]\((https://[^)]+)\)", first))
    table = {row.name: row.url for row in FILES}
    assert len(links) >= 3
    assert links == {name: table.get(name) for name in links}


def test_links_inside_the_repository_lead_somewhere():
    targets = re.findall(r"\]\(((?!https?://)[^)]+)\)", README)
    titles = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    headings = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (REPO / path).exists() if path else anchor in headings, target


def test_commands_exist():
    commands = runpy.run_path(str(REPO / "dev.py"))["COMMANDS"]
    assert set(re.findall(r"python3? dev\.py (\w+)", README)) <= set(commands)
    assert {"demo", "test"} <= set(re.findall(r"python3? dev\.py (\w+)", README.split("\n## ")[1]))


def test_the_table_of_examples_is_that_of_their_notes():
    rows = []
    for path in sorted((REPO / "workflows").glob("*.json")):
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        note = next(node for node in nodes if node["type"] == "MarkdownNote")["widgets_values"][0]
        rows.append(f"| [{path.stem}](workflows/{path.name}) | {note.splitlines()[0].removeprefix('# ')} |")
    assert "\n".join(["| example | what it shows |", "|---|---|", *rows]) + "\n\n" in README


def test_every_blueprint_is_named():
    for path in (REPO / "subgraphs").glob("*.json"):
        assert f"*{path.stem}*" in README
