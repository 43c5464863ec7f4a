"""SigLIP in ComfyUI, with the pooling head that ComfyUI leaves out, against transformers' of the same weights (two layers, full width).

ComfyUI's layer norms have an epsilon of 1e-5 where SigLIP's have 1e-6: what comes out differs by less than a thousandth.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from support import lab

CLOSE = 1e-3


@pytest.fixture(scope="module")
def reference():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    sizes = dict(hidden_size=1152, intermediate_size=4304, num_attention_heads=16, image_size=384, patch_size=14)
    model = SiglipVisionModel(SiglipVisionConfig(num_hidden_layers=2, hidden_act="gelu_pytorch_tanh", **sizes)).eval()
    with torch.no_grad():
        model.vision_model.head.probe.normal_()
    return model


@pytest.fixture
def encoder(comfy, reference, tmp_path):
    """ComfyUI's model of it, as Load CLIP Vision would give it, and its file in the clip_vision folder."""
    import comfy.clip_vision

    config = dict(
        num_channels=3, hidden_act="gelu_pytorch_tanh", hidden_size=1152, image_size=384, intermediate_size=4304, patch_size=14,
        model_type="siglip_vision_model", num_attention_heads=16, num_hidden_layers=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = comfy.clip_vision.ClipVisionModel(str(tmp_path / "config.json"))
    state = {key: value.contiguous() for key, value in reference.state_dict().items()}
    missing, _ = model.load_sd(dict(state))
    assert not missing
    model.model.to(torch.float32)
    return model, state


@pytest.fixture
def folder(comfy):
    path = comfy / "models" / "clip_vision"
    path.mkdir(parents=True, exist_ok=True)
    before = set(path.iterdir())
    yield path
    for one in set(path.iterdir()) - before:
        one.unlink()


@pytest.fixture
def host(pack):
    from ipadapter_pack.ipadapter_core.errors import IPAdapterError
    from ipadapter_pack.ipadapter_core.files import encoders
    from ipadapter_pack.nodes.host.pictures import encoder

    return encoder, encoders, IPAdapterError


def distance(got, want):
    assert got.shape == want.shape
    return float((got - want).norm() / want.norm())


def test_features_are_those_of_transformers(host, encoder, folder, reference):
    encode, names, _ = host
    model, state = encoder
    other = {**state, "vision_model.post_layernorm.weight": state["vision_model.post_layernorm.weight"] + 1}
    other["vision_model.head.probe"] = state["vision_model.head.probe"] * -3
    save_file(other, folder / "another.safetensors")
    save_file(state, folder / "siglip.safetensors")
    picture = lab.images(2, 384, 384)
    with torch.no_grad():
        want = reference(pixel_values=(picture.movedim(-1, 1) * 255).round() / 255 * 2 - 1, output_hidden_states=True)
    assert distance(encode.encode(model, picture, names.POOLED), want.pooler_output) < CLOSE
    assert distance(encode.encode(model, picture, names.HIDDEN), want.hidden_states[-2]) < CLOSE


def test_a_file_without_the_head_is_not_enough(host, encoder, folder):
    encode, names, IPAdapterError = host
    model, state = encoder
    save_file({key: value for key, value in state.items() if ".head." not in key}, folder / "headless.safetensors")
    with pytest.raises(IPAdapterError, match=r"pooling head of SigLIP.*sigclip_vision_patch14_384\.safetensors"):
        encode.encode(model, lab.images(1, 384, 384), names.POOLED)


def test_another_encoder_is_named_with_both_widths(host, world):
    encode, names, IPAdapterError = host
    with pytest.raises(IPAdapterError, match=r"needs the image encoder SigLIP-so400m \(1152 wide\), .* is ViT-H \(1280 wide\)"):
        encode.check_encoder(names.needed(names.POOLED, 1152), world.cv["h"], "it")
