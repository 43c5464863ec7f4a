"""What is missing is said before the run where it is known then: by ComfyUI's own validation of a prompt, in one sentence on the loader."""

import asyncio

import pytest

from support import shapes

PLUS, XL, LIGHT = "ip-adapter-plus_sd15.safetensors", "ip-adapter-plus_sdxl_vit-h.safetensors", "ip-adapter_sd15_light_v11.bin"
PRESET = "PLUS (high strength)"
KEYS = ("ipadapter", "clip_vision", "loras")


class Sink:
    """An output node, as saving a picture is one."""

    OUTPUT_NODE, FUNCTION, RETURN_TYPES, CATEGORY = True, "run", (), ""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "optional": {"ipadapter": ("IPADAPTER",), "text": ("STRING", {"forceInput": True})}}


class Source:
    """A model, and a choice that comes over a wire."""

    FUNCTION, RETURN_TYPES, CATEGORY = "run", ("MODEL",), ""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}


@pytest.fixture
def folders(pack, tmp_path, monkeypatch):
    """Empty model folders of our own, and the nodes in ComfyUI's table."""
    import folder_paths

    import nodes

    for key in KEYS:
        (tmp_path / key).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([str(tmp_path / key)], folder_paths.supported_pt_extensions))
        folder_paths.filename_list_cache.pop(key, None)
    presets = pack["IPAdapterUnifiedLoader"].INPUT_TYPES()["required"]["preset"][0]
    monkeypatch.setattr(Source, "RETURN_TYPES", ("MODEL", presets))
    for name, cls in {**pack, "Sink": Sink, "Source": Source}.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, cls)
    yield tmp_path
    for key in KEYS:
        folder_paths.filename_list_cache.pop(key, None)


def adapter(folders, name, published=PLUS):
    import folder_paths

    folder_paths.filename_list_cache.pop("ipadapter", None)
    return shapes.write_header(folders / "ipadapter" / name, shapes.SUPPORTED[published][0])


def encoder(folders):
    return shapes.write_header(folders / "clip_vision" / "h.safetensors", shapes.vision(1280, 1024, 257))


def refused(node, **inputs):
    """ComfyUI's errors for a loader before an output; "" where the prompt is accepted."""
    import execution

    slot = 1 if node.startswith(("IPAdapterUnified", "ImagePrompt")) else 0
    model = {} if slot == 0 else {"model": ["source", 0]}
    prompt = {
        "source": {"class_type": "Source", "inputs": {}},
        "loader": {"class_type": node, "inputs": {**model, **inputs}},
        "sink": {"class_type": "Sink", "inputs": {"text" if node == "IPAdapterInspector" else "ipadapter": ["loader", slot]}},
    }
    valid, error, _, errors = asyncio.run(execution.validate_prompt("id", prompt, None))
    return "" if valid else "\n".join(found["details"] for found in errors["loader"]["errors"]) or str(error)


def test_an_empty_folder_is_told_by_every_loader(folders):
    for node in ("IPAdapterModelLoader", "IPAdapterModelLoaderAdvanced", "IPAdapterInspector", "ImagePromptLoader"):
        name = "adapter" if node == "ImagePromptLoader" else "ipadapter_file"
        more = {"IPAdapterModelLoaderAdvanced": {"version": "as the file says"}}.get(node, {})
        more |= {"lora_strength": 0.6, "provider": "CPU"} if node == "ImagePromptLoader" else {}
        value = "auto" if node == "ImagePromptLoader" else "(no file in models/ipadapter)"
        text = refused(node, **{name: value}, **more)
        assert f"No adapter was found in {folders / 'ipadapter'}. " in text and "No files were found there." in text, node
        assert f"h94/IP-Adapter/resolve/main/models/{PLUS}" in text, node


def test_a_list_without_files_says_so_on_the_node(pack, folders):
    for node in ("IPAdapterModelLoader", "IPAdapterModelLoaderAdvanced", "IPAdapterInspector"):
        options = lambda: pack[node].INPUT_TYPES()["required"]["ipadapter_file"][0]  # noqa: B023, E731
        assert options() == ["(no file in models/ipadapter)"]
    adapter(folders, "a.safetensors")
    assert pack["IPAdapterModelLoader"].INPUT_TYPES()["required"]["ipadapter_file"][0] == ["a.safetensors"]


def test_a_file_that_is_gone_is_told_with_what_is_there(folders):
    adapter(folders, "a.safetensors")
    assert refused("IPAdapterModelLoader", ipadapter_file="a.safetensors") == ""
    text = refused("IPAdapterModelLoader", ipadapter_file="b.safetensors")
    assert f"b.safetensors is no longer in {folders / 'ipadapter'}. There are: a.safetensors: " in text and "plus for SD1.5" in text
    assert "is no longer in" in refused("IPAdapterModelLoader", ipadapter_file="../ipadapter/a.safetensors")


def test_a_preset_without_files(folders):
    text = refused("IPAdapterUnifiedLoader", preset=PRESET)
    assert text.startswith(f"preset - No adapter for the preset {PRESET} was found in {folders / 'ipadapter'}. No files were found there.")
    assert f"for SD1.5 models {PLUS} (https://" in text and f"for SDXL models {XL} (https://" in text
    adapter(folders, "light plus.safetensors", XL)
    encoder(folders)
    assert refused("IPAdapterUnifiedLoader", preset=PRESET) != "", "its name says that it is another one"
    adapter(folders, "mine.safetensors", XL)
    assert refused("IPAdapterUnifiedLoader", preset=PRESET) == "", "for SDXL at least: the model is known when it runs"
    assert "No adapter for the preset FACEID was found" in refused(
        "IPAdapterUnifiedLoaderFaceID", preset="FACEID", lora_strength=0.6, provider="CPU"
    )


def test_no_image_encoder_at_all(folders):
    adapter(folders, PLUS)
    text = refused("IPAdapterUnifiedLoader", preset=PRESET)
    assert text.startswith(f"preset - No image encoder ViT-H (penultimate_hidden_states 1280 wide) was found in {folders / 'clip_vision'}.")
    assert "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors (https://" in text
    encoder(folders)
    import folder_paths

    folder_paths.filename_list_cache.pop("clip_vision", None)
    assert refused("IPAdapterUnifiedLoader", preset=PRESET) == ""


def test_files_that_only_opening_would_tell_are_left_to_the_run(folders):
    (folders / "ipadapter" / "mine.bin").write_bytes(b"never opened before the run")
    encoder(folders)
    assert refused("IPAdapterUnifiedLoader", preset=PRESET) == ""


def test_choices_are_still_checked_and_links_still_accepted(folders):
    assert "There is no preset 'PLUS' on this loader. Choose one of: LIGHT" in refused("IPAdapterUnifiedLoader", preset="PLUS")
    assert refused("IPAdapterUnifiedLoader", preset=["source", 1]) == "", "what comes over a wire is known when it runs"
    adapter(folders, "a.safetensors")
    assert "version: 'v9' not in" in refused("IPAdapterModelLoaderAdvanced", ipadapter_file="a.safetensors", version="v9")
