"""FaceID from file to model: real insightface on its sample photo, the unified loader with the LoRA, faces as values, Kolors."""

import sys

import pytest
import torch
import torch.nn.functional as F

from support import lab, onnx_faces, synth


@pytest.fixture(scope="module")
def photo():
    """insightface's sample photo [1, 886, 1280, 3]."""
    from insightface.data import get_image

    return torch.from_numpy(get_image("t1")[..., ::-1].copy()).float()[None] / 255


@pytest.fixture
def models(comfy, monkeypatch, tmp_path):
    """models/insightface with stand-ins (random weights) for both trained packages."""
    import folder_paths

    for name in onnx_faces.FILES:
        onnx_faces.write_models(tmp_path / "insightface" / "models" / name, name)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    return tmp_path


@pytest.fixture
def analyser(pack, models):
    return pack["IPAdapterInsightFaceLoader"]().load_insightface("CPU", "buffalo_l")[0]


def load(pack, world, family, arch="sd15"):
    return pack["IPAdapterModelLoader"]().load_ipadapter_model(world.files[family, arch])[0]


def apply(pack, world, family, node="IPAdapterFaceID", **kw):
    call = dict(model=world.unet["sd15"], ipadapter=load(pack, world, family), weight=0.8, clip_vision=world.cv["h"])
    return pack[node]().apply_ipadapter(**{**call, **kw})


def test_from_the_preset_to_the_picture(pack, world, models, photo):
    """The loader finds adapter and recogniser, applies the LoRA that lies in the file, and IPAdapter FaceID takes it from there."""
    world.files["faceid", "sd15"]
    model, pipeline = pack["IPAdapterUnifiedLoaderFaceID"]().load_models(world.unet["sd15"], "FACEID", lora_strength=0.6, provider="CPU")
    assert pipeline["ipadapter"]["file"].endswith("ip-adapter-faceid_sd15.bin")
    assert len(model.patches) == 128 and not world.unet["sd15"].patches
    patched, face = pack["IPAdapterFaceID"]().apply_ipadapter(model, pipeline, image=photo, weight=0.8)
    assert face.shape == (1, 224, 224, 3)
    with_face = world.out("sd15", patched)
    assert with_face.isfinite().all() and (with_face - world.out("sd15", model)).norm() > 1e-2


def test_no_lora_at_strength_0(pack, world, models):
    model, _ = pack["IPAdapterUnifiedLoaderFaceID"]().load_models(world.unet["sd15"], "FACEID", lora_strength=0.0)
    assert not model.patches


def test_a_portrait_has_no_lora(pack, world, models):
    world.files["portrait", "sd15"]
    model, _ = pack["IPAdapterUnifiedLoaderFaceID"]().load_models(world.unet["sd15"], "FACEID PORTRAIT (style transfer)", lora_strength=0.6)
    assert not model.patches


def test_a_negative_picture_without_effect_is_told(pack, world, analyser, photo, caplog):
    """An adapter that reads faces alone has no use for image_negative; nor has a FaceID plus adapter reason to complain."""
    for family, told in (("faceid", True), ("faceid_plusv2", False)):
        caplog.clear()
        apply(pack, world, family, image=photo, insightface=analyser, image_negative=lab.images(1))
        assert ("image_negative has no effect" in caplog.text) is told


def test_missing_models_are_told_apart_from_a_missing_library(pack, world, comfy, monkeypatch, tmp_path):
    import folder_paths

    loader = pack["IPAdapterUnifiedLoaderFaceID"]()
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    with pytest.raises(ValueError, match="non-commercial"):
        loader.load_models(world.unet["sd15"], "FACEID")
    monkeypatch.setitem(sys.modules, "insightface", None)
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(ValueError, match="insightface is not installed"):
        loader.load_models(world.unet["sd15"], "FACEID")


def test_an_adapter_that_has_no_need_of_faces(pack, world, analyser, photo):
    faces = lab.call(pack["IPAdapterFaceEmbeds"], insightface=analyser, image=photo, faces="first")[0]
    with pytest.raises(ValueError, match="does not use face embeddings"):
        pack["IPAdapterApplyFaceEmbeds"]().apply_faces(world.unet["sd15"], load(pack, world, "plus"), faces)


@pytest.mark.parametrize("family", ["faceid", "portrait", "faceid_plusv2"])
def test_faces_as_values_steer_as_the_faceid_node_does(pack, world, analyser, photo, family):
    """The same face by value; the crop of FaceID plus is cut out of a larger one, which moves its pixels a little."""
    direct = world.out("sd15", apply(pack, world, family, image=photo, insightface=analyser, weight_faceidv2=1.0)[0])
    faces = lab.call(pack["IPAdapterFaceEmbeds"], insightface=analyser, image=photo, faces="first")[0]
    call = dict(model=world.unet["sd15"], ipadapter=load(pack, world, family), face_embeds=faces, weight=0.8, weight_faceidv2=1.0)
    node = pack["IPAdapterApplyFaceEmbeds"]()
    by_value = world.out("sd15", node.apply_faces(**call, middle_block=False, clip_vision=world.cv["h"])[0])
    effect = (direct - world.baseline("sd15")).norm()
    assert (by_value - direct).norm() < (2e-2 if family == "faceid_plusv2" else 1e-5) * effect
    in_the_middle = world.out("sd15", node.apply_faces(**call, clip_vision=world.cv["h"])[0])
    assert (in_the_middle - direct).norm() > 2e-2 * effect


def test_the_recogniser_looks_once_at_a_picture(pack, world, analyser, photo, monkeypatch):
    looks = []
    get = type(analyser).get
    monkeypatch.setattr(type(analyser), "get", lambda self, *args, **kw: looks.append(1) or get(self, *args, **kw))
    for weight in (0.5, 0.7):
        apply(pack, world, "faceid", image=photo, insightface=analyser, weight=weight)
    assert len(looks) == 1


def tokens_of(pack, world, monkeypatch, family, **kw):
    """The positive and negative tokens that an apply projects."""
    from ipadapter_pack.nodes.host.load.adapter import Adapter

    seen, project = [], Adapter.project
    monkeypatch.setattr(Adapter, "project", lambda self, *f, **o: seen.append((f, o, out := project(self, *f, **o))) or out)
    apply(pack, world, family, **kw)
    return seen


def test_several_faces_stand_side_by_side_in_a_portrait(pack, world, analyser, photo):
    """16 tokens for each of two faces, in one attention."""
    from ipadapter_pack.nodes.host.engine.layer_patch import layer_patches

    model = apply(pack, world, "portrait", image=torch.cat([photo, photo.flip(2)]), insightface=analyser)[0]
    patch = next(iter(layer_patches(model.model_options["transformer_options"]).values()))
    assert {slot.tokens for slot in patch.applications[0].kv.slots.values()} == {32}


def test_v1_and_v2_of_faceid_plus(pack, world, analyser, photo, monkeypatch):
    """v2 adds the shortcut with twice the weight where no weight_faceidv2 is given; v1 has none."""
    v2 = tokens_of(pack, world, monkeypatch, "faceid_plusv2", image=photo, insightface=analyser, weight=0.7)
    assert {(o["shortcut"], o["scale"]) for _, o, _ in v2} == {(True, 1.4)}
    v1 = tokens_of(pack, world, monkeypatch, "faceid_plus", image=photo, insightface=analyser, weight_faceidv2=3.0)
    assert {o["shortcut"] for _, o, _ in v1} == {False}
    negative = min(v1, key=lambda call: call[0][0].abs().max())
    assert not negative[0][0].any(), "the negative side's identity is zeros"


def test_kolors_faces_pass_through_the_text_projection(pack, comfy, analyser, photo):
    """tokens (W w) x + b w, 4096 -> 2048 wide, on a UNet of SDXL's layout with Kolors' encoder_hid_proj."""
    from ipadapter_pack.nodes.host.apply.project import _text_projection, _through_text_projection
    from ipadapter_pack.nodes.host.load.adapter import as_adapter

    projected = {}
    synth.linear(projected, "proj.0", 1024, 512)
    synth.linear(projected, "proj.2", 6 * 4096, 1024)
    synth.norm(projected, "norm", 4096)
    synth.resampler(projected, "perceiver_resampler.", 4096, 4096, 1024, 64, depth=1, queries=0)
    adapter = as_adapter({"image_proj": projected, "ip_adapter": synth.ip_layers("sdxl", synth.TINY)})
    assert adapter.info.family == "kolors-faceid-plus" and adapter.info.tokens == 6
    model = lab.unet("sdxl")
    with pytest.raises(ValueError, match="encoder_hid_proj"):
        _text_projection(model, adapter)
    layer = model.model.diffusion_model.encoder_hid_proj = torch.nn.Linear(4096, 2048)
    x = synth.noise("kolors", (1, 6, 4096))
    want = F.linear(x.double(), layer.weight.double() * 0.7, layer.bias.double() * 0.7)
    got = _through_text_projection(x, _text_projection(model, adapter), 0.7)
    assert (got - want).abs().max() < 1e-5

    encoder = lab.clip_vision(hidden=1024, proj=768, size=336)
    call = dict(model=model, ipadapter=adapter, image=photo, insightface=analyser, clip_vision=encoder, weight=0.8)
    outs = []
    for weight_kolors in (1.0, 0.5):
        patched, face = pack["IPAdapterFaceIDKolors"]().apply_ipadapter(**call, weight_kolors=weight_kolors)
        assert face.shape == (1, 336, 336, 3)
        with torch.inference_mode():
            outs.append(lab.sample(patched, "sdxl", steps=1))
    assert outs[0].isfinite().all() and not torch.equal(*outs)


def test_the_version_can_be_chosen_where_files_look_alike(pack, world, comfy):
    """A v2 file under a name that says nothing; a file of one version only refuses the choice."""
    folder = comfy / "models" / "ipadapter"
    world.files["faceid_plus", "sd15"]
    renamed = folder / "my_face.bin"
    renamed.write_bytes((folder / "ip-adapter-faceid-plus_sd15.bin").read_bytes())
    node = pack["IPAdapterModelLoaderAdvanced"]()
    try:
        families = {
            version: node.load_ipadapter_model("my_face.bin", version)[0].info.family
            for version in ("as the file says", "FaceID plus v1", "FaceID plus v2")
        }
        with pytest.raises(ValueError, match="its shapes fit no other version"):
            node.load_ipadapter_model("my_face.bin", "FaceID portrait unnorm")
    finally:
        renamed.unlink()
    assert families == {"as the file says": "faceid-plus-v2", "FaceID plus v1": "faceid-plus", "FaceID plus v2": "faceid-plus-v2"}
