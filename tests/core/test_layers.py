"""Which key belongs to which block, against diffusers' UNets; how strong each block is, against numbers worked out by hand."""

from typing import Any

import pytest
import torch

from ipadapter_core.adapter.layers import (
    STRONG_STYLE_AND_COMPOSITION,
    WEIGHT_TYPES,
    composition_ts,
    custom_weights,
    key_order,
    layer_weights,
    layers,
    swapped_ts,
)
from ipadapter_core.errors import IPAdapterError
from support import reference_unet, synth

BASES = {"SD1.5": "sd15", "SDXL": "sdxl"}


def block(processor: str) -> tuple[str, int]:
    """The block of "up_blocks.1.attentions.0..." in the numbering of the original UNets, which have three blocks to a level."""
    side, level, _, place = processor.split(".")[:4]
    if side == "mid_block":
        return "middle", 0
    return ("input", 3 * int(level) + 1 + int(place)) if side == "down_blocks" else ("output", 3 * int(level) + int(place))


@pytest.fixture(scope="module", params=BASES)
def base(request):
    return request.param


@pytest.fixture(scope="module")
def unet(base):
    with torch.device("meta"):
        return reference_unet.unet(BASES[base])


def test_keys_follow_diffusers_attention_processors(base, unet):
    """The number of a processor in diffusers' order is the number in the keys; only attn2, the odd ones, have an adapter."""
    found = {layer.key: layer for layer in layers(base)}
    for number, processor in enumerate(unet.attn_processors):
        *_, index, attention, _ = processor.split(".")
        assert (attention == "attn2") == (number in found)
        if number in found:
            assert (found[number].name, found[number].id, found[number].index) == (*block(processor), int(index))
    assert [layer.key for layer in layers(base)] == [number for number in range(len(unet.attn_processors)) if number % 2]
    assert len(found) == {"SD1.5": 16, "SDXL": 70}[base]


def test_the_adapter_fits_the_width_of_every_layer(base, unet):
    """Keys in this order have the widths of diffusers' layers: 320, 320, 640 ... 1280 at full size, a tenth of it here."""
    modules = dict(unet.named_modules())
    widths: Any = synth.TINY[BASES[base]]["dims"]
    for layer, processor in zip(layers(base), (name for name in unet.attn_processors if "attn2" in name), strict=True):
        assert modules[processor.removesuffix(".processor")].to_k.out_features == widths[layer.key // 2]


def test_depth_and_place_of_each_transformer(base):
    """t counts blocks in the order of execution, input, middle, output, each counted once however deep it is."""
    of_block = {}
    for layer in layers(base):
        of_block.setdefault((layer.name, layer.id), []).append(layer)
    for found in of_block.values():
        assert [layer.index for layer in found] == list(range(found[0].depth))
        assert len({(layer.t, layer.depth) for layer in found}) == 1
    executed = sorted(of_block, key=lambda block: (("input", "middle", "output").index(block[0]), block[1]))
    assert [of_block[block][0].t for block in executed] == list(range({"SD1.5": 16, "SDXL": 11}[base]))


def test_key_order_is_the_blocks_of_the_keys(base):
    assert key_order(base) == tuple((layer.name, layer.id, layer.index) for layer in layers(base))
    assert key_order(base)[-1] == ("middle", 0, {"SD1.5": 0, "SDXL": 9}[base])


# Curves at a weight of 2: {t: weight}. L = 16 (SD1.5) or 11 (SDXL), for instance ease in at t = 4: 2 (0.05 + 0.95 (1 - 4/16)) = 1.525.
CURVES = {
    ("SD1.5", "linear"): {0: 2, 4: 2, 6: 2, 15: 2},
    ("SD1.5", "ease in"): {0: 2, 4: 1.525, 8: 1.05, 15: 0.21875},
    ("SD1.5", "ease out"): {0: 0.1, 4: 0.575, 8: 1.05, 15: 1.88125},
    ("SD1.5", "ease in-out"): {0: 0.1, 4: 1.05, 8: 2, 15: 0.3375},
    ("SD1.5", "reverse in-out"): {0: 2, 4: 1.05, 8: 0.1, 15: 1.7625},
    ("SD1.5", "weak input"): {0: 0.4, 5: 0.4, 6: 2, 7: 2, 15: 2},
    ("SD1.5", "weak middle"): {0: 2, 5: 2, 6: 0.4, 7: 2, 15: 2},
    ("SD1.5", "weak output"): {0: 2, 5: 2, 6: 2, 7: 0.4, 15: 0.4},
    ("SD1.5", "strong middle"): {0: 0.4, 5: 0.4, 6: 2, 7: 0.4, 15: 0.4},
    ("SDXL", "linear"): {0: 2, 4: 2, 10: 2},
    ("SDXL", "ease in"): {0: 2, 5: 1.1363636363636, 10: 0.2727272727273},
    ("SDXL", "ease out"): {0: 0.1, 5: 0.9636363636364, 10: 1.8272727272727},
    ("SDXL", "ease in-out"): {0: 0.1, 5: 1.8272727272727, 10: 0.4454545454545},
    ("SDXL", "reverse in-out"): {0: 2, 5: 0.2727272727273, 10: 1.6545454545455},
    ("SDXL", "weak input"): {0: 0.4, 3: 0.4, 4: 2, 5: 2, 10: 2},
    ("SDXL", "weak middle"): {0: 2, 3: 2, 4: 0.4, 5: 2, 10: 2},
    ("SDXL", "weak output"): {0: 2, 3: 2, 4: 2, 5: 0.4, 10: 0.4},
    ("SDXL", "strong middle"): {0: 0.4, 3: 0.4, 4: 2, 5: 0.4, 10: 0.4},
}


@pytest.mark.parametrize(("base_", "weight_type"), CURVES)
def test_curves(base_, weight_type):
    found = layer_weights(base_, weight_type, 2)
    assert len(found) == {"SD1.5": 16, "SDXL": 11}[base_]
    for t, weight in CURVES[base_, weight_type].items():
        assert found[t] == pytest.approx(weight, rel=1e-12)


def each(ts, weight):
    return dict.fromkeys(ts, weight)


SD15_STYLE, SD15_STRONG = (0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15), (0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
SDXL_STRONG = (0, 1, 2, 4, 5, 6, 7, 8, 9, 10)
# At weight 2, weight_composition 3, boost 0.4 (None: not set); every layer that is not named here gets no image at all.
SETS = [
    ("SD1.5", "style transfer", None, each(SD15_STYLE, 2)),
    ("SD1.5", "composition", None, {4: 0.5, 5: 2}),
    ("SD1.5", "strong style transfer", None, each(SD15_STRONG, 2)),
    ("SD1.5", "style and composition", None, each(SD15_STYLE, 2) | {4: 0.75, 5: 3}),
    ("SD1.5", "style transfer precise", None, each(SD15_STYLE, 2) | {4: 0.5, 5: 2}),
    ("SD1.5", "style transfer precise", 0.4, each(SD15_STYLE, 2) | {4: 0.1, 5: 0.4}),
    ("SD1.5", "composition precise", None, each(SD15_STYLE, 2) | {4: 0.5, 5: 2} | each((6, 7, 8), 0.2)),
    ("SD1.5", "composition precise", 0.4, each(SD15_STYLE, 0.4) | {4: 0.5, 5: 2} | each((6, 7, 8), 0.04)),
    ("SD1.5", STRONG_STYLE_AND_COMPOSITION, None, each(SD15_STRONG, 2) | {4: 3, 5: 3}),
    ("SDXL", "style transfer", None, {6: 2}),
    ("SDXL", "composition", None, {3: 2}),
    ("SDXL", "strong style transfer", None, each(SDXL_STRONG, 2)),
    ("SDXL", "style and composition", None, {3: 3, 6: 2}),
    ("SDXL", STRONG_STYLE_AND_COMPOSITION, None, each(SDXL_STRONG, 2) | {3: 3}),
    ("SDXL", "style transfer precise", None, {3: 2, 6: 2}),
    ("SDXL", "style transfer precise", 0.4, {3: 0.4, 6: 2}),
    ("SDXL", "composition precise", None, each((0, 1, 2, 4, 5, 7, 8, 9, 10), 0.2) | {3: 2, 6: 2}),
    ("SDXL", "composition precise", 0.4, each((0, 1, 2, 4, 5, 7, 8, 9, 10), 0.04) | {3: 2, 6: 0.4}),
]


@pytest.mark.parametrize(("base_", "weight_type", "boost", "want"), SETS)
def test_sets(base_, weight_type, boost, want):
    found = layer_weights(base_, weight_type, 2, weight_composition=3, boost=boost)
    assert found.keys() == want.keys()
    assert found == pytest.approx(want, rel=1e-12)


def test_every_weight_type_is_held_against_numbers():
    for base_ in BASES:
        held = {case[1] for case in (*CURVES, *SETS) if case[0] == base_}
        assert held == {*WEIGHT_TYPES, STRONG_STYLE_AND_COMPOSITION}


def test_composition_weight_is_1_where_none_is_given():
    assert layer_weights("SDXL", "style and composition", 2) == {3: 1, 6: 2}


def test_unknown_weight_type(base):
    with pytest.raises(IPAdapterError, match=r"There is no weight type 'square'\. The weight types are: linear, ease in, "):
        layer_weights(base, "square", 1)


def test_where_the_precise_types_swap(base):
    layout = {"SD1.5": {4, 5}, "SDXL": {3}}[base]
    every = set(range({"SD1.5": 16, "SDXL": 11}[base]))
    assert composition_ts(base) == layout
    assert swapped_ts(base, "style transfer precise") == layout
    assert swapped_ts(base, "composition precise") == every - layout
    for weight_type in set(WEIGHT_TYPES) - {"style transfer precise", "composition precise"}:
        assert not swapped_ts(base, weight_type)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("3:1.0, 6:0.5", {3: 2, 6: 1}),
        ("0:0.3,\n2:-1.5 ,\n\n", {0: 0.6, 2: -3}),
        (" 10 : 0 \n", {10: 0}),
        ("3:1, 3:0.25", {3: 0.5}),
        ("", {}),
        (" ,\n, ", {}),
    ],
)
def test_custom_weights(text, want):
    assert custom_weights("SDXL", text, 2) == pytest.approx(want)


@pytest.mark.parametrize("part", ["3", "3:", ":1", "x:1", "3:x", "3:1:2", "1.5:1", "3=1"])
def test_custom_weights_that_cannot_be_read(base, part):
    with pytest.raises(IPAdapterError, match=f"layer_weights has a part that cannot be read: '{part}'. Write layer:weight pairs"):
        custom_weights(base, f"0:1, {part} ,2:1", 1)


@pytest.mark.parametrize(("base_", "t", "last"), [("SD1.5", 16, 15), ("SD1.5", -1, 15), ("SDXL", 11, 10), ("SDXL", -1, 10)])
def test_custom_weights_for_a_layer_that_is_not_there(base_, t, last):
    with pytest.raises(IPAdapterError, match=f"layer_weights names layer {t}, but {base_} has layers 0 to {last}."):
        custom_weights(base_, f"{t}:1", 1)
    assert custom_weights(base_, f"0:1, {last}:1", 1) == {0: 1, last: 1}
