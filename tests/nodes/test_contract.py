"""What other packs do with the classes and values of this one: they instantiate the nodes, call their methods and read the adapter.

The ways of calling are those of ComfyUI-Easy-Use (keywords, all values unpacked) and ComfyUI-Inspire-Pack (keywords, first value taken).
"""

import gc
import inspect
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import lab, plain, synth
from support.world import AdapterFiles, FaceStub

SURFACE = json.loads((Path(lab.__file__).parent / "nodes.json").read_text())


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture(scope="module")
def steered(small):
    """The latent of one picture at weight 0.8: most ways of asking must give it bit for bit."""
    return small.out(small.apply())


def foreign(state, **flags):
    """The IPADAPTER of ComfyUI_IPAdapter_plus' own loader: plain dicts of tensors, a flag where its file has one."""
    return {part: {key: value.clone() for key, value in tensors.items()} for part, tensors in state.items()} | flags


def pipeline(adapter, encoder=None, insightface=None):
    """The IPADAPTER of a unified loader."""
    return {
        "clipvision": {"file": None, "model": encoder},
        "ipadapter": {"file": None, "model": adapter},
        "insightface": {"provider": None, "model": insightface},
    }


def read(path):
    """A file's two state dicts, nested or flat."""
    if path.suffix != ".safetensors":
        return torch.load(path, weights_only=True)
    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in load_file(path).items():
        part, name = key.split(".", 1)
        state[part][name] = value
    return state


# The methods


@pytest.mark.parametrize("name", SURFACE)
def test_the_method_has_the_established_keywords_in_order(name, pack):
    want, cls = SURFACE[name], pack[name]
    assert want["function"] == cls.FUNCTION
    assert list(inspect.signature(getattr(cls(), cls.FUNCTION)).parameters) == want["method_keywords"]


@pytest.mark.parametrize("name", [name for name, node in SURFACE.items() if node["function"] == "apply_ipadapter"])
def test_weight_types_are_read_from_the_class(name, pack):
    inputs = pack[name].INPUT_TYPES()["required"]
    if "weight_type" in inputs:
        options = inputs["weight_type"][0]
        assert isinstance(options, list)
        assert options == SURFACE[name]["inputs"]["weight_type"]["options"]


def test_advanced_as_easy_use_calls_it(small, pack, steered):
    model, picture = pack["IPAdapterAdvanced"]().apply_ipadapter(
        small.unet, pipeline(small.adapter, small.encoder), weight=0.8, weight_type="linear", start_at=0.0, end_at=1.0,
        combine_embeds="concat", weight_faceidv2=None, image=lab.images(1), image_negative=None, clip_vision=None, attn_mask=None,
        insightface=None, embeds_scaling="V only",
    )  # fmt: skip
    assert torch.equal(small.out(model), steered)
    assert torch.equal(picture, lab.images(1))


def test_advanced_as_inspire_calls_it(small, pack, steered):
    model = pack["IPAdapterAdvanced"]().apply_ipadapter(
        model=small.unet, ipadapter=small.adapter, weight=0.8, weight_type="linear", start_at=0.0, end_at=1.0, combine_embeds="concat",
        clip_vision=small.encoder, image=lab.images(1), image_negative=None, attn_mask=None, insightface=None, weight_faceidv2=None,
    )[0]  # fmt: skip
    assert torch.equal(small.out(model), steered)


def test_the_simple_node_with_positions(small, pack, steered):
    model, _ = pack["IPAdapter"]().apply_ipadapter(
        small.unet, pipeline(small.adapter, small.encoder), lab.images(1), 0.8, 0.0, 1.0, weight_type="standard"
    )
    assert torch.equal(small.out(model), steered)


@pytest.mark.parametrize("name", ["IPAdapterBatch", "IPAdapterMS", "IPAdapterPreciseStyleTransfer", "IPAdapterClipVisionEnhancer"])
def test_every_apply_node_takes_every_keyword(name, small, pack):
    """One dict of keywords for all nodes, those a node does not show among them."""
    keywords = dict(weight=0.8, weight_type="linear", start_at=0.0, end_at=1.0, combine_embeds="concat", weight_faceidv2=None)
    keywords |= dict(image=lab.images(1), clip_vision=small.encoder, layer_weights=None, encode_batch_size=0, embeds_scaling="V only")
    model, _ = pack[name]().apply_ipadapter(small.unet, small.adapter, **keywords)
    assert isinstance(model, type(small.unet)) and model is not small.unet
    assert model.model_options["transformer_options"]["patches_replace"]["attn2"]


@pytest.mark.parametrize("name", ["IPAdapterTiled", "IPAdapterTiledBatch"])
def test_tiled_nodes_give_three_values(name, small, pack):
    model, tiles, masks = pack[name]().apply_tiled(
        small.unet, pipeline(small.adapter, small.encoder), image=lab.images(1), weight=0.7, weight_type="linear", start_at=0.0,
        end_at=1.0, sharpening=0.0, combine_embeds="concat", image_negative=None, attn_mask=None, clip_vision=None,
        embeds_scaling="V only",
    )  # fmt: skip
    assert tiles.shape[1:] == (256, 256, 3) and len(masks) == len(tiles)
    assert len(model.model_options["transformer_options"]["patches_replace"]["attn2"]) == len(plain.KEYS)


def test_a_faceid_node_gives_the_face(small, pack):
    adapter = foreign(synth.adapter("faceid", "sd15"))
    model, face = pack["IPAdapterFaceID"]().apply_ipadapter(
        small.unet, adapter, weight=0.8, weight_faceidv2=1.0, weight_type="linear", combine_embeds="concat", start_at=0.0, end_at=1.0,
        image=lab.images(1), insightface=FaceStub(), embeds_scaling="V only",
    )  # fmt: skip
    assert face.shape == (1, 224, 224, 3)
    assert model is not small.unet


def test_embeds_nodes_in_a_row(small, pack, steered):
    """Encoder, CombineEmbeds and Embeds as Easy-Use chains them: two weighted pictures averaged are one at their mean."""
    encode = pack["IPAdapterEncoder"]().encode
    halves = [encode(small.adapter, lab.images(1), weight, None, clip_vision=small.encoder) for weight in (0.5, 1.5)]
    (combined,) = pack["IPAdapterCombineEmbeds"]().batch(embed1=halves[0][0], method="average", embed2=halves[1][0])
    negative = halves[0][1]
    model, _ = pack["IPAdapterEmbeds"]().apply_ipadapter(small.unet, small.adapter, combined, 0.8, "linear", 0.0, 1.0, negative, None, None)
    assert plain.error(small.out(model), steered, small.out(small.unet)) < 1e-5  # the mean of 0.5 x and 1.5 x is x but for its last bit


def test_regions_by_nodes_and_by_hand(small, pack):
    """IPADAPTER_PARAMS from the nodes, and the dict of parallel lists that Easy-Use builds itself."""
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    pictures, masks, weights = (lab.images(1), lab.images(1, tag="b")), (left, 1 - left), (0.9, 0.6)
    node = pack["IPAdapterRegionalConditioning"]()
    regions = [
        node.conditioning(picture, weight, 1.0, "linear", 0.0, 1.0, mask=mask)[0]
        for picture, weight, mask in zip(pictures, weights, masks, strict=True)
    ]
    (joined,) = pack["IPAdapterCombineParams"]().combine(*regions)
    by_hand = {
        "image": list(pictures), "attn_mask": list(masks), "weight": list(weights), "weight_type": ["linear"] * 2,
        "start_at": [0.0] * 2, "end_at": [1.0] * 2,
    }  # fmt: skip
    assert list(joined) == list(by_hand)
    how = dict(combine_embeds="concat", embeds_scaling="V only", image_negative=None, clip_vision=small.encoder)
    models = [
        pack["IPAdapterFromParams"]().apply_ipadapter(small.unet, small.adapter, ipadapter_params=params, **how)[0]
        for params in (joined, by_hand)
    ]
    one_by_one = small.unet
    for picture, weight, mask in zip(pictures, weights, masks, strict=True):
        one_by_one = small.apply(one_by_one, image=picture, weight=weight, attn_mask=mask)
    latents = [small.out(model) for model in (*models, one_by_one)]
    assert torch.equal(latents[0], latents[1]) and torch.equal(latents[0], latents[2])


def test_regional_prompts_are_copies_with_the_mask(pack):
    prompt = lab.cond("sd15")
    before = dict(prompt[0][1])
    call = dict(image=lab.images(1), image_weight=1.0, prompt_weight=0.7, weight_type="linear", start_at=0.0, end_at=1.0)
    _, positive, negative = pack["IPAdapterRegionalConditioning"]().conditioning(**call, mask=torch.ones(64, 64), positive=prompt)
    assert negative is None and prompt[0][1] == before
    assert positive[0][0] is prompt[0][0]
    added = positive[0][1]
    assert added["mask"].shape == (1, 64, 64) and added["mask_strength"] == 0.7 and added["set_area_to_bounds"] is False


# The value on the IPADAPTER wire


def test_both_forms_give_the_same_picture(small, steered):
    """Our loader's adapter, another loader's dicts, and either inside a pipeline."""
    other = foreign(small.state)
    assert torch.equal(small.out(small.apply(ipadapter=other)), steered)
    for adapter in (small.adapter, other):
        assert torch.equal(small.out(small.apply(ipadapter=pipeline(adapter, small.encoder), clip_vision=None)), steered)


def test_a_connected_encoder_wins_over_the_pipelines(small, steered):
    wrong = lab.clip_vision(hidden=64, proj=1280, heads=4)
    assert torch.equal(small.out(small.apply(ipadapter=pipeline(small.adapter, wrong))), steered)


def test_another_loaders_dicts_are_built_once_and_let_go(small):
    from ipadapter_pack.nodes.host.load.adapter import as_adapter

    state = foreign(small.state)
    first = as_adapter(state)
    assert as_adapter(pipeline(state)) is first
    weight, built = weakref.ref(state["ip_adapter"]["1.to_k_ip.weight"]), weakref.ref(first)
    del state, first
    gc.collect()
    assert weight() is None and built() is None


def test_another_loaders_flag_says_which_twin_it_is(pack):
    from ipadapter_pack.nodes.host.load.adapter import as_adapter

    state = foreign(synth.adapter("faceid_plus", "sd15"))
    assert as_adapter(state).info.family == "faceid-plus"
    assert as_adapter({**state, "faceidplusv2": True}).info.family == "faceid-plus-v2"


@pytest.mark.parametrize(
    ("family", "arch", "flags"),
    [
        ("base", "sd15", set()),
        ("full_face", "sd15", set()),
        ("faceid", "sd15", set()),
        ("faceid_plus", "sd15", set()),
        ("faceid_plusv2", "sd15", {"faceidplusv2"}),
        ("portrait_unnorm", "sdxl", {"portraitunnorm"}),
    ],
)
def test_our_adapter_reads_like_the_dict_of_the_other_pack(pack, comfy, family, arch, flags):
    """Every tensor of the file under its published name, the LoRA by which FaceID is known too; a flag is there only where it holds."""
    files = AdapterFiles(comfy / "models" / "ipadapter")
    adapter = pack["IPAdapterModelLoader"]().load_ipadapter_model(files[family, arch])[0]
    state = read(files.folder / files[family, arch])
    assert set(adapter) == {"image_proj", "ip_adapter"} | flags and len(adapter) == 2 + len(flags)
    for part in ("image_proj", "ip_adapter"):
        assert adapter[part].keys() == state[part].keys()
        assert all(torch.equal(adapter[part][key], state[part][key]) for key in state[part])
    for flag in ("faceidplusv2", "portraitunnorm"):
        assert (flag in adapter) == (flag in flags)
        assert bool(adapter.get(flag)) == (flag in flags)
    assert "ipadapter" not in adapter  # by this they tell the pipeline from the bare adapter
    assert adapter["ip_adapter"]["1.to_k_ip.weight"].shape[1] == synth.TINY[arch]["ctx"]
    with pytest.raises(KeyError):
        adapter["insightface"]


@pytest.mark.parametrize(
    "value",
    [
        None, "plus", {}, {"image_proj": {}, "ip_adapter": {}}, {"image_proj": None, "ip_adapter": None}, {"ipadapter": None},
        {"ipadapter": {"file": None, "model": None}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_adapter_gives_a_sentence(small, value):
    with pytest.raises(ValueError, match=r"no adapter in the ipadapter input|is not an IP-Adapter"):
        small.apply(ipadapter=value)
