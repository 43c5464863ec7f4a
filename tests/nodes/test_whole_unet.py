"""Whole UNets: diffusers' UNet with its own IP-Adapter against ComfyUI's UNet of the same weights with this pack's, middle block on.

Two implementations of one network in float32 differ by rounding. Measured beside the size of what the adapter changes: at most 4e-6,
and 1.3e-5 where the adapter is on two layers only and changes little. SDXL's layout takes long, so it runs what it alone can show.
"""

from types import SimpleNamespace

import pytest
import torch

from support import reference_unet, synth
from support.whole_unet import Pair, comfyui_noise, diffusers_noise, error, load

BASES = {"sd15": "SD1.5", "sdxl": "SDXL"}
RELATIVE = 5e-5


@pytest.fixture(scope="module")
def host(pack):
    from ipadapter_pack.ipadapter_core.adapter import layers, masks
    from ipadapter_pack.nodes.host.apply import project
    from ipadapter_pack.nodes.host.load import adapter

    apply, how = project.apply_features, project.Settings
    return SimpleNamespace(as_adapter=adapter.as_adapter, apply=apply, Settings=how, layers=layers, masks=masks)


def features(family, tag, count=1):
    """What an encoder would give for `count` pictures: its projected embedding, or all its tokens."""
    shape = {"base": (1024,), "base_vit_g": (1280,), "plus": (257, 1280)}[family]
    return synth.noise(f"features {family} {tag}", (count, *shape), 1.5)


@pytest.fixture(scope="module")
def pairs(comfy):
    return {arch: Pair(arch) for arch in BASES}


@pytest.fixture
def pair(pairs, arch):
    return pairs[arch]


@pytest.fixture
def both(host, pair):
    """both(families, scales, ...) -> (ComfyUI's with this pack, diffusers') predictions with the adapters at these scales."""

    def run(families, scales, diffusers_scales=None, count=1, **settings):
        images, patched = [], pair.model
        for i, (family, scale) in enumerate(zip(families, scales, strict=True)):
            sides = features(family, f"positive {i}", count), features(family, f"negative {i}", count)
            images.append(sides)
            how = host.Settings(**{"weight": scale, "middle": True, **settings})
            patched = host.apply(patched, host.as_adapter(pair.file(family)), sides[:1], sides[1:], how)
        load(pair.reference, [pair.file(family) for family in families])
        pair.reference.set_ip_adapter_scale(diffusers_scales or list(scales))
        return comfyui_noise(patched, pair.arch), diffusers_noise(pair.reference, pair.model, pair.arch, images)

    yield run
    pair.reference.unload_ip_adapter()


sd15_only = pytest.mark.parametrize("arch", ["sd15"])
both_archs = pytest.mark.parametrize("arch", BASES)


@both_archs
def test_the_two_unets_are_the_same_without_an_adapter(pair):
    want = diffusers_noise(pair.reference, pair.model, pair.arch)
    for side, noise in pair.plain.items():
        assert (noise - want[side]).norm() / want[side].norm() < RELATIVE


@pytest.mark.parametrize(("arch", "families"), [("sd15", ("plus",)), ("sd15", ("plus", "base")), ("sdxl", ("base", "base_vit_g"))], ids=str)
def test_same_prediction_as_diffusers(both, pair, families):
    got, want = both(families, (0.8, 0.5)[: len(families)])
    assert error(got, want, pair.plain) < RELATIVE


@sd15_only
@pytest.mark.parametrize("count", [1, 3])
def test_several_pictures_stand_in_one_attention(both, pair, count):
    got, want = both(("base",), (0.8,), count=count)
    assert error(got, want, pair.plain) < RELATIVE


@sd15_only
def test_the_sides_get_their_own_tokens(host, pair):
    """A positive picture on both sides gives another negative prediction and the same positive one."""
    positive, negative = features("plus", "positive 0"), features("plus", "negative 0")
    adapter, how = host.as_adapter(pair.file("plus")), host.Settings(middle=True)
    got = comfyui_noise(host.apply(pair.model, adapter, (positive,), (negative,), how), pair.arch)
    same = comfyui_noise(host.apply(pair.model, adapter, (positive,), (positive,), how), pair.arch)
    assert torch.equal(got["positive"], same["positive"])
    assert (got["negative"] - same["negative"]).norm() > 0.01 * got["negative"].norm()


@sd15_only
def test_scale_0_is_exactly_off(both, pair):
    got, want = both(("plus",), (0.0,))
    for side, noise in pair.plain.items():
        assert torch.equal(got[side], noise)
        assert (noise - want[side]).norm() / want[side].norm() < RELATIVE


@sd15_only
def test_one_of_two_adapters_off(both, pair):
    got, want = both(("plus", "base"), (0.7, 0.0))
    assert error(got, want, pair.plain) < RELATIVE


@both_archs
def test_without_the_middle_block(both, pair):
    """As the established node ids have it: in diffusers, blocks that a scale for each block does not name are off."""
    got, want = both(("base",), (0.8,), {"down": 0.8, "up": 0.8}, middle=False)
    assert error(got, want, pair.plain) < RELATIVE


@sd15_only
def test_the_middle_block_matters(both, pair):
    got, want = both(("plus",), (0.8,), {"down": 0.8, "up": 0.8})
    assert error(got, want, pair.plain) > 10 * RELATIVE


STYLES = [  # diffusers' scales for InstantStyle, as its documentation has them for SDXL; the same blocks of SD1.5
    ("sdxl", "style and composition", {"down": {"block_2": [0.0, 0.9]}, "up": {"block_0": [0.0, 0.9, 0.0]}}),
    ("sd15", "composition", {"down": {"block_2": [0.225, 0.9]}}),
    ("sd15", "style transfer", {"down": {"block_0": 0.9, "block_1": 0.9}, "up": {"block_1": [0, 0, 0.9], "block_2": 0.9, "block_3": 0.9}}),
]


@pytest.mark.parametrize(("arch", "weight_type", "scales"), STYLES)
def test_styles_as_diffusers_scales_of_blocks(both, pair, weight_type, scales):
    got, want = both(("base",), (0.9,), scales, weight_type=weight_type, weight_composition=0.9)
    assert error(got, want, pair.plain) < RELATIVE


@both_archs
def test_keys_by_comfyuis_own_table_of_names(host, pair, arch):
    """diffusers numbers the attentions, ComfyUI's converter names each in its own UNet: the adapter's key must land there."""
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(pair.model.model.model_config.unet_config)
    with torch.device("meta"):
        processors = list(reference_unet.unet(arch).attn_processors)
    for layer in host.layers.layers(BASES[arch]):
        place = "middle_block" if layer.name == "middle" else f"{layer.name}_blocks.{layer.id}"
        module = processors[layer.key].removesuffix(".processor")
        assert names[f"{module}.to_k.weight"] == f"{place}.1.transformer_blocks.{layer.index}.attn2.to_k.weight"


@both_archs
@pytest.mark.parametrize("size", [(7, 13), (9, 5), (16, 8)])
def test_places_and_token_grids_in_the_real_unet(host, pair, arch, size):
    """transformer_index of each block and the grid of its tokens, as ComfyUI reports them to patches while it runs."""
    seen = {}

    def spy(n, context, value, options):
        shape = tuple(options["activations_shape"][-2:])
        assert n.shape[1] == shape[0] * shape[1]
        seen[(*options["block"], options["block_index"])] = options["transformer_index"], shape
        return n, context, value

    spied = pair.model.clone()
    spied.set_model_attn2_patch(spy)
    comfyui_noise(spied, arch, size)
    for layer in host.layers.layers(BASES[arch]):
        assert seen.pop((layer.name, layer.id, layer.index)) == (layer.t, host.masks.level_size(*size, layer.level))
    assert not seen


@sd15_only
def test_a_full_mask_on_a_very_narrow_latent(host, pair):
    """512 x 32 pixels: at the deepest level the formula for the grid asks for more rows than there are tokens."""
    sides, adapter = (features("base", "positive 0"), features("base", "negative 0")), host.as_adapter(pair.file("base"))
    plain, masked = (
        host.apply(pair.model, adapter, sides[:1], sides[1:], host.Settings(middle=True, mask=mask))
        for mask in (None, torch.ones(1, 16, 16))
    )
    want, got = comfyui_noise(plain, pair.arch, (64, 4)), comfyui_noise(masked, pair.arch, (64, 4))
    assert all((got[side] - want[side]).norm() / want[side].norm() < RELATIVE / 10 for side in want)
