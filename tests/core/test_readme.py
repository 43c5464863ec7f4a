"""The tables of model files in docs/ are those of ipadapter_core/files/published.py; links and commands of all pages lead somewhere."""

import json
import re
import runpy
from pathlib import Path
from urllib.parse import unquote

import pytest

from ipadapter_core.files.published import FILES, PRESETS
from support.rig import examples

REPO = Path(__file__).resolve().parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")
MODELS = (REPO / "docs" / "models.md").read_text(encoding="utf-8")
FOLDERS = ("training", "workflows", "world")  # with a page of their own
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md")), *(REPO / folder / "README.md" for folder in FOLDERS)]
LEVELS = ("start here", "next", "special")
FAMILIES = {
    "standard": "standard", "plus": "plus", "full-face": "full face", "faceid": "FaceID", "faceid-plus": "FaceID plus",
    "faceid-plus-v2": "FaceID plus v2", "portrait": "FaceID portrait", "portrait-unnorm": "FaceID portrait unnorm",
    "kolors-plus": "plus", "kolors-faceid-plus": "FaceID plus", "flux-xlabs": "XLabs", "flux-instantx": "InstantX",
    "sd3-instantx": "InstantX",
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
    text = MODELS.split(f"## `{folder}/`\n")[1].split("\n#")[0]
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


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_links_inside_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\(((?!https?://)[^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        to = page.parent / unquote(path) if path else page
        assert to.exists(), target
        assert not anchor or anchor in anchors(to), target


def test_every_page_is_reached_from_the_readme():
    for page in PAGES[1:]:
        assert f"]({page.relative_to(REPO).as_posix()})" in README


def test_commands_exist():
    commands = runpy.run_path(str(REPO / "dev.py"))["COMMANDS"]
    for page in PAGES:
        assert set(re.findall(r"python3? dev\.py (\w+)", page.read_text(encoding="utf-8"))) <= set(commands)
    develop = README.split("\n## Develop, test, release\n")[1].split("\n## ")[0]
    assert {"demo", "test"} <= set(re.findall(r"python3? dev\.py (\w+)", develop))


def test_the_tables_of_examples_are_those_of_their_notes():
    """Every example once, with its note's title, in groups by goal and within them from easy to special."""
    titles = {}
    for path in examples():
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        note = next(node for node in nodes if node["type"] == "MarkdownNote")["widgets_values"][0]
        titles[path.name] = note.splitlines()[0].removeprefix("# ")
    text = README.split("\n## Examples\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \[([^\]]+)\]\(workflows/([^)]+)\) \| (.+) \| ([^|]+) \|$", text, flags=re.MULTILINE)
    assert sorted((unquote(name), title) for _, name, title, _ in rows) == sorted(titles.items())
    assert all(unquote(name) == f"IPAdapter {number} - {title}.json" for number, name, title, _ in rows)
    for group in text.split("\n**")[1:]:
        levels = [LEVELS.index(level) for level in re.findall(r"\| ([^|]+) \|$", group, flags=re.MULTILINE) if level in LEVELS]
        assert levels and levels == sorted(levels)


def test_examples_are_found_by_the_names_that_they_had():
    """Files were renamed once: whoever follows a link to one of before looks into their folder, where each has its line."""
    text = (REPO / "workflows" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\.json` \| \[([^\]]+)\]\(([^)]+)\) \|$", text, flags=re.MULTILINE)
    before = [name for name, _, _ in rows]
    assert len(before) == 33 and before == sorted(set(before))
    assert not [name for name in before if (REPO / "workflows" / f"{name}.json").exists()], "that is no name of before"
    assert all(unquote(link) == f"{title}.json" for _, title, link in rows)
    now = {name: title.split()[1] for name, title, _ in rows}
    assert sorted(now.values()) == [f"{number:02}" for number in range(1, 34)]
    assert (now["simple"], now["style"], now["face_id"], now["advanced"]) == ("01", "03", "05", "10")


def test_every_blueprint_is_named():
    for path in (REPO / "subgraphs").glob("*.json"):
        assert f"*{path.stem}*" in README


def test_the_tree_is_that_of_the_repository():
    """Every folder of the tree is there, and every one with code of the pack is in the tree."""
    text = README.split("Where things are, each folder in the way of the data:\n\n")[1].split("\n\n")[0]
    above: list[str] = []
    named = set()
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2 - 2
        for folder in re.findall(r"(?<!\S)([\w/]+)/(?=\s|$)", line):
            above[depth:] = [folder]
            named.add("/".join(above))
    assert all((REPO / folder).is_dir() for folder in named)
    rooms = {path.parent.relative_to(REPO).as_posix() for top in ("nodes", "ipadapter_core") for path in (REPO / top).rglob("*.py")}
    assert rooms <= named
