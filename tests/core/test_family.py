"""What a checkpoint is, from the full-size shapes of every published file."""

import math

import pytest

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.files.encoders import HIDDEN, POOLED, PROJECTED, TOWERS, fits, needed, tower_of
from ipadapter_core.files.family import Encoder, identify
from ipadapter_core.files.shapes import check_layout
from support import shapes

H, BIG_G, L336, SIGLIP = "ViT-H", "ViT-bigG", "ViT-L-336", "SigLIP-so400m"
EXPECTED = {  # family, base, projection, tokens, (encoder, feature, width, size), needs a face, LoRA inside
    "ip-adapter_sd15.safetensors": ("standard", "SD1.5", "linear", 4, (H, PROJECTED, 1024, 224), False, False),
    "ip-adapter_sd15_light_v11.bin": ("standard", "SD1.5", "linear", 4, (H, PROJECTED, 1024, 224), False, False),
    "ip-adapter_sd15_vit-G.safetensors": ("standard", "SD1.5", "linear", 4, (BIG_G, PROJECTED, 1280, 224), False, False),
    "ip-adapter-plus_sd15.safetensors": ("plus", "SD1.5", "resampler", 16, (H, HIDDEN, 1280, 224), False, False),
    "ip-adapter-plus-face_sd15.safetensors": ("plus", "SD1.5", "resampler", 16, (H, HIDDEN, 1280, 224), False, False),
    "ip_plus_composition_sd15.safetensors": ("plus", "SD1.5", "resampler", 16, (H, HIDDEN, 1280, 224), False, False),
    "ip-adapter-full-face_sd15.safetensors": ("full-face", "SD1.5", "mlp", 257, (H, HIDDEN, 1280, 224), False, False),
    "ip-adapter_sdxl.safetensors": ("standard", "SDXL", "linear", 4, (BIG_G, PROJECTED, 1280, 224), False, False),
    "ip-adapter_sdxl_vit-h.safetensors": ("standard", "SDXL", "linear", 4, (H, PROJECTED, 1024, 224), False, False),
    "ip-adapter-plus_sdxl_vit-h.safetensors": ("plus", "SDXL", "resampler", 16, (H, HIDDEN, 1280, 224), False, False),
    "ip-adapter-plus-face_sdxl_vit-h.safetensors": ("plus", "SDXL", "resampler", 16, (H, HIDDEN, 1280, 224), False, False),
    "ip_plus_composition_sdxl.safetensors": ("plus", "SDXL", "resampler", 16, (H, HIDDEN, 1280, 224), False, False),
    "ip-adapter-faceid_sd15.bin": ("faceid", "SD1.5", "faceid", 4, None, True, True),
    "ip-adapter-faceid_sdxl.bin": ("faceid", "SDXL", "faceid", 4, None, True, True),
    "ip-adapter-faceid-plus_sd15.bin": ("faceid-plus", "SD1.5", "faceid_plus", 4, (H, HIDDEN, 1280, 224), True, True),
    "ip-adapter-faceid-plusv2_sd15.bin": ("faceid-plus-v2", "SD1.5", "faceid_plus", 4, (H, HIDDEN, 1280, 224), True, True),
    "ip-adapter-faceid-plusv2_sdxl.bin": ("faceid-plus-v2", "SDXL", "faceid_plus", 4, (H, HIDDEN, 1280, 224), True, True),
    "ip-adapter-faceid-portrait_sd15.bin": ("portrait", "SD1.5", "faceid", 16, None, True, False),
    "ip-adapter-faceid-portrait-v11_sd15.bin": ("portrait", "SD1.5", "faceid", 16, None, True, False),
    "ip-adapter-faceid-portrait_sdxl.bin": ("portrait", "SDXL", "faceid", 16, None, True, False),
    "ip-adapter-faceid-portrait_sdxl_unnorm.bin": ("portrait-unnorm", "SDXL", "resampler", 16, None, True, False),
    "ip_adapter_plus_general.bin": ("kolors-plus", "Kolors", "resampler", 16, (L336, HIDDEN, 1024, 336), False, False),
    "ipa-faceid-plus.bin": ("kolors-faceid-plus", "Kolors", "faceid_plus", 6, (L336, HIDDEN, 1024, 336), True, False),
    "flux-ip-adapter.safetensors": ("flux-xlabs", "Flux", "linear", 4, ("ViT-L", PROJECTED, 768, 224), False, False),
    "flux-ip-adapter-v2.safetensors": ("flux-xlabs", "Flux", "linear", 16, ("ViT-L", PROJECTED, 768, 224), False, False),
    "instantx-flux-ip-adapter.bin": ("flux-instantx", "Flux", "pooled", 128, (SIGLIP, POOLED, 1152, 384), False, False),
    "instantx-sd3.5-large-ip-adapter.bin": ("sd3-instantx", "SD3.5", "time_resampler", 64, (SIGLIP, HIDDEN, 1152, 384), False, False),
}
V1, V2 = (
    "252fb53e0d018489d9e7f9b9e2001a52ff700e491894011ada7cfb471e0fadf2",
    "26d0d86a1d60d6cc811d3b8862178b461e1eeb651e6fe2b72ba17aa95411e313",
)
UNNORM, INSTANTID = (
    "220bb86e205393a3d0411631cb473caddbf35fd371be2905ca9008818170db55",
    "02b3618e36d803784166660520098089a81388e61a93ef8002aa79a5b1c546e1",
)


@pytest.mark.parametrize("name", shapes.SUPPORTED)
def test_every_published_file_is_known(name):
    published, fp16 = shapes.SUPPORTED[name]
    info = identify(published, name)
    encoder = info.encoder and (info.encoder.name, info.encoder.feature, info.encoder.width, info.encoder.size)
    assert (info.family, info.base, info.projection, info.tokens, encoder, info.face, info.lora) == EXPECTED[name]
    assert info.supported and not info.problem and not info.ambiguities
    check_layout(published, info, name)
    if fp16:  # the published file's own size, less its header
        assert sum(2 * math.prod(shape) for shape in published.values()) == fp16


def test_a_label_reads_as_people_speak():
    assert identify(shapes.SUPPORTED["ip-adapter-plus_sdxl_vit-h.safetensors"][0]).label == "IP-Adapter plus for SDXL (16 tokens, ViT-H)"
    assert identify(shapes.SUPPORTED["ip-adapter-faceid_sd15.bin"][0]).label == "IP-Adapter FaceID for SD1.5 (4 tokens, LoRA inside)"


def test_tokens_and_encoder_come_from_the_shapes():
    info = identify(shapes.flat(shapes.resampler("", 1280, 1664, 2048, 1280, tokens=32), shapes.layers("sdxl")))
    assert (info.family, info.tokens, info.encoder) == ("plus", 32, Encoder(BIG_G, HIDDEN, 1664, 224, TOWERS[BIG_G].file))
    info = identify(shapes.flat(shapes.resampler("", 768, 1152, 768, 768), shapes.layers("sd15")))
    assert info.encoder == Encoder("SigLIP-so400m", HIDDEN, 1152, 384, "sigclip_vision_patch14_384.safetensors")
    info = identify(shapes.flat(shapes.linear("proj", 8 * 768, 768) | shapes.norm("norm", 768), shapes.layers("sd15")))
    assert info.tokens == 8 and info.encoder == Encoder("ViT-L", PROJECTED, 768, 224, "clip-vit-large-patch14.safetensors")


def test_an_unknown_encoder_width_is_used_and_said():
    info = identify(shapes.flat(shapes.resampler("", 768, 999, 768, 768), shapes.layers("sd15")))
    assert info.supported and info.encoder == Encoder("an encoder 999 wide", HIDDEN, 999, 224)
    assert info.ambiguities == ("no published encoder gives penultimate_hidden_states 999 wide: connect the one it was trained with",)


@pytest.mark.parametrize("name", shapes.SUPPORTED)
def test_narrow_layers_are_no_obstacle(name):
    """Small test models keep the published key names, counts and context widths, not the layer widths."""
    narrow = {}
    for key, shape in shapes.SUPPORTED[name][0].items():
        narrow[key] = tuple(n // 10 if key.startswith("ip_adapter.") and ".to_" in key and n in (320, 640, 1280) else n for n in shape)
    assert identify(narrow, name) == identify(shapes.SUPPORTED[name][0], name)
    check_layout(narrow, identify(narrow, name))


@pytest.mark.parametrize("what", shapes.FOREIGN)
def test_other_adapters_are_named_and_not_supported(what, tmp_path):
    from ipadapter_core.files.checkpoint import read_shapes

    published, family, sentence, fp16 = shapes.FOREIGN[what]
    info = identify(read_shapes(shapes.write_header(tmp_path / "file.safetensors", published)))
    assert (info.supported, info.family, info.problem) == (False, family, sentence)
    if fp16:
        assert sum(2 * math.prod(shape) for shape in published.values()) == fp16


def test_transformer_adapters_under_other_names(tmp_path):
    """XLabs' own names, and diffusers' of the SD3.5 adapter's projection."""
    from ipadapter_core.files.checkpoint import read_shapes

    for tokens, name in ((4, "flux-ip-adapter.safetensors"), (16, "flux-ip-adapter-v2.safetensors")):
        path = shapes.write_header(tmp_path / name, shapes.xlabs(tokens, published=True))
        assert read_shapes(path) == shapes.SUPPORTED[name][0]
    ours = shapes.SUPPORTED["instantx-sd3.5-large-ip-adapter.bin"][0]
    names = {
        ".0.norm1.": ".ln0.", ".0.norm2.": ".ln1.", ".0.to_q.": ".attn.to_q.", ".0.to_kv.": ".attn.to_kv.", ".0.to_out.": ".attn.to_out.0.",
        ".1.0.": ".adaln_norm.", ".1.1.": ".ff.net.0.proj.", ".1.3.": ".ff.net.2.", ".2.1.": ".adaln_proj.",
    }  # fmt: skip
    theirs = {}
    for key, shape in ours.items():
        _, layers, rest = key.partition("image_proj.layers.")
        number, _, rest = rest.partition(".")
        if layers:
            (found,) = [(mine, other) for mine, other in names.items() if f".{rest}".startswith(mine)]
            key = f"{layers}{number}{found[1]}{rest.removeprefix(found[0][1:])}"
        theirs[key] = shape
    assert not set(ours) >= set(theirs)
    assert read_shapes(shapes.write_header(tmp_path / "diffusers.safetensors", theirs)) == ours


@pytest.mark.parametrize("name", ["flux-ip-adapter.safetensors", "instantx-flux-ip-adapter.bin", "instantx-sd3.5-large-ip-adapter.bin"])
def test_a_transformer_adapter_without_some_blocks_is_refused(name):
    published = shapes.SUPPORTED[name][0]
    last = max(int(key.split(".")[1]) for key in published if key.startswith("ip_adapter."))
    fewer = {key: shape for key, shape in published.items() if not key.startswith(f"ip_adapter.{last}.")}
    assert f"it has {last} blocks where {identify(published).base} needs {last + 1}" in identify(fewer).problem
    gap = {key: shape for key, shape in published.items() if not key.startswith("ip_adapter.3.")}
    assert "blocks are missing from it" in identify(gap).problem


def test_an_unknown_image_projection_is_not_supported():
    info = identify(shapes.flat({"blocks.0.weight": (768, 768)}, shapes.layers("sd15")))
    assert info.problem == "this is an adapter for SD1.5: its image projection is of a kind that is not known"
    other = shapes.linear("proj.0", 2304, 1152) | shapes.linear("proj.2", 3072, 2304) | shapes.norm("norm", 768)
    info = identify(shapes.flat(other, shapes.layers("sd15")))
    assert info.problem == "this is an adapter for SD1.5: it takes an embedding 1152 wide, and InsightFace gives 512"


PLUS_SHAPES = shapes.SUPPORTED["ip-adapter-faceid-plus_sd15.bin"][0]


@pytest.mark.parametrize(("name", "sha256", "family"), [
    ("ip-adapter-faceid-plus_sd15.bin", None, "faceid-plus"),
    ("faceid plus V2 sd15.safetensors", None, "faceid-plus-v2"),
    ("ip-adapter-faceid-plusv2_sd15.bin", V1, "faceid-plus"),  # the hash knows better than the name
    ("ip-adapter-faceid-plus_sd15.bin", V2, "faceid-plus-v2"),
    ("ip-adapter-faceid-plus_sd15.bin", "0" * 64, "faceid-plus"),
])  # fmt: skip
def test_faceid_plus_v1_and_v2_by_hash_else_by_name(name, sha256, family):
    info = identify(PLUS_SHAPES, name, sha256)
    assert (info.family, info.ambiguities) == (family, ())


def test_a_faceid_plus_that_nothing_tells_apart_is_v2_and_says_so():
    info = identify(PLUS_SHAPES, "mine.safetensors")
    assert info.family == "faceid-plus-v2"
    assert info.ambiguities == (
        "FaceID plus v1 and v2 have the same shapes, and neither hash nor name tells which this is: taken for v2",)


UNNORM_SHAPES = shapes.SUPPORTED["ip-adapter-faceid-portrait_sdxl_unnorm.bin"][0]


@pytest.mark.parametrize(("name", "sha256"), [("ip-adapter.bin", UNNORM), ("ip-adapter-faceid-portrait_sdxl_unnorm.bin", None)])
def test_portrait_unnorm_by_hash_else_by_name(name, sha256):
    info = identify(UNNORM_SHAPES, name, sha256)
    assert (info.family, info.supported, info.ambiguities) == ("portrait-unnorm", True, ())


@pytest.mark.parametrize(("name", "sha256"), [("unnorm.bin", INSTANTID), ("InstantID/ip-adapter.bin", None), ("instant_id.bin", None)])
def test_instantids_own_file_is_named(name, sha256):
    info = identify(UNNORM_SHAPES, name, sha256)
    assert (info.family, info.supported) == ("instantid", False)
    assert info.problem == (
        "this is InstantID's own ip-adapter.bin: it needs the InstantID nodes and their ControlNet; put it in models/instantid")


def test_an_unnorm_that_nothing_tells_apart_is_used_and_says_so():
    info = identify(UNNORM_SHAPES, "ip-adapter.bin")
    assert info.family == "portrait-unnorm" and info.supported
    assert "taken for portrait unnorm" in info.ambiguities[0]


@pytest.mark.parametrize(("keys", "sentence"), [
    (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"],
     r"x\.bin is a LoRA, not an IP-Adapter\. Put it in models/loras\."),
    (["unet.down_blocks.0.attentions.0.attn1.processor.to_q_lora.up.weight"], "is a LoRA, not"),
    (["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"], "is a LoRA, not"),
    (["lora_unet_mid.hada_w1_a"], r"is a LoRA \(LyCORIS\)"),
    (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"],
     "is a full checkpoint, not an IP-Adapter. Put it in models/checkpoints."),
    (["double_blocks.0.img_attn.qkv.weight"], "is a diffusion model without its encoders"),
    (["vision_model.embeddings.position_embedding.weight", "visual_projection.weight"],
     r"is an image encoder \(CLIP Vision\), not an IP-Adapter. Put it in models/clip_vision."),
    (["control_model.input_blocks.0.0.weight"], "is a ControlNet, not an IP-Adapter. Put it in models/controlnet."),
    (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "is a ControlNet"),
    (["decoder.conv_in.weight", "encoder.conv_in.weight"], "is a VAE, not an IP-Adapter. Put it in models/vae."),
    (["text_model.encoder.layers.0.mlp.fc1.weight"], "is a text encoder"),
    (["emb_params"], "is a textual inversion embedding"),
    (["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "is an AnimateDiff motion module"),
    (["id_encoder.visual_projection_2.weight"], "is a PhotoMaker model"),
    (["something.else", "b"], r"x.bin is not an IP-Adapter: it has no image_proj and ip_adapter tensors \(its tensors: b, something"),
    ([], r"\(its tensors: none at all\)"),
])  # fmt: skip
def test_what_is_no_adapter_is_named_with_its_folder(keys, sentence):
    with pytest.raises(IPAdapterError, match=sentence):
        identify(dict.fromkeys(keys, (4, 4)), "x.bin")


def test_half_an_adapter_is_an_error_that_names_what_lacks():
    standard = shapes.SUPPORTED["ip-adapter_sd15.safetensors"][0]
    with pytest.raises(IPAdapterError, match=r"x lacks the tensor image_proj\.norm\.weight"):
        identify({key: shape for key, shape in standard.items() if not key.startswith("image_proj.norm")}, "x")
    with pytest.raises(IPAdapterError, match="x has an image projection but no to_k_ip layers"):
        identify({key: shape for key, shape in standard.items() if key.startswith("image_proj.")}, "x")
    with pytest.raises(IPAdapterError, match=r"x has image_proj.proj.weight in the unusable shape \[3072\]"):
        identify(standard | {"image_proj.proj.weight": (3072,)}, "x")
    without_one = {key: shape for key, shape in standard.items() if not key.startswith("ip_adapter.31.")}
    assert "15 cross-attention layers" in identify(without_one).problem


@pytest.mark.parametrize(("hidden", "projected", "tokens", "openclip", "name"), [
    (1280, 1024, 257, False, H), (1280, 1024, 257, True, H), (1664, 1280, 257, False, BIG_G), (1664, 1280, 257, True, BIG_G),
    (1024, 768, 257, False, "ViT-L"), (1024, 768, 577, False, L336), (1152, 0, 729, False, "SigLIP-so400m"),
    (1664, 1280, 1025, False, "an encoder with hidden width 1664, projected width 1280 and 1025 tokens"),
])  # fmt: skip
def test_an_encoder_file_is_told_by_its_widths(hidden, projected, tokens, openclip, name):
    tower = tower_of(shapes.vision(hidden, projected, tokens, openclip))
    assert tower is not None and tower.name == name


def test_which_encoder_fits_which_need():
    vit_h = TOWERS[H]
    assert fits(vit_h, needed(HIDDEN, 1280)) and fits(vit_h, needed(PROJECTED, 1024))
    assert not fits(vit_h, needed(PROJECTED, 1280)) and not fits(vit_h, needed(HIDDEN, 1664))
    assert not fits(TOWERS["ViT-L"], needed(HIDDEN, 1024, L336)) and fits(TOWERS[L336], needed(HIDDEN, 1024, L336))
    headless = tower_of(shapes.vision(1280, 0, 257))
    assert headless and fits(headless, needed(HIDDEN, 1280)) and not fits(headless, needed(PROJECTED, 1024))
    assert tower_of({"text_model.embeddings.position_embedding.weight": (77, 768)}) is None
