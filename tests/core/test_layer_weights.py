"""Names of layers and scale dictionaries, against diffusers' own reading of the dictionaries and its own modules' names."""

from itertools import product

import pytest
import torch
from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales

from ipadapter_core.adapter.layers import layer_weights, layers
from ipadapter_core.errors import IPAdapterError
from ipadapter_core.weights.block_weights import SPREADS
from ipadapter_core.weights.layer_weights import PRESETS, shares_of
from support import reference_unet

BASES = {"sd15": "SD1.5", "sdxl": "SDXL"}
DICTIONARIES = [
    ("sdxl", {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}),
    ("sdxl", {"up": {"block_0": [0.0, 1.0, 0.0]}}),
    ("sdxl", {"down": 0.5, "mid": 0.3, "up": {"block_0": 0.7, "block_1": [0.1, 0.2, 0.4]}}),
    ("sd15", {"down": {"block_0": 0.9, "block_2": [0.2, 0.3]}, "mid": [0.4], "up": {"block_1": [0, 0, 0.9], "block_3": [0.6]}}),
    ("sd15", {"mid": 1}),
    ("sd15", {}),
]


@pytest.fixture(scope="module")
def unets():
    with torch.device("meta"):
        return {arch: reference_unet.unet(arch) for arch in BASES}


def by_diffusers(unet, scales):
    """{t: scale} as set_ip_adapter_scale gives it to each attention processor."""
    (expanded,) = _maybe_expand_lora_scales(unet, [scales], default_scale=0.0)
    found = {}
    base = next(base for arch, base in BASES.items() if len(list(unet.attn_processors)) == 2 * len(layers(base)))
    names = list(unet.attn_processors)
    for layer in layers(base):
        for key, scale in expanded.items():
            if names[layer.key].startswith(key):
                found[layer.t] = scale
    return found


@pytest.mark.parametrize(("arch", "scales"), DICTIONARIES, ids=str)
def test_scale_dictionaries_as_diffusers_reads_them(unets, arch, scales):
    want = {t: scale for t, scale in by_diffusers(unets[arch], scales).items() if scale}
    for given in (scales, str(scales), str(scales).replace("'", '"')):
        assert {t: share for t, share in shares_of(BASES[arch], given).items() if share} == want


@pytest.mark.parametrize("arch", BASES)
def test_names_of_blocks_are_diffusers(unets, arch):
    """Every block and layer of diffusers' UNet by its own number, and nothing else but it."""
    base, names, seen = BASES[arch], list(unets[arch].attn_processors), set()
    for layer in layers(base):
        parts = names[layer.key].split(".")  # down_blocks.1.attentions.0.transformer_blocks..., mid_block.attentions.0...
        if parts[0] == "mid_block":
            name = "middle"
        else:
            name = f"{parts[0].removesuffix('_blocks')} {parts[1]}.{parts[3]}"
        assert {t for t, share in shares_of(base, f"{name}: 0.5").items() if share == 0.5} == {layer.t}
        seen.add(layer.t)
    assert len(seen) == len(shares_of(base, "everything"))


@pytest.mark.parametrize("base", BASES.values())
def test_presets_and_then_changes(base):
    for preset in set(PRESETS) - set(SPREADS):
        kind = {"everything": "linear", "style": "style transfer", "layout": "composition"}.get(preset, preset)
        assert shares_of(base, preset) == layer_weights(base, kind, 1.0)
    assert shares_of(base, "") == shares_of(base, "everything") == dict.fromkeys(range(len(shares_of(base, ""))), 1.0)
    style, layout = shares_of(base, "style"), shares_of(base, "layout")
    assert shares_of(base, "style, layout: 0.5") == style | {t: 0.5 * share for t, share in layout.items()}
    assert shares_of(base, "STYLE,\n style: 1.2 ,up 1: -0.5")[next(iter(style))] in (1.2, -0.5)


def test_presets_that_every_base_has():
    """By the place in the order of execution: the middle block of SD1.5 is its 7th of 16, that of SDXL its 5th of 11."""
    assert set(shares_of("SD1.5", "first half")) == set(range(8)) and set(shares_of("SD1.5", "second half")) == set(range(8, 16))
    assert set(shares_of("SDXL", "first half")) == set(range(6)) and shares_of("SDXL", "first half")[4] == 1.0
    assert shares_of("SDXL", "ramp down") == {t: pytest.approx(1 - t / 11) for t in range(11)}
    assert shares_of("SD1.5", "ramp up, middle: 0") == {t: pytest.approx((t + 1) / 16 if t != 6 else 0) for t in range(16)}


def test_by_side_block_and_resolution():
    shares = shares_of("SD1.5", "down: 2, up 1: 3, mid: 4, 1/2: 5, up 1/4: 6")
    found = [shares[t] for t in range(16)]  # input 1 2 4 5 7 8, middle, output 3 to 11
    assert found == [2, 2, 5, 5, 2, 2, 4, 6, 6, 6, 5, 5, 5, 1, 1, 1]


@pytest.mark.parametrize(
    ("base", "given", "words"),
    [
        ("SD1.5", {"up": {"block_0": 1.0}}, "SD1.5 has no up 'block_0'.*block_1, block_2, block_3"),
        ("SDXL", '{"down": {"block_0": 1.0}}', "SDXL has no down 'block_0'.*block_1, block_2"),
        ("SDXL", {"up": {"block_0": [1.0, 0.0]}}, "up block_0 of SDXL has 3 layers, and the scale dictionary has 2 numbers"),
        ("SDXL", {"sideways": 1.0}, "down, mid and up, and this one has 'sideways'"),
        ("SDXL", {"mid": {"block_0": 1.0}}, "mid must be a number"),
        ("SDXL", {"down": "much"}, "must be a number"),
        ("SDXL", "{'down': 1", "cannot be read"),
        ("SDXL", "{'down': print(1)}", "more than names and numbers"),
        ("SDXL", "{1, 2}", "no dictionary"),
        ("SDXL", "{[]: 2}", "cannot be read"),
        ("SDXL", "up 2: 1", "SDXL has no block 'up 2'.*down 1, 2, middle, up 0, 1"),
        ("SD1.5", "1/16: 1", "SD1.5 has no block '1/16'"),
        ("SD1.5", "3: 1", "SD1.5 has no block '3'"),
        ("SD1.5", "sideways: 1", "no layers named 'sideways'"),
        ("SD1.5", "down: much", "cannot be read: 'down: much'"),
        ("SD1.5", "style, layout", "cannot be read: 'layout'"),
        ("SD1.5", "stile", "no preset 'stile'"),
        ("SD1.5", "double 0-5: 0", "no layers named 'double 0-5': SD1.5 has down 0, 1, 2, middle, up 1, 2, 3"),
        ("SD1.5", ": 1", "no layers named ''"),
        ("SD1.5", "down: inf", "must be a number"),
        ("SD1.5", 3, "must be text"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_layers_give_a_sentence(base, given, words):
    with pytest.raises(IPAdapterError, match=words):
        shares_of(base, given)


def test_no_preset_swaps_sides():
    assert not [name for name, word in product(PRESETS, ["precise"]) if word in name]
