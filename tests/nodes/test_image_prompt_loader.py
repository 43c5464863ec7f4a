"""Image Prompt Loader: what it offers, what it takes by itself, what it says. Full-size headers without content stand for the files."""

import json
import os

import pytest

from support import lab, shapes, synth

PLUS, STANDARD, XL = "ip-adapter-plus_sd15.safetensors", "ip-adapter_sd15.safetensors", "ip-adapter-plus_sdxl_vit-h.safetensors"


@pytest.fixture
def folders(pack, tmp_path, monkeypatch):
    """Empty model folders of our own in ComfyUI's table."""
    import folder_paths

    for key in ("ipadapter", "clip_vision", "loras"):
        (tmp_path / key).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([str(tmp_path / key)], folder_paths.supported_pt_extensions))
        folder_paths.filename_list_cache.pop(key, None)
    yield tmp_path
    for key in ("ipadapter", "clip_vision", "loras"):
        folder_paths.filename_list_cache.pop(key, None)


def put(folders, name, published):
    return shapes.write_header(folders / "ipadapter" / name, shapes.SUPPORTED[published][0])


def put_encoder(folders, name="h.safetensors", widths=(1280, 1024, 257)):
    return shapes.write_header(folders / "clip_vision" / name, shapes.vision(*widths))


def offered(pack):
    return pack["ImagePromptLoader"].INPUT_TYPES()["required"]["adapter"]


@pytest.fixture
def best(pack):
    from ipadapter_pack.nodes.host.files import find as files

    return lambda *bases: os.path.basename(files.best_adapter(bases))


def test_the_list_says_what_each_file_is_and_saves_its_name(pack, folders):
    put(folders, "a.safetensors", PLUS)
    put(folders, "plus-face.safetensors", PLUS)
    put(folders, "b.safetensors", XL)
    put(folders, "c.safetensors", "ip-adapter-faceid_sd15.bin")
    (folders / "ipadapter" / "ip-adapter_sd15_light_v11.bin").write_bytes(b"never opened")
    (folders / "ipadapter" / "mine.bin").write_bytes(b"never opened")
    (folders / "ipadapter" / "page.safetensors").write_text("<!DOCTYPE html><html>not found</html>")
    names, options = offered(pack)
    assert names[0] == "auto" and set(names[1:]) == set(os.listdir(folders / "ipadapter"))
    labels = options["labels"]
    assert labels.pop("page.safetensors").startswith("a web page")
    assert labels == {
        "a.safetensors": "plus, SD1.5, ViT-H", "plus-face.safetensors": "plus face, SD1.5, ViT-H", "b.safetensors": "plus, SDXL, ViT-H",
        "c.safetensors": "faceid, SD1.5", "ip-adapter_sd15_light_v11.bin": "standard light, SD1.5, ViT-H", "mine.bin": "",
    }  # fmt: skip
    json.dumps(options)


def test_a_header_is_read_once(pack, folders, monkeypatch):
    from ipadapter_pack.nodes.host.files import find as files

    read = []
    original = files.read_shapes
    monkeypatch.setattr(files, "read_shapes", lambda path: read.append(path) or original(path))
    put(folders, "once.safetensors", PLUS)
    for _ in range(3):
        offered(pack)
    assert len(read) == 1


def test_saved_workflows_name_the_file_alone(pack, folders):
    """Whatever the list says of it; a file that is gone is told with what is there."""
    put(folders, "a.safetensors", PLUS)
    valid = pack["ImagePromptLoader"].VALIDATE_INPUTS
    assert valid("auto") is True and valid("a.safetensors") is True
    assert valid("gone.safetensors").startswith("gone.safetensors is no longer in") and "a.safetensors" in valid("gone.safetensors")


def test_auto_takes_the_best_that_fits(folders, best):
    put_encoder(folders)
    for name, published in {"face-plus.safetensors": PLUS, "standard.safetensors": STANDARD, "xl.safetensors": XL}.items():
        put(folders, name, published)
    put(folders, "faceid.safetensors", "ip-adapter-faceid_sd15.bin")
    assert best("SDXL", "Kolors") == "xl.safetensors"
    assert best("SD1.5") == "standard.safetensors", "plus is for faces by its name"
    put(folders, "some plus.safetensors", PLUS)
    _forget("ipadapter")
    assert best("SD1.5") == "some plus.safetensors"


def test_auto_prefers_what_has_its_encoder_here(folders, best):
    put(folders, "h.safetensors", PLUS)
    put(folders, "g.safetensors", "ip-adapter_sd15_vit-G.safetensors")
    put_encoder(folders, "g.safetensors", (1664, 1280, 257))
    assert best("SD1.5") == "g.safetensors"
    put_encoder(folders)
    _forget("clip_vision")
    assert best("SD1.5") == "h.safetensors"


def test_auto_takes_kolors_for_kolors(folders, best):
    put(folders, "k.safetensors", "ip_adapter_plus_general.bin")
    put(folders, "xl.safetensors", XL)
    assert best("Kolors", "SDXL") == "k.safetensors" and best("SDXL", "Kolors") == "xl.safetensors"


def test_none_that_fits_is_told_with_where_to_get_one(folders, best):
    put(folders, "xl.safetensors", XL)
    with pytest.raises(ValueError, match=r"No adapter for SD1\.5 models was found.*xl\.safetensors.*https://huggingface\.co/"):
        best("SD1.5")


def _forget(folder):
    import folder_paths

    folder_paths.filename_list_cache.pop(folder, None)


@pytest.fixture(scope="module")
def unet(comfy):
    return lab.unet("sd15", seed="")


def load(pack, model, adapter="auto", **kw):
    """((model, pipeline), the lines that the node shows)."""
    given = pack["ImagePromptLoader"]().load(model, adapter, **kw)
    (text,) = given["ui"]["text"]
    return given["result"], dict(line.split(": ", 1) for line in text.splitlines())


def test_it_loads_and_says_what_it_took(pack, folders, unet, monkeypatch):
    """The pipeline of the established loaders, taken by the established nodes."""
    from ipadapter_pack.nodes.host.load import pipeline

    encoder = lab.clip_vision(hidden=64, proj=1024, heads=4)
    monkeypatch.setattr(pipeline, "load_encoder", lambda path: encoder)
    synth.save_adapter(synth.adapter("base", "sd15"), folders / "ipadapter" / "mine.safetensors")
    put(folders, "xl.safetensors", XL)
    put_encoder(folders)
    (model, loaded), lines = load(pack, unet)
    assert model is unet
    assert list(loaded) == ["clipvision", "ipadapter", "insightface"] and loaded["clipvision"]["model"] is encoder
    assert lines["adapter"] == "mine.safetensors" and lines["is"].startswith("IP-Adapter for SD1.5")
    assert lines["image encoder"] == "h.safetensors" and lines["does not fit SD1.5"] == "xl.safetensors" and "fits too" not in lines
    steered, _ = lab.call(
        pack["IPAdapterAdvanced"], model=model, ipadapter=loaded, image=lab.images(1), weight=1.0, weight_type="linear",
        combine_embeds="concat", start_at=0.0, end_at=1.0, embeds_scaling="V only",
    )  # fmt: skip
    assert steered is not model


def test_a_file_for_other_models_is_told(pack, folders, unet):
    put(folders, "xl.safetensors", XL)
    put(folders, "a.safetensors", PLUS)
    with pytest.raises(ValueError, match=r"xl\.safetensors is IP-Adapter plus for SDXL.*the connected model is SD1\.5.*fitting here: a\.s"):
        load(pack, unet, "xl.safetensors")


def test_auto_looks_again_where_files_change(pack, folders):
    changed = pack["ImagePromptLoader"].IS_CHANGED
    before = changed("auto")
    assert changed("auto") == before and changed("a.safetensors") == "a.safetensors"
    put(folders, "a.safetensors", PLUS)
    _forget("ipadapter")
    assert changed("auto") != before
