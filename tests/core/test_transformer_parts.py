"""Parts of the transformer families: time resampler and pooling head against their publishers' classes, weights of blocks."""

import pytest
import torch

from ipadapter_core.adapter import projection
from ipadapter_core.adapter.layers import CURVES, WEIGHT_TYPES, layer_weights, layers
from ipadapter_core.adapter.pooling import PREFIX, head_of, pooled
from ipadapter_core.adapter.projection import build_projection
from ipadapter_core.errors import IPAdapterError
from ipadapter_core.weights.block_weights import BLOCK_PRESETS
from ipadapter_core.weights.layer_weights import shares_of
from support import shapes, synth

FP32 = 2e-6  # two ways of writing one formula in float32, through four layers


def distance(got, want):
    assert got.shape == want.shape
    return float((got - want).norm() / want.norm())


def time_resampler(width=128, features=40, out=96, tokens=6):
    sizes = shapes.resampler("", width, features, out, width, tokens)
    sizes |= shapes.linear("time_embedding.linear_1", width, 320) | shapes.linear("time_embedding.linear_2", width, width)
    for i in range(4):
        sizes |= shapes.linear(f"layers.{i}.2.1", 4 * width, width)
    found = {}
    for key, shape in sizes.items():
        norm = len(shape) == 1 and key.endswith("weight")
        found[key] = synth.noise(key, shape, 0.3 if len(shape) == 1 else 1.7 / shape[-1] ** 0.5) + norm
    return found


@pytest.mark.parametrize("timestep", [999.0, 417.5, 3.0])
def test_the_time_resampler_is_diffusers(timestep):
    from diffusers.loaders.transformer_sd3 import SD3Transformer2DLoadersMixin

    sd = time_resampler()
    theirs = SD3Transformer2DLoadersMixin()._convert_ip_adapter_image_proj_to_diffusers(dict(sd), low_cpu_mem_usage=False)
    ours = build_projection("time_resampler", sd)
    features, time = synth.noise("features", (2, 9, 40), 1.5), torch.tensor([timestep])
    with torch.no_grad():
        tokens, embedding = theirs(features, time.expand(2))
        found = ours.time(time)
        assert distance(found.expand(2, -1), embedding) < FP32
        assert distance(ours(features, found), tokens) < FP32


def test_the_pooled_projection_in_parts(monkeypatch):
    """A weight that is cast in parts, the last of them smaller: as the same projection of faces does it whole."""
    monkeypatch.setattr(projection, "AT_ONCE", 100)
    sd = {}
    for key, out, wide in (("proj.0", 80, 40), ("proj.2", 4 * 96, 80)):
        synth.linear(sd, key, out, wide)
    synth.norm(sd, "norm", 96)
    features = synth.noise("features", (3, 40), 1.5)
    with torch.no_grad():
        assert distance(build_projection("pooled", sd)(features), build_projection("faceid", sd)(features)) < FP32


def test_the_pooling_head_is_that_of_transformers():
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    torch.manual_seed(0)
    config = SiglipVisionConfig(hidden_size=64, intermediate_size=96, num_attention_heads=16, hidden_act="gelu_pytorch_tanh")
    theirs = SiglipMultiheadAttentionPoolingHead(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    sd = {PREFIX + key: value for key, value in theirs.state_dict().items()}
    tokens = synth.noise("tokens", (3, 20, 64), 1.0)
    ours = head_of(sd)
    assert ours is not None
    with torch.no_grad():
        assert distance(pooled(ours, tokens), theirs(tokens)) < FP32
    assert head_of({key: value for key, value in sd.items() if not key.endswith("probe")}) is None


def test_the_blocks_of_the_transformers():
    assert [len(layers(base)) for base in ("Flux", "Flux double", "SD3.5")] == [57, 19, 38]
    assert [(block.name, block.id) for block in layers("Flux")[17:21]] == [("double", 17), ("double", 18), ("single", 0), ("single", 1)]
    assert layers("Flux double") == layers("Flux")[:19]
    assert {block.level for block in layers("Flux")} == {1}  # patches of 2 x 2


def test_presets_of_blocks():
    shares = {preset: shares_of("Flux", preset) for preset in BLOCK_PRESETS}
    assert shares["everything"] == dict.fromkeys(range(57), 1.0)
    assert shares["double"] == dict.fromkeys(range(19), 1.0) and shares["single"] == dict.fromkeys(range(19, 57), 1.0)
    assert set(shares["first half"]) == set(range(29)) and set(shares["second half"]) == set(range(29, 57))
    assert [shares["ramp up"][t] for t in (0, 56)] == [1 / 57, 1.0] and shares["ramp down"][0] == 1.0
    assert set(shares_of("SD3.5", "first half")) == set(range(19))
    assert all(shares[name] == layer_weights("Flux", name, 1.0) for name in CURVES)


def test_blocks_by_name_and_number():
    assert shares_of("Flux", "everything, single: 0, double 0-17: 0, 18: 0.5") == {18: 0.5}
    assert shares_of("Flux", "single, single 1-37: 0, single 0: 0.25") == {19: 0.25}
    assert shares_of("Flux double", "double, 0: 0.5")[0] == 0.5


@pytest.mark.parametrize(("base", "text", "says"), [
    ("Flux", "style", "no preset 'style' for Flux"),
    ("Flux", "double 19: 1", "no block 'double 19' that this adapter acts in: it has double 0 to 18 and single 0 to 37"),
    ("Flux double", "single 0: 1", "it has double 0 to 18"),
    ("Flux", "up 0: 1", "no blocks named 'up 0' in Flux: it has double 0 to 18 and single 0 to 37. Down, middle and up"),
    ("Flux double", "middle: 1", "no blocks named 'middle' in Flux: it has double 0 to 18. Down, middle and up are blocks of UNets"),
    ("SD3.5", "dubble 3: 1", "no blocks named 'dubble 3' in SD3.5: it has double 0 to 37. Write"),
    ("Flux", "double: x", "cannot be read: 'double: x'"),
    ("SD3.5", {"up": 1.0}, "names a UNet's blocks"),
    ("SD3.5", '{"up": 1.0}', "names a UNet's blocks"),
])  # fmt: skip
def test_what_cannot_be_read(base, text, says):
    with pytest.raises(IPAdapterError) as error:
        shares_of(base, text)
    assert says in str(error.value)


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_weight_types_of_a_unet_are_refused(weight_type):
    if weight_type in CURVES:
        assert len(layer_weights("SD3.5", weight_type, 1.0)) == 38
    else:
        with pytest.raises(IPAdapterError, match=f"'{weight_type}' is made of blocks that UNets have, and SD3.5 is a transformer"):
            layer_weights("SD3.5", weight_type, 1.0)
