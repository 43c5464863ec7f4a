"""Nodes are found: by folders that say what is in them, by what other people call them, the first one needed first."""

import itertools

import pytest

SAID = ("style reference", "reference image", "image prompt", "character", "face swap", "likeness", "ip-adapter")
FAMILY = ["ImagePromptLoader", "ImagePromptReference", "ImagePrompt"]


def test_every_node_has_a_folder_and_aliases_that_json_can_hold(pack):
    for node, cls in pack.items():
        assert cls.CATEGORY.startswith("ipadapter/") and all(cls.CATEGORY.split("/")), node
        aliases = cls.SEARCH_ALIASES
        assert isinstance(aliases, list) and all(isinstance(alias, str) and alias.strip() == alias for alias in aliases), node
        assert len({alias.lower() for alias in aliases}) == len(aliases) > 2, node


def test_folders_have_names_that_need_no_knowledge(pack):
    words = {part for cls in pack.values() for part in cls.CATEGORY.split("/")}
    assert not words & {"dev", "look", "params", "utils", "misc", "other"}
    assert max(sum(cls.CATEGORY == folder for cls in pack.values()) for folder in {cls.CATEGORY for cls in pack.values()}) <= 12


@pytest.mark.parametrize("words", SAID)
def test_what_people_type_finds_the_image_prompt_nodes_first(pack, words):
    """The editor keeps the server's order among equals."""
    found = [node for node, cls in pack.items() if words in cls.SEARCH_ALIASES]
    assert found and found[0].startswith("ImagePrompt")
    assert len(found) < len(pack) / 3 or words == "ip-adapter", "a word that finds everything finds nothing"


def test_the_first_nodes_needed_come_first(pack):
    assert list(pack)[:3] == FAMILY
    established = [node for node, cls in pack.items() if "/established" in cls.CATEGORY]
    assert established[:2] == ["IPAdapterUnifiedLoader", "IPAdapter"]
    folders = [cls.CATEGORY for cls in pack.values()]
    assert [folder for folder, _ in itertools.groupby(folders)] == list(dict.fromkeys(folders)), "a folder's nodes lie together"
    assert folders[-1].endswith("specialists")


def test_what_is_for_specialists_says_so(pack):
    marked = {node for node, cls in pack.items() if cls.EXPERIMENTAL}
    assert "IPAdapterMS" in marked and not marked & {*FAMILY, "IPAdapter", "IPAdapterAdvanced", "IPAdapterUnifiedLoader", "IPAdapterFaceID"}
    assert [node for node, cls in pack.items() if getattr(cls, "DEPRECATED", False)] == ["IPAdapterApply"]


def test_rarely_used_inputs_are_folded_away_and_nothing_needed_is(pack):
    """`advanced` stands in an input's options; a value that a run needs to be chosen is never hidden."""
    folded = {
        (node, name) for node, cls in pack.items() for group in cls.INPUT_TYPES().values() for name, value in group.items()
        if isinstance(value, tuple) and len(value) > 1 and value[1].get("advanced")
    }  # fmt: skip
    assert {name for _, name in folded} == {"encode_batch_size", "provider", "size", "start_at", "end_at", "curve"}
    assert {node for node, name in folded if name.endswith("_at")} == {"ImagePrompt"}, "there the curve says it"
    assert ("IPAdapterInsightFaceLoader", "provider") not in folded
