"""What the running server tells about the nodes: tooltips, help pages, translations, templates."""

import json

from support.rig import PACK, REPO


def ours(rig) -> dict:
    return {name: info for name, info in rig.info.items() if info["python_module"] == f"custom_nodes.{PACK}"}


def test_no_tooltip_is_missing(rig):
    assert len(ours(rig)) >= 38
    for node, info in ours(rig).items():
        inputs = {name: entry for kind, group in info["input"].items() if kind != "hidden" for name, entry in group.items()}
        assert [name for name, entry in inputs.items() if not (entry[1] if len(entry) > 1 else {}).get("tooltip")] == [], node
        assert len(info.get("output_tooltips") or ()) == len(info["output"]) and all(info.get("output_tooltips") or ()), node
        assert info["description"], node


def test_help_pages_are_served_where_the_editor_looks(rig):
    for node in ours(rig):
        page = rig.server.get_bytes(f"/extensions/{PACK}/docs/{node}.md")
        assert page == (REPO / "web" / "docs" / f"{node}.md").read_bytes()


def test_pictures_of_the_help_pages_are_served(rig):
    for path in (REPO / "web" / "docs" / "images").iterdir():
        assert rig.server.get_bytes(f"/extensions/{PACK}/docs/images/{path.name}") == path.read_bytes()


def test_translations_are_served(rig):
    served = rig.server.get("/i18n")
    for folder in (REPO / "locales").iterdir():
        assert served[folder.name]["nodeDefs"] == json.loads((folder / "nodeDefs.json").read_text(encoding="utf-8"))
