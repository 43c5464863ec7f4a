"""What users do wrong, each with the sentence that tells them, and the odd inputs that simply have to work."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from support import lab, synth


@pytest.fixture
def load(pack, world):
    """load(family, arch) gives an adapter through the loader node."""
    return lambda family, arch="sd15": pack["IPAdapterModelLoader"]().load_ipadapter_model(world.files[family, arch])[0]


@pytest.fixture
def apply(pack, world, load):
    """apply(**changes) runs IPAdapter Advanced as a user would, with a plus adapter on SD1.5 but for what is changed."""

    def run(family="plus", arch="sd15", **changes):
        inputs = dict(model=world.unet["sd15"], image=lab.images(1), clip_vision=world.cv["h"], **{"weight": 0.8, "weight_type": "linear"})
        if "ipadapter" not in changes:
            inputs["ipadapter"] = load(family, arch)
        return pack["IPAdapterAdvanced"]().apply_ipadapter(**{**inputs, **changes})[0]

    return run


def sentence(run, **changes) -> str:
    with pytest.raises(ValueError) as caught:
        run(**changes)
    assert type(caught.value).__name__ == "IPAdapterError"
    return str(caught.value)


def test_a_wrong_encoder_names_both_widths_before_anything_is_encoded(apply, world, monkeypatch):
    def must_not_run(*args, **kwargs):
        raise AssertionError("the picture was encoded")

    monkeypatch.setattr(type(world.cv["g"]), "encode_image", must_not_run)
    text = sentence(apply, clip_vision=world.cv["g"])
    assert "ip-adapter-plus_sd15_vit-h.safetensors needs the image encoder ViT-H (1280 wide)" in text
    assert "is ViT-bigG (1664 wide)" in text and "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors" in text


def test_a_wrong_encoder_for_a_standard_adapter(apply, world):
    text = sentence(apply, family="base", clip_vision=world.cv["g"])
    assert "ViT-H (1024 wide)" in text and "ViT-bigG (1280 wide)" in text


def test_embeds_of_another_encoder(pack, world, load):
    embeds = torch.zeros(1, 257, 1664)
    node = pack["IPAdapterEmbeds"]()
    call = dict(model=world.unet["sd15"], ipadapter=load("plus"), pos_embed=embeds, neg_embed=embeds, weight=1.0, weight_type="linear")
    text = sentence(node.apply_ipadapter, **call, start_at=0.0, end_at=1.0)
    assert "ViT-H (1280 wide)" in text and "ViT-bigG (1664 wide)" in text


def test_no_encoder(apply):
    assert "There is no image encoder" in sentence(apply, clip_vision=None)


def test_no_picture(apply):
    assert "There is no reference picture" in sentence(apply, image=None)


def test_no_adapter_behind_the_wire(apply):
    assert "There is no adapter in the ipadapter input" in sentence(apply, ipadapter={"clipvision": {}, "ipadapter": {"model": None}})


def test_a_faceid_file_in_a_node_without_faces(apply):
    text = sentence(apply, family="faceid")
    assert "is a FaceID adapter: it needs a face recogniser" in text and "IPAdapter FaceID" in text


def test_an_sdxl_adapter_on_an_sd15_model(apply):
    text = sentence(apply, arch="sdxl")
    assert "is an adapter for SDXL, the connected model is SD1.5" in text


def test_an_sd15_adapter_on_an_sdxl_model(apply, world):
    assert "is an adapter for SD1.5, the connected model is SDXL" in sentence(apply, model=world.unet["sdxl"])


def test_a_flux_model(apply):
    """The keys and shapes of FLUX.1's published file, one block of each kind, as core's own detection reads them."""
    import comfy.model_detection as detection
    import comfy.model_patcher

    hidden, head, text, pooled = 3072, 128, 4096, 768
    shapes = {
        "img_in.weight": (hidden, 64),
        "txt_in.weight": (hidden, text),
        "vector_in.in_layer.weight": (hidden, pooled),
        "double_blocks.0.img_attn.norm.key_norm.scale": (head,),
        "single_blocks.0.norm.key_norm.scale": (head,),
        "final_layer.linear.weight": (64, hidden),
    }
    state = {f"model.diffusion_model.{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}
    prefix = detection.unet_prefix_from_state_dict(state)
    config = detection.model_config_from_unet(state, prefix)
    config.set_inference_dtype(torch.float32, None)
    flux = config.get_model(state, prefix, device=torch.device("meta"))
    patcher = comfy.model_patcher.ModelPatcher(flux, torch.device("cpu"), torch.device("cpu"))
    assert "has 1 double and 1 single blocks where Flux has 19 and 38 (a pruned one?)" in sentence(apply, model=patcher)


EXIST = "IP-Adapters exist for SD1.5, SDXL, Kolors, Flux.1 and SD3.5 Large: connect one of those."


@pytest.mark.parametrize(("width", "name"), [(1280, "the SDXL refiner"), (1024, "SD2")])
def test_unets_without_adapters(apply, world, width, name):
    """Told by how wide their text is."""
    patched = lab.unet("sd15")
    for module in patched.model.diffusion_model.modules():
        if hasattr(module, "attn2"):
            module.attn2.to_k = torch.nn.Linear(width, module.attn2.to_k.out_features, bias=False)
    assert f"The connected model is {name}. {EXIST}" in sentence(apply, model=patched)


def test_a_transformer_without_adapters(apply):
    """HunyuanDiT, Anima and the like are called as ComfyUI calls them."""
    model = type("HunyuanDiT", (), {"diffusion_model": torch.nn.Linear(1, 1)})()
    told = f"The connected model is HunyuanDiT, for which IP-Adapters are not supported. {EXIST}"
    assert told in sentence(apply, model=SimpleNamespace(model=model))


def test_a_distilled_unet(apply):
    """SSD-1B and the like leave transformers out."""
    patched = lab.unet("sd15")
    patched.model.diffusion_model.output_blocks[11] = patched.model.diffusion_model.output_blocks[11][:1]
    assert "has 15 cross-attentions where SD1.5 has 16" in sentence(apply, model=patched)


def test_an_adapter_of_other_layer_widths(apply, pack, world, tmp_path, comfy):
    sizes = {"sd15": dict(ctx=768, dims=[64] * 16)}
    sd = synth.adapter("base", "sd15", sizes)
    text = sentence(apply, ipadapter=sd)
    assert "does not fit the connected model" in text and "64" in text


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(0, 64, 64, 3), "empty"),
        (torch.full((1, 64, 64, 3), float("nan")), "not numbers"),
        (torch.zeros(64, 64, 3), "not a picture"),
    ],
    ids=["empty batch", "NaN", "no batch"],
)
def test_a_picture_that_cannot_be_used(apply, image, words):
    assert words in sentence(apply, image=image)


@pytest.mark.parametrize("shape", [(1, 64, 64, 4), (1, 1, 1, 3), (1, 64, 64, 1), (2, 300, 7, 3)], ids=str)
def test_an_odd_picture_works(apply, world, shape):
    picture = torch.linspace(0, 1, torch.Size(shape).numel()).reshape(shape)
    out = world.out("sd15", apply(image=picture))
    assert out.isfinite().all() and not torch.equal(out, world.baseline("sd15"))


def test_alpha_is_dropped(apply, world):
    picture = lab.images(1)
    with_alpha = torch.cat([picture, torch.zeros_like(picture[..., :1])], dim=-1)
    assert torch.equal(world.out("sd15", apply(image=with_alpha)), world.out("sd15", apply(image=picture)))


@pytest.mark.parametrize(("mask", "words"), [
    (torch.zeros(1, 0, 8), "shape"), (torch.zeros(1, 1, 8, 8), "shape"), (torch.full((1, 8, 8), float("nan")), "not numbers"),
], ids=["empty", "too many axes", "NaN"])  # fmt: skip
def test_a_mask_that_cannot_be_used(apply, mask, words):
    assert words in sentence(apply, attn_mask=mask)


def test_a_mask_of_another_size(apply, world):
    """Masks are brought to the latent's grid: the same corner in a mask of any size is the same corner of the picture."""
    masks = [torch.zeros(1, size, size) for size in (32, 64, 96)]
    for mask in masks:
        mask[:, : mask.shape[1] // 2, : mask.shape[2] // 2] = 1
    first, *others = (world.out("sd15", apply(attn_mask=mask), hw=(16, 16)) for mask in masks)
    assert not torch.equal(first, world.baseline("sd15", hw=(16, 16)))
    assert all(torch.equal(first, other) for other in others)


def test_a_mask_without_batch(apply, world):
    mask = torch.ones(8, 8)
    assert torch.equal(world.out("sd15", apply(attn_mask=mask)), world.out("sd15", apply(attn_mask=mask[None])))


def test_a_black_mask_is_off_and_said(apply, world, caplog):
    out = world.out("sd15", apply(attn_mask=torch.zeros(1, 64, 64)))
    assert torch.equal(out, world.baseline("sd15"))
    assert "black everywhere" in caplog.text


def test_layer_weights_that_cannot_be_read(pack, world, load):
    node = pack["IPAdapterMS"]()
    call = dict(model=world.unet["sd15"], ipadapter=load("plus"), image=lab.images(1), clip_vision=world.cv["h"])
    assert "'3=1'" in sentence(node.apply_ipadapter, **call, layer_weights="0:1, 3=1")
    assert "'3:nan'" in sentence(node.apply_ipadapter, **call, layer_weights="3:nan")
    assert "SD1.5 has layers 0 to 15" in sentence(node.apply_ipadapter, **call, layer_weights="16:1")


def test_no_weights_in_the_list(pack, world, load):
    node = pack["IPAdapterBatch"]()
    call = dict(model=world.unet["sd15"], ipadapter=load("plus"), image=lab.images(1), clip_vision=world.cv["h"])
    assert "list of weights is empty" in sentence(node.apply_ipadapter, **call, weight=[])


def test_a_renamed_flux_adapter_is_named(pack, comfy):
    sd = {"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": torch.zeros(4, 8),
          "double_blocks.0.processor.ip_adapter_double_stream_k_proj.bias": torch.zeros(4),
          "ip_adapter_proj_model.proj.weight": torch.zeros(16, 4)}  # fmt: skip
    path = comfy / "models" / "ipadapter" / "flux.safetensors"
    save_file(sd, path)
    try:
        text = sentence(pack["IPAdapterModelLoader"]().load_ipadapter_model, ipadapter_file="flux.safetensors")
    finally:
        path.unlink()
    assert "XLabs Flux" in text and "it has 1 blocks where Flux needs 19" in text


def test_a_lora_in_the_ipadapter_folder(pack, comfy):
    path = comfy / "models" / "ipadapter" / "style.safetensors"
    save_file({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 8)}, path)
    try:
        text = sentence(pack["IPAdapterModelLoader"]().load_ipadapter_model, ipadapter_file="style.safetensors")
    finally:
        path.unlink()
    assert "LoRA" in text and "loras" in text


def test_nan_weights_are_refused_with_their_name(pack, comfy):
    sd = synth.adapter("base", "sd15")
    sd["ip_adapter"]["5.to_v_ip.weight"][3, 3] = float("nan")
    path = comfy / "models" / "ipadapter" / "broken.safetensors"
    save_file({f"{part}.{key}": value.contiguous() for part, values in sd.items() for key, value in values.items()}, path)
    try:
        text = sentence(pack["IPAdapterModelLoader"]().load_ipadapter_model, ipadapter_file="broken.safetensors")
    finally:
        path.unlink()
    assert "NaN or infinite numbers in ip_adapter.5.to_v_ip.weight" in text and "Use another copy" in text


def test_no_region_has_a_picture(pack, world, load):
    """All regions None leave the model as it is."""
    params = {key: [None] for key in ("image", "attn_mask")} | {
        "weight": [1.0],
        "weight_type": ["linear"],
        "start_at": [0.0],
        "end_at": [1.0],
    }
    call = dict(model=world.unet["sd15"], ipadapter=load("plus"), ipadapter_params=params, clip_vision=world.cv["h"])
    model = pack["IPAdapterFromParams"]().apply_ipadapter(**call)[0]
    assert torch.equal(world.out("sd15", model), world.baseline("sd15"))
