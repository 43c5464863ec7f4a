"""The projections against diffusers' own classes on the same weights, whose keys diffusers' own loader translates.

Compared in float64, where two ways of writing one formula agree to about 1e-14; 1e-11 leaves room for four layers of sums.
"""

from functools import partial

import pytest
import torch
from diffusers.loaders import unet as diffusers_loader
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterFaceIDImageProjection,
    IPAdapterFaceIDPlusImageProjection,
    IPAdapterFullImageProjection,
    IPAdapterPlusImageProjection,
)

from ipadapter_core.adapter.projection import build_projection
from support import shapes

EXACT = 1e-11


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights(sizes, dtype=torch.float64):
    """Tensors of the sizes {name: shape}, scaled so that no layer saturates; a norm's weights are about 1, none of them 1."""
    found = {}
    for seed, (key, shape) in enumerate(sizes.items()):
        value = random(*shape, seed=seed)
        if len(shape) == 1:
            value = 0.2 * value + (1 if key.endswith("weight") else 0)
        elif "latents" not in key:
            value = 1.7 * value / shape[-1] ** 0.5
        found[key] = value.to(dtype)
    return found


def diffusers_projection(sd):
    """diffusers' module for an image_proj of published keys, by its loader."""
    loader = diffusers_loader.UNet2DConditionLoadersMixin()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return loader._convert_ip_adapter_image_proj_to_diffusers(sd, low_cpu_mem_usage=False)
    finally:
        torch.set_default_dtype(before)


def distance(got, want):
    assert got.shape == want.shape
    with torch.no_grad():
        return float((got - want).norm() / want.norm())


LINEAR = shapes.linear("proj", 4 * 48, 40) | shapes.norm("norm", 48)
MLP = shapes.linear("proj.0", 40, 40) | shapes.linear("proj.2", 48, 40) | shapes.norm("proj.3", 48)
PLUS = shapes.resampler("", 96, 40, 48, 128)
KOLORS = shapes.resampler("", 192, 40, 192, 768)
UNNORM = shapes.resampler("", 128, 512, 48, 128)
FACES = shapes.linear("proj.0", 64, 32) | shapes.norm("norm", 48)
FACE_PLUS = (
    shapes.linear("proj.0", 64, 32) | shapes.norm("norm", 128) | shapes.resampler("perceiver_resampler.", 128, 40, 128, 128, tokens=0)
)

ONE_INPUT = {
    "standard": ("linear", LINEAR, (3, 40), ImageProjection, 4),
    "full-face, all encoder tokens": ("mlp", MLP, (2, 257, 40), IPAdapterFullImageProjection, 257),
    "plus, inner width of its own": ("resampler", PLUS, (2, 50, 40), IPAdapterPlusImageProjection, 16),
    "plus, 9 latents": ("resampler", PLUS | {"latents": (1, 9, 96)}, (2, 17, 40), IPAdapterPlusImageProjection, 9),
    "Kolors plus, 12 heads in any width": ("resampler", KOLORS, (1, 20, 40), IPAdapterPlusImageProjection, 16),
    "portrait unnorm, one face embedding": ("resampler", UNNORM, (2, 1, 512), IPAdapterPlusImageProjection, 16),
    "FaceID": ("faceid", FACES | shapes.linear("proj.2", 4 * 48, 64), (3, 32), IPAdapterFaceIDImageProjection, 4),
    "portrait": ("faceid", FACES | shapes.linear("proj.2", 16 * 48, 64), (5, 32), IPAdapterFaceIDImageProjection, 16),
}


@pytest.mark.parametrize("name", ONE_INPUT)
def test_same_tokens_as_diffusers(name):
    kind, sizes, shape, cls, tokens = ONE_INPUT[name]
    sd = weights(sizes)
    features = random(*shape, seed=100)
    reference = diffusers_projection(sd)
    assert type(reference) is cls
    got = build_projection(kind, sd)(features)
    assert got.shape[:2] == (shape[0], tokens)
    assert distance(got, reference(features)) < EXACT


def test_the_number_of_tokens_is_read_from_the_file():
    """diffusers' loader takes four for granted; its class does not."""
    sd = weights(LINEAR | shapes.linear("proj", 7 * 48, 40))
    reference = ImageProjection(40, 48, 7).double()
    reference.load_state_dict({key.replace("proj", "image_embeds"): value for key, value in sd.items()})
    features = random(2, 40, seed=100)
    assert distance(build_projection("linear", sd)(features), reference(features)) < EXACT


@pytest.mark.parametrize("tokens", [4, 6])
@pytest.mark.parametrize(("shortcut", "scale"), [(False, 1.0), (False, 0.3), (True, 1.0), (True, 0.3), (True, 2.0), (True, 0.0)])
def test_faceid_plus_as_diffusers(monkeypatch, tokens, shortcut, scale):
    """v1 and v2; six tokens are Kolors', which diffusers' class has and its loader does not."""
    monkeypatch.setattr(
        diffusers_loader, "IPAdapterFaceIDPlusImageProjection", partial(IPAdapterFaceIDPlusImageProjection, num_tokens=tokens)
    )
    sd = weights(FACE_PLUS | shapes.linear("proj.2", tokens * 128, 64))
    faces, features = random(3, 32, seed=100), random(3, 20, 40, seed=101)
    reference = diffusers_projection(sd)
    reference.clip_embeds, reference.shortcut, reference.shortcut_scale = features[:, None], shortcut, scale
    got = build_projection("faceid_plus", sd)(faces, features, shortcut=shortcut, scale=scale)
    assert got.shape == (3, tokens, 128)
    assert distance(got, reference(faces)) < EXACT


def test_faceid_plus_is_v1_where_nothing_is_said():
    module = build_projection("faceid_plus", weights(FACE_PLUS | shapes.linear("proj.2", 4 * 128, 64)))
    faces, features = random(1, 32, seed=100), random(1, 20, 40, seed=101)
    assert torch.equal(module(faces, features), module(faces, features, shortcut=False, scale=0.5))


@pytest.mark.parametrize("name", ONE_INPUT)
def test_float32_rounding(name):
    """Measured: at most 1.4e-6 beside float64. 5e-6 leaves room for other BLAS libraries."""
    kind, sizes, shape, _, _ = ONE_INPUT[name]
    sd = weights(sizes)
    features = random(*shape, seed=100)
    exact = build_projection(kind, sd)(features)
    got = build_projection(kind, {key: value.float() for key, value in sd.items()})(features.float())
    assert got.dtype == torch.float32
    assert distance(got.double(), exact) < 5e-6


KINDS = {
    "linear": LINEAR,
    "mlp": MLP,
    "resampler": PLUS,
    "faceid": FACES | shapes.linear("proj.2", 4 * 48, 64),
    "faceid_plus": FACE_PLUS | shapes.linear("proj.2", 4 * 128, 64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_built_on_the_given_tensors_themselves(kind):
    """No copy, no random number, every name used, the file's dtypes kept even where they are mixed."""
    sd = weights(KINDS[kind], torch.float16)
    sd |= {key: value.float() for key, value in sd.items() if key.startswith(("proj", "norm"))}
    before = torch.get_rng_state()
    module = build_projection(kind, sd)
    assert torch.equal(torch.get_rng_state(), before)
    built = module.state_dict()
    assert built.keys() == sd.keys()
    for key, value in sd.items():
        assert built[key].data_ptr() == value.data_ptr()
        assert built[key].dtype == value.dtype
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_layers_can_be_of_another_make():
    """`operations` names the classes of the linear layers and norms, as ComfyUI's casting ones."""

    class Operations:
        class Linear(torch.nn.Linear):
            pass

        class LayerNorm(torch.nn.LayerNorm):
            pass

    for kind, sizes in KINDS.items():
        module = build_projection(kind, weights(sizes), Operations)
        leaves = [m for m in module.modules() if isinstance(m, (torch.nn.Linear, torch.nn.LayerNorm))]
        assert leaves
        assert all(type(leaf) in (Operations.Linear, Operations.LayerNorm) for leaf in leaves)
