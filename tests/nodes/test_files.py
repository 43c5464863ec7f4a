"""Finding files in ComfyUI's folders by what they hold, with the real folder_paths."""

import hashlib
import logging
import os

import pytest
import torch
from safetensors.torch import save_file

from support import shapes, synth

FOLDERS = ("ipadapter", "clip_vision", "loras")


@pytest.fixture(scope="session")
def files(pack):
    from ipadapter_pack.nodes.host.files import find as files

    return files


@pytest.fixture(scope="session")
def family(pack):
    from ipadapter_pack.ipadapter_core.files import family

    return family


@pytest.fixture(scope="session")
def user_error(pack):
    from ipadapter_pack.ipadapter_core.errors import IPAdapterError

    return IPAdapterError


@pytest.fixture(autouse=True)
def fresh_lists(comfy):
    """ComfyUI keeps the folders' file lists; those of these tests' folders must not outlive them."""
    import folder_paths

    yield
    for key in FOLDERS:
        folder_paths.filename_list_cache.pop(key, None)


@pytest.fixture
def folders(files, tmp_path, monkeypatch):
    """Empty model folders of our own in ComfyUI's table: ipadapter, clip_vision, loras."""
    import folder_paths

    for key in FOLDERS:
        (tmp_path / key).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([str(tmp_path / key)], folder_paths.supported_pt_extensions))
        folder_paths.filename_list_cache.pop(key, None)
    return tmp_path


def put(folders, name, published="ip-adapter-plus_sd15.safetensors"):
    """A file of a published file's shapes under the ipadapter folder; its payload is a hole."""
    return str(shapes.write_header(folders / "ipadapter" / name, shapes.SUPPORTED[published][0]))


def put_encoder(folders, name, *widths, **options):
    return str(shapes.write_header(folders / "clip_vision" / name, shapes.vision(*widths, **options)))


# --- the folder


def test_registering_keeps_the_users_paths_and_adds_the_default(files, monkeypatch, tmp_path):
    import folder_paths

    default = os.path.join(folder_paths.models_dir, "ipadapter")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ipadapter", ([str(tmp_path)], set()))  # as a yaml file leaves it
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "notes.txt").touch()
    for _ in range(2):
        files.register_folder()
        assert folder_paths.get_folder_paths("ipadapter") == [str(tmp_path), default]
    assert "a.safetensors" in files.adapter_names() and "notes.txt" not in files.adapter_names()


def test_registering_from_nothing(files, monkeypatch):
    import folder_paths

    monkeypatch.delitem(folder_paths.folder_names_and_paths, "ipadapter")
    files.register_folder()
    assert folder_paths.folder_names_and_paths["ipadapter"] == (
        [os.path.join(folder_paths.models_dir, "ipadapter")], folder_paths.supported_pt_extensions)


def test_a_combo_lists_names_and_reads_nothing(files, folders):
    put(folders, "sub/b.safetensors")
    (folders / "ipadapter" / "broken.bin").write_bytes(b"nothing a reader would accept")
    assert files.adapter_names() == ["broken.bin", os.path.join("sub", "b.safetensors")]


def test_a_name_that_is_gone_lists_what_is_there(files, folders, user_error):
    put(folders, "b.safetensors")
    assert files.adapter_path("b.safetensors") == str(folders / "ipadapter" / "b.safetensors")
    with pytest.raises(user_error) as caught:
        files.adapter_path("a.safetensors")
    assert str(caught.value) == (
        f"a.safetensors is no longer in {folders / 'ipadapter'}. There are: b.safetensors: IP-Adapter plus for SD1.5 (16 tokens, ViT-H).")


# --- one file


def test_a_file_is_read_once_until_it_changes(files, folders):
    path = put(folders, "a.safetensors")
    info = files.identify_file(path)
    assert files.identify_file(path) is info
    put(folders, "a.safetensors", "ip-adapter_sdxl.safetensors")
    assert files.identify_file(path).base == "SDXL"


def test_the_memory_of_files_is_bounded(files, folders, monkeypatch):
    monkeypatch.setattr(files, "_REMEMBERED", 3)
    for i in range(5):
        files.identify_file(put(folders, f"{i}.safetensors"))
    assert len(files._facts) == 3


def test_a_bad_file_gives_its_sentence_each_time(files, folders, user_error):
    path = folders / "ipadapter" / "a.safetensors"
    path.touch()
    for _ in range(2):
        with pytest.raises(user_error, match=r"^a\.safetensors is empty \(0 bytes\)\. Download it again\.$"):
            files.identify_file(str(path))


def test_the_hash_of_a_bin_file_decides_between_twins(files, folders, family, monkeypatch):
    path = folders / "ipadapter" / "faceid_plusv2.bin"
    torch.save(synth.adapter("faceid_plus", "sd15"), path)
    assert files.identify_file(str(path)).family == "faceid-plus-v2"
    monkeypatch.setitem(family.TWINS, "faceid-plus", hashlib.sha256(path.read_bytes()).hexdigest())
    os.utime(path, (0, 0))  # a changed file is read again
    assert files.identify_file(str(path)).family == "faceid-plus"


def test_a_subfolders_name_is_a_hint(files, folders):
    name = "ip-adapter-faceid-portrait_sdxl_unnorm.bin"
    assert files.identify_file(put(folders, "instantid/ip-adapter.safetensors", name)).family == "instantid"
    assert files.identify_file(put(folders, "unnorm/ip-adapter.safetensors", name)).family == "portrait-unnorm"


# --- presets


def test_the_published_name_comes_first_in_any_folder_and_case(files, folders):
    put(folders, "a.safetensors")
    wanted = put(folders, "SD15/IP-Adapter-Plus_SD15.safetensors")
    assert files.find_adapter("PLUS (high strength)", "SD1.5") == wanted


def test_safetensors_before_bin(files, folders):
    torch.save(synth.adapter("plus", "sd15"), folders / "ipadapter" / "ip-adapter-plus_sd15.bin")
    wanted = put(folders, "sub/ip-adapter-plus_sd15.safetensors")
    assert files.find_adapter("PLUS (high strength)", "SD1.5") == wanted


def test_any_name_will_do_and_the_choice_is_logged(files, folders, caplog):
    wanted = put(folders, "model (3).safetensors")
    put(folders, "x.safetensors", "ip-adapter_sd15.safetensors")
    put(folders, "y.safetensors", "ip-adapter-plus_sdxl_vit-h.safetensors")
    with caplog.at_level(logging.INFO):
        assert files.find_adapter("PLUS (high strength)", "SD1.5") == wanted
    assert "PLUS (high strength) for SD1.5: model (3).safetensors, by its content" in caplog.messages


def test_several_that_fit_are_named_in_the_log(files, folders, caplog):
    put(folders, "b.safetensors")
    put(folders, "aa.safetensors")
    with caplog.at_level(logging.INFO):
        files.find_adapter("PLUS (high strength)", "SD1.5")
    assert "PLUS (high strength) for SD1.5: b.safetensors, by its content; these fit as well: aa.safetensors" in caplog.messages


def test_the_name_decides_between_plus_plus_face_and_composition(files, folders, user_error):
    face = put(folders, "my-plus-face.safetensors")
    composition = put(folders, "my_composition.safetensors")
    assert files.find_adapter("PLUS FACE (portraits)", "SD1.5") == face
    assert files.find_adapter("Composition", "SD1.5") == composition
    with pytest.raises(user_error, match=r"^No adapter for the preset PLUS \(high strength\) and SD1\.5 models was found"):
        files.find_adapter("PLUS (high strength)", "SD1.5")  # neither is taken for a plus
    unnamed = put(folders, "a.safetensors")
    assert files.find_adapter("PLUS (high strength)", "SD1.5") == unnamed
    plus = put(folders, "some-plus.safetensors")
    assert files.find_adapter("PLUS (high strength)", "SD1.5") == plus
    assert files.find_adapter("PLUS FACE (portraits)", "SD1.5") == face


def test_light_and_standard(files, folders, user_error):
    standard = put(folders, "ip-adapter_sd15.safetensors", "ip-adapter_sd15.safetensors")
    with pytest.raises(user_error, match="No adapter for the preset LIGHT"):
        files.find_adapter("LIGHT - SD1.5 only (low strength)", "SD1.5")
    light = put(folders, "ip-adapter_sd15_light.safetensors", "ip-adapter_sd15.safetensors")
    assert files.find_adapter("LIGHT - SD1.5 only (low strength)", "SD1.5") == light
    light = put(folders, "ip-adapter_sd15_light_v11.safetensors", "ip-adapter_sd15.safetensors")
    assert files.find_adapter("LIGHT - SD1.5 only (low strength)", "SD1.5") == light
    assert files.find_adapter("STANDARD (medium strength)", "SD1.5") == standard


def test_the_encoder_tells_standard_from_vit_g(files, folders):
    big_g = put(folders, "1.safetensors", "ip-adapter_sdxl.safetensors")
    vit_h = put(folders, "2.safetensors", "ip-adapter_sdxl_vit-h.safetensors")
    assert files.find_adapter("VIT-G (medium strength)", "SDXL") == big_g
    assert files.find_adapter("STANDARD (medium strength)", "SDXL") == vit_h


@pytest.mark.parametrize(("preset", "base", "name"), [
    ("FULL FACE - SD1.5 only (portraits stronger)", "SD1.5", "ip-adapter-full-face_sd15.safetensors"),
    ("FACEID", "SDXL", "ip-adapter-faceid_sdxl.bin"),
    ("FACEID PLUS V2", "SDXL", "ip-adapter-faceid-plusv2_sdxl.bin"),
    ("FACEID PORTRAIT (style transfer)", "SD1.5", "ip-adapter-faceid-portrait_sd15.bin"),
    ("FACEID PORTRAIT UNNORM - SDXL only (strong)", "SDXL", "ip-adapter-faceid-portrait_sdxl_unnorm.bin"),
    ("Kolors", "SDXL", "ip_adapter_plus_general.bin"),
    ("Kolors", "Kolors", "ip_adapter_plus_general.bin"),
])  # fmt: skip
def test_every_family_is_found_under_a_name_of_its_own(files, folders, preset, base, name):
    for other in shapes.SUPPORTED:
        if other != name and "portrait-v11" not in other:
            put(folders, f"{other}.safetensors", other)
    wanted = put(folders, "the face.safetensors", name)
    assert files.find_adapter(preset, base) == wanted


def test_a_wrong_file_under_a_published_name_is_passed_over_and_said(files, folders, user_error, caplog):
    put(folders, "ip-adapter-plus_sd15.safetensors", "ip-adapter-plus_sdxl_vit-h.safetensors")
    note = "ip-adapter-plus_sd15.safetensors is not what its name says: IP-Adapter plus for SDXL (16 tokens, ViT-H)."
    with pytest.raises(user_error) as caught:
        files.find_adapter("PLUS (high strength)", "SD1.5")
    assert note in str(caught.value)
    wanted = put(folders, "other.safetensors")
    assert files.find_adapter("PLUS (high strength)", "SD1.5") == wanted
    assert note in caplog.messages


def test_a_preset_without_a_file_for_the_base(files, folders, user_error):
    with pytest.raises(user_error) as caught:
        files.find_adapter("LIGHT - SD1.5 only (low strength)", "SDXL")
    assert str(caught.value) == (
        "The preset LIGHT - SD1.5 only (low strength) has no adapter for SDXL models, only for SD1.5. Choose another preset.")


def test_nothing_found_says_what_was_looked_for_what_is_there_and_where_to_get_it(files, folders, user_error):
    put(folders, "sub/a.safetensors", "ip-adapter_sdxl.safetensors")
    (folders / "ipadapter" / "b.bin").touch()
    save_file({"unet.mid.to_q.lora_A.weight": torch.ones(2)}, folders / "ipadapter" / "c.safetensors")
    shapes.write_header(folders / "ipadapter" / "d.safetensors", shapes.FOREIGN["InstantCharacter"][0])
    with pytest.raises(user_error) as caught:
        files.find_adapter("PLUS (high strength)", "SD1.5")
    sub = os.path.join("sub", "a.safetensors")
    assert str(caught.value) == (
        f"No adapter for the preset PLUS (high strength) and SD1.5 models was found in {folders / 'ipadapter'}. "
        "Looked for ip-adapter-plus_sd15.safetensors, and for any file with such content. "
        "There are: b.bin: empty (0 bytes); c.safetensors: a LoRA; d.safetensors: InstantCharacter adapter (not supported); "
        f"{sub}: IP-Adapter for SDXL (4 tokens, ViT-bigG). "
        "Get ip-adapter-plus_sd15.safetensors (https://huggingface.co/h94/IP-Adapter/resolve/main/models/ip-adapter-plus_sd15.safetensors, "
        "page https://huggingface.co/h94/IP-Adapter) and put it in that folder."
    )


def test_an_empty_folder_and_a_full_one(files, folders, user_error):
    with pytest.raises(user_error, match=r"No files were found there\. Get ip-adapter_sdxl_vit-h\.safetensors"):
        files.find_adapter("STANDARD (medium strength)", "SDXL")
    for i in range(15):
        put(folders, f"{i:02}.safetensors")
    with pytest.raises(user_error) as caught:
        files.find_adapter("STANDARD (medium strength)", "SDXL")
    assert str(caught.value).count("IP-Adapter plus for SD1.5") == 12 and "; and 3 more." in str(caught.value)


# --- encoders


def need(family, published):
    return family.identify(shapes.SUPPORTED[published][0], published).encoder


def test_the_encoder_is_found_by_its_widths(files, folders, family):
    vit_h = put_encoder(folders, "model.safetensors", 1280, 1024, 257)
    big_g = put_encoder(folders, "sub/model2.safetensors", 1664, 1280, 257, openclip=True)
    put_encoder(folders, "l.safetensors", 1024, 768, 257)
    l336 = put_encoder(folders, "l336.safetensors", 1024, 768, 577)
    assert files.find_encoder(need(family, "ip-adapter_sd15.safetensors")) == vit_h
    assert files.find_encoder(need(family, "ip-adapter-plus_sd15.safetensors")) == vit_h
    assert files.find_encoder(need(family, "ip-adapter_sdxl.safetensors")) == big_g
    assert files.find_encoder(need(family, "ip_adapter_plus_general.bin")) == l336


def test_the_published_encoder_name_comes_first(files, folders, family):
    put_encoder(folders, "a.safetensors", 1280, 1024, 257)
    wanted = put_encoder(folders, "sub/CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors", 1280, 1024, 257)
    assert files.find_encoder(need(family, "ip-adapter_sd15.safetensors")) == wanted


def test_a_vit_h_that_holds_big_g_is_not_taken_and_the_message_says_so(files, folders, family, user_error, caplog):
    put_encoder(folders, "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors", 1664, 1280, 257)
    encoder = need(family, "ip-adapter-plus_sd15.safetensors")
    with pytest.raises(user_error) as caught:
        files.find_encoder(encoder)
    note = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors is not what its name says: image encoder ViT-bigG."
    assert str(caught.value) == (
        f"No image encoder ViT-H (penultimate_hidden_states 1280 wide) was found in {folders / 'clip_vision'}. "
        "Looked for CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors, and for any file with such content. "
        f"{note} There are: CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors: image encoder ViT-bigG. "
        "Get CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors "
        "(https://huggingface.co/h94/IP-Adapter/resolve/main/models/image_encoder/model.safetensors, "
        "page https://huggingface.co/h94/IP-Adapter) and put it in that folder."
    )
    caplog.clear()
    wanted = put_encoder(folders, "right.safetensors", 1280, 1024, 257)
    assert files.find_encoder(encoder) == wanted
    assert note in caplog.messages


def test_an_encoder_of_unknown_width_goes_by_the_width(files, folders, family, user_error):
    encoder = family.identify(shapes.flat(shapes.resampler("", 768, 999, 768, 768), shapes.layers("sd15"))).encoder
    with pytest.raises(user_error, match=r"^No image encoder \(penultimate_hidden_states 999 wide\) was found"):
        files.find_encoder(encoder)
    wanted = put_encoder(folders, "mine.safetensors", 999, 0, 257)
    assert files.find_encoder(encoder) == wanted


# --- LoRAs and the list


def test_the_separate_lora_is_found_by_its_published_name(files, folders, family):
    info = family.identify(shapes.SUPPORTED["ip-adapter-faceid-plusv2_sdxl.bin"][0])
    assert files.find_lora(info) is None  # it is inside the adapter
    put = folders / "loras" / "faces" / "IP-Adapter-FaceID-PlusV2_SDXL_lora.safetensors"
    put.parent.mkdir()
    put.touch()
    assert files.find_lora(info) == str(put)
    assert files.find_lora(family.identify(shapes.SUPPORTED["ip-adapter-faceid_sd15.bin"][0])) is None
    assert files.find_lora(family.identify(shapes.SUPPORTED["ip-adapter-faceid-portrait_sdxl.bin"][0])) is None


def test_a_faceid_whose_lora_is_nowhere(files, folders, family, user_error):
    info = family.identify(shapes.flat(shapes.face(4, 768), shapes.layers("sd15")))
    (folders / "loras" / "style.safetensors").touch()
    with pytest.raises(user_error) as caught:
        files.find_lora(info)
    assert str(caught.value) == (
        f"No LoRA for IP-Adapter FaceID for SD1.5 (4 tokens), which has none inside, was found in {folders / 'loras'}. "
        "Looked for ip-adapter-faceid_sd15_lora.safetensors. There are: style.safetensors. "
        "Get ip-adapter-faceid_sd15_lora.safetensors "
        "(https://huggingface.co/h94/IP-Adapter-FaceID/resolve/main/ip-adapter-faceid_sd15_lora.safetensors, "
        "page https://huggingface.co/h94/IP-Adapter-FaceID) and put it in that folder."
    )


def test_a_folder_is_described(files, folders):
    put(folders, "a.safetensors")
    put_encoder(folders, "h.safetensors", 1280, 1024, 257)
    save_file({"text_model.x": torch.ones(2)}, folders / "clip_vision" / "t.safetensors")
    assert files.describe_folder("ipadapter") == {"a.safetensors": "IP-Adapter plus for SD1.5 (16 tokens, ViT-H)"}
    assert files.describe_folder("clip_vision") == {"h.safetensors": "image encoder ViT-H", "t.safetensors": "a text encoder"}
