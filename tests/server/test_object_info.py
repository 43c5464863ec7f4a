"""The surface that workflows, krita-ai-diffusion and other packs rely on, as the running server tells it.

nodes.json is that surface as ComfyUI_IPAdapter_plus 2.0.0 has it, written down once; nothing of it may differ.
Its folders (`category`) are left out: nothing saved refers to them.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from support import rig as rig_module

SURFACE: dict[str, Any] = json.loads((Path(rig_module.__file__).parent / "nodes.json").read_text())
OPTIONS = ("default", "min", "max", "step", "multiline")
FROM_FILES = ("ipadapter_file", "embeds")  # combos whose options are the user's own files, none in nodes.json

EXPECTED = (
    "IPAdapter", "IPAdapterAdvanced", "IPAdapterBatch", "IPAdapterFaceID", "IPAdapterFaceIDKolors", "IPAAdapterFaceIDBatch",
    "IPAdapterTiled", "IPAdapterTiledBatch", "IPAdapterEmbeds", "IPAdapterEmbedsBatch", "IPAdapterStyleComposition",
    "IPAdapterStyleCompositionBatch", "IPAdapterMS", "IPAdapterClipVisionEnhancer", "IPAdapterClipVisionEnhancerBatch",
    "IPAdapterFromParams", "IPAdapterPreciseStyleTransfer", "IPAdapterPreciseStyleTransferBatch", "IPAdapterPreciseComposition",
    "IPAdapterPreciseCompositionBatch", "IPAdapterUnifiedLoader", "IPAdapterUnifiedLoaderFaceID", "IPAdapterModelLoader",
    "IPAdapterInsightFaceLoader", "IPAdapterUnifiedLoaderCommunity", "IPAdapterEncoder", "IPAdapterCombineEmbeds", "IPAdapterNoise",
    "PrepImageForClipVision", "IPAdapterSaveEmbeds", "IPAdapterLoadEmbeds", "IPAdapterWeights", "IPAdapterCombineWeights",
    "IPAdapterWeightsFromStrategy", "IPAdapterPromptScheduleFromWeightsStrategy", "IPAdapterRegionalConditioning",
    "IPAdapterCombineParams", "IPAdapterApply",
)  # fmt: skip
APPLY_INPUTS = ["ipadapter", "clip_vision", "image", "model", "weight", "noise", "weight_type", "start_at", "end_at", "unfold_batch"]


def told(info: dict[str, Any]) -> dict[str, Any]:
    """A node of /object_info in the form of nodes.json."""
    inputs = {}
    for section in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(section, {}).items():
            options = rest[0] if rest else {}
            entry: dict[str, Any] = {"section": section, "type": "COMBO" if isinstance(kind, list) else kind}
            if isinstance(kind, list):
                entry["options"] = kind
            entry.update({key: options[key] for key in OPTIONS if key in options})
            inputs[name] = entry
    kept = {key: info[key] for key in ("display_name", "output_node")}
    return {"inputs": inputs, "outputs": info["output"], "output_names": info["output_name"], **kept}


def test_every_expected_node_is_there(rig):
    assert set(SURFACE) | {"IPAdapterApply"} == set(EXPECTED)
    assert [name for name in EXPECTED if name not in rig.info] == []


@pytest.mark.parametrize("name", SURFACE)
def test_surface(name, rig):
    want, got = SURFACE[name], told(rig.info[name])
    assert list(got["inputs"]) == list(want["inputs"])
    for key in ("outputs", "output_names", "display_name", "output_node"):
        assert got[key] == want.get(key, False), key
    for input_name, expected in want["inputs"].items():
        if input_name in FROM_FILES and expected["type"] == "COMBO":
            expected = {**expected, "options": got["inputs"][input_name]["options"]}
        assert got["inputs"][input_name] == expected, input_name


@pytest.mark.parametrize("name", EXPECTED)
def test_every_input_and_output_is_explained(name, rig):
    """Every node has a description, every input and output a tooltip."""
    info = rig.info[name]
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    assert info["description"].strip()
    assert [key for key, (_, *rest) in inputs.items() if not (rest and rest[0].get("tooltip"))] == []
    tooltips = info.get("output_tooltips", [])
    assert len(tooltips) == len(info["output"]) and all(tooltips)


def test_the_old_apply_node_takes_its_old_inputs(rig):
    info = rig.info["IPAdapterApply"]
    assert info["input_order"]["required"] == APPLY_INPUTS
    assert info["input_order"]["optional"] == ["attn_mask"]
    assert info["input"]["required"]["weight_type"][0] == ["original", "linear", "channel penalty"]
    assert info["deprecated"] is True


def test_the_tree_and_the_search_are_told_what_the_catalog_says(rig):
    """The order of nodes too: the editor's tree keeps it."""
    ours = [name for name, info in rig.info.items() if info["category"].startswith("ipadapter/")]
    assert ours[:3] == ["ImagePromptLoader", "ImagePromptReference", "ImagePrompt"] and set(EXPECTED) < set(ours)
    assert rig.info["IPAdapterMS"]["experimental"] is True and "experimental" not in rig.info["IPAdapter"]
    assert "face swap" in rig.info["IPAdapterFaceID"].get("search_aliases", ["face swap"])  # cores that know no aliases tell none
