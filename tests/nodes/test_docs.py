"""Every node explains itself: descriptions, tooltips, help pages and translations cover all that a node shows, and nothing else."""

import json
import re
from pathlib import Path

import pytest
from help_graphs import GRAPHS
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (REPO / "web" / "docs").glob("*.md")}
LANGUAGES = ("zh", "ja", "ko", "de", "fr", "es")
SECTIONS = ("Inputs", "Outputs", "Tips", "When something goes wrong")


PICTURES = {path.name: path for path in (REPO / "web" / "docs" / "images").iterdir()}


def inputs(cls) -> dict[str, tuple]:
    return {name: value for kind, group in cls.INPUT_TYPES().items() if kind != "hidden" for name, value in group.items()}


def outputs(cls) -> tuple[str, ...]:
    return tuple(getattr(cls, "RETURN_NAMES", None) or cls.RETURN_TYPES)


def rows(page: str, section: str) -> list[str]:
    """The names in bold at the head of a section's list, in order; nothing else is in the section."""
    lines = page.split(f"\n## {section}\n")[1].split("\n## ")[0].strip().splitlines()
    if len(lines) == 1 and lines[0].startswith("None: "):
        return []
    found = [re.match(r"- \*\*`([^`]+)`\*\* \*[^*]+\.\* \S", line) for line in lines]
    assert None not in found, lines
    return [match[1] for match in found if match]


def translation(language: str) -> dict:
    return json.loads((REPO / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def leaves(value, path=()):
    """(path, text) of every text in nested dicts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def sentence(text: str) -> bool:
    return len(text) > 12 and text == text.strip() and text.endswith((".", ")")) and text[0] == text[0].upper()


def test_every_input_has_a_tooltip(pack):
    for node, cls in pack.items():
        assert [name for name, value in inputs(cls).items() if not sentence((*value, {})[1].get("tooltip", ""))] == [], node


def test_every_output_has_a_tooltip(pack):
    for node, cls in pack.items():
        tips = getattr(cls, "OUTPUT_TOOLTIPS", ())
        assert len(tips) == len(cls.RETURN_TYPES) == len(outputs(cls)), node
        assert all(map(sentence, tips)), node


def test_every_node_has_a_description_and_a_title(pack, comfy):
    import ipadapter_pack

    titles = ipadapter_pack.NODE_DISPLAY_NAME_MAPPINGS
    assert set(titles) == set(pack)
    assert len(set(titles.values())) == len(titles), "two nodes have one title"
    assert [node for node, cls in pack.items() if not sentence(getattr(cls, "DESCRIPTION", ""))] == []


def test_every_node_has_a_help_page_and_no_page_is_left_over(pack):
    assert set(PAGES) == set(pack)


def test_help_pages_name_what_the_node_shows(pack, comfy):
    import ipadapter_pack

    for node, cls in pack.items():
        page = PAGES[node]
        assert page.startswith(f"# {ipadapter_pack.NODE_DISPLAY_NAME_MAPPINGS[node]}\n"), node
        assert re.findall(r"^## (.+)$", page, flags=re.MULTILINE) == list(SECTIONS), node
        assert rows(page, "Inputs") == list(inputs(cls)), node
        assert rows(page, "Outputs") == list(outputs(cls)), node


def test_help_pages_fit_a_narrow_panel():
    """Tables collapse there to columns two words wide."""
    assert [name for name, page in PAGES.items() if re.search(r"^\|", page, flags=re.MULTILINE)] == []


def test_help_pages_speak_as_the_tooltips_do(pack):
    """A tooltip that changes has to change on the page too."""
    for node, cls in pack.items():
        tips = [value[1]["tooltip"] for value in inputs(cls).values()] + list(getattr(cls, "OUTPUT_TOOLTIPS", ()))
        assert [tip for tip in tips if tip not in PAGES[node]] == [], node


def test_help_pages_differ(pack):
    """No page says in its introduction, tips or troubles what another says word for word."""
    for part in (lambda p: p.split("\n## ")[0].split("\n", 1)[1], lambda p: p.split("\n## Tips\n")[1].split("\n## ")[0]):
        texts = [part(page) for page in PAGES.values()]
        assert len(set(texts)) == len(texts)
        assert min(map(len, texts)) > 80


def test_help_pages_name_nodes_by_their_titles(comfy, pack):
    """Nodes of this pack that a page speaks of are there under that name."""
    import ipadapter_pack

    titles = set(ipadapter_pack.NODE_DISPLAY_NAME_MAPPINGS.values())
    known = sorted(titles, key=len, reverse=True)
    for node, page in PAGES.items():
        text = page
        for title in known:
            text = text.replace(title, "")
        assert not re.findall(r"IPAdapter [A-Z]\w+", text), node


def test_pictures_on_help_pages_are_there_small_and_described():
    shown = [picture for page in PAGES.values() for picture in re.findall(r"!\[([^\]]*)\]\(images/([^)]+)\)", page)]
    assert {name for _, name in shown} == set(PICTURES)
    assert [name for alt, name in shown if not sentence(alt)] == []
    sizes = [path.stat().st_size for path in PICTURES.values()]
    assert max(sizes) < 40_000 and sum(sizes) < 900_000


def test_pictures_are_of_the_page_s_node_and_as_wide_as_the_help_panel():
    """A whole graph would be scaled down there until nobody can read it. Those of plots and views are wider, and still tell something."""
    for node, page in PAGES.items():
        assert {f"{node}.webp", "weight_types.webp"} >= set(re.findall(r"\(images/([^)]+)\)", page)), node
    wide = []
    for name, path in PICTURES.items():
        with Image.open(path) as picture:
            wide += [name.removesuffix(".webp")] * (picture.width > 350)
    assert set(wide) <= {"IPAdapterInspector", "IPAdapterPlotModel", "IPAdapterPlotWeights", "IPAdapterReferenceView"}


def test_graphs_of_the_pictures_fit_the_nodes(pack):
    """So that they can be made anew: each picture's node is in a graph, and no widget or link that its node has not."""
    drawn = {kind for graph in GRAPHS.values() for _, kind, *_ in graph.values()} & set(pack)
    assert {f"{name}.webp" for name in GRAPHS} <= set(PICTURES) <= {f"{kind}.webp" for kind in drawn} | {"weight_types.webp"}
    for name, graph in GRAPHS.items():
        for _, kind, values, *_ in graph.values():
            if kind in pack:
                assert set(values) <= set(inputs(pack[kind])), (name, kind)


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_cover_every_node_and_input(pack, language):
    """The format of ComfyUI's custom node translations (app/custom_node_manager.py reads them, the frontend looks these paths up)."""
    translated = {path for path, _ in leaves(translation(language))}
    wanted = set()
    for node, cls in pack.items():
        wanted |= {(node, "display_name"), (node, "description")}
        wanted |= {(node, "inputs", name, key) for name in inputs(cls) for key in ("name", "tooltip")}
        wanted |= {(node, "outputs", str(index), key) for index in range(len(cls.RETURN_TYPES)) for key in ("name", "tooltip")}
    assert wanted - translated == set(), "missing"
    assert translated - wanted == set(), "stale"


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_are_translated(pack, language):
    """Sentences differ from the English ones, and none holds what vue-i18n reads as syntax."""
    english = {getattr(cls, "DESCRIPTION", "") for cls in pack.values()}
    english |= {value[1]["tooltip"] for cls in pack.values() for value in inputs(cls).values()}
    english |= {tip for cls in pack.values() for tip in getattr(cls, "OUTPUT_TOOLTIPS", ())}
    for path, text in leaves(translation(language)):
        assert isinstance(text, str) and text.strip() == text and text, path
        assert not set(text) & set("{}@|"), path
        assert text not in english, path
        if path[-1] in ("tooltip", "description"):
            assert text.endswith((".", ")", "\u3002", "\uff09")), path


def test_one_text_has_one_translation(pack):
    """What is the same sentence in English is the same in each language: nodes do not drift apart."""
    for language in LANGUAGES:
        found, translated = {}, translation(language)
        for node, cls in pack.items():
            for name, value in inputs(cls).items():
                text = translated[node]["inputs"][name]["tooltip"]
                assert found.setdefault(value[1]["tooltip"], text) == text, (language, node, name)


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_keep_the_options_and_numbers(pack, language):
    """Option names in quotes are those of the widgets, which are not translated; and no number is lost."""
    translated = translation(language)
    for node, cls in pack.items():
        for name, value in inputs(cls).items():
            text = translated[node]["inputs"][name]["tooltip"]
            for option in re.findall(r"'([^']+)'(?=[^\w])", value[1]["tooltip"]):
                if isinstance(value[0], list) and option in value[0]:
                    assert option in text, (node, name, option)
            for number in re.findall(r"\d+(?:\.\d+)?", value[1]["tooltip"]):
                assert number in text.replace(",", "."), (node, name, number)
