"""Values that are not numbers never reach the picture: the sentence says whose they are."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from support import lab, plain, synth


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture(scope="module")
def half(pack, comfy):
    return lab.unet("sd15", dtype=torch.float16)


def adapter_with(key, largest):
    """The small adapter with one tensor (a part's name and a key) scaled to a largest value; every number is finite."""
    state = {part: dict(tensors) for part, tensors in synth.adapter("base", "sd15").items()}
    part, name = key.split("/")
    state[part][name] = state[part][name] / state[part][name].abs().max() * largest
    assert state[part][name].isfinite().all()
    return state


@pytest.mark.parametrize(
    ("key", "largest"),
    [
        ("image_proj/proj.weight", 3e38),
        ("image_proj/norm.weight", 3e38),
        ("ip_adapter/5.to_v_ip.weight", 3e38),
        ("ip_adapter/5.to_k_ip.weight", 1e9),
    ],
)
def test_a_damaged_file_is_named(small, half, comfy, key, largest):
    """Finite weights, yet the sums over them are not, or would not be in a layer: as bits that are flipped in an exponent make them."""
    state = adapter_with(key, largest)
    path = comfy / "models" / "ipadapter" / "flipped_sd15.safetensors"
    save_file({f"{part}.{name}": tensor.contiguous() for part, tensors in state.items() for name, tensor in tensors.items()}, path)
    try:
        adapter = lab.call(small.pack["IPAdapterModelLoader"], ipadapter_file=path.name)[0]
        for model in (None, None, half):  # nothing of it is remembered
            with pytest.raises(ValueError, match=r"flipped_sd15\.safetensors is damaged: .*Download the file again"):
                small.apply(model, ipadapter=adapter)
    finally:
        path.unlink()


def test_too_large_for_fp16_is_no_damage(small, half):
    """V beyond 65504: fine in a model that computes in fp32, told where it computes in fp16, with what to do."""
    adapter = adapter_with("ip_adapter/5.to_v_ip.weight", 1.5e4)
    assert small.out(small.apply(ipadapter=adapter, weight=1e-6)).isfinite().all()
    with pytest.raises(ValueError, match=r"too large for float16, .*--bf16-unet or --fp32-unet"):
        small.apply(half, ipadapter=adapter)
    small.apply(half)  # an adapter with the usual values works there


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_encoded_pictures_that_are_no_numbers_are_not_the_files_fault(small, value):
    bad = torch.ones(1, 1024)
    bad[0, 7] = value
    embeds = dict(model=small.unet, ipadapter=small.adapter, weight=1.0, weight_type="linear", start_at=0.0, end_at=1.0)
    sentence = "encoded pictures or faces that .* is given have values that are not numbers"
    at_the_input = r"The (pos|neg)_embed input has values that are not numbers"
    for sides in (dict(pos_embed=bad), dict(pos_embed=torch.ones(1, 1024), neg_embed=bad)):
        with pytest.raises(ValueError, match=f"{sentence}|{at_the_input}"):
            lab.call(small.pack["IPAdapterEmbeds"], **embeds, **sides)
    encoder = SimpleNamespace(encode_image=lambda image: {"image_embeds": bad})
    with pytest.raises(ValueError, match=sentence):
        small.apply(clip_vision=encoder)
