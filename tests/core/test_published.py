"""The table of published files against the full-size shapes of those files and the presets of the loaders."""

import json
from pathlib import Path

import pytest

from ipadapter_core.files import published
from ipadapter_core.files.encoders import TOWERS
from ipadapter_core.files.family import identify
from support import shapes

LOADERS = ("IPAdapterUnifiedLoader", "IPAdapterUnifiedLoaderFaceID", "IPAdapterUnifiedLoaderCommunity")


@pytest.mark.parametrize("name", shapes.SUPPORTED)
def test_a_published_files_row_is_what_its_shapes_are(name):
    row = published.published_as(name)
    assert row and published.is_of(row, identify(shapes.SUPPORTED[name][0], name))


def test_every_row_has_shapes_and_its_files_are_in_the_table():
    proved = {published.published_as(name) for name in shapes.SUPPORTED}
    unproved = {row.name for row in published.ADAPTERS if row not in proved}
    assert unproved == {"ip-adapter_sd15_light.safetensors"}  # light v1 has v11's shapes
    names = {row.name for row in published.FILES}
    assert len(names) == len(published.FILES)
    for row in published.ADAPTERS:
        assert not row.lora or row.lora in names
        assert not row.encoder or row.encoder.file in names
    assert {tower.file for tower in TOWERS.values()} <= names


def test_folders_and_addresses():
    assert {row.folder for row in published.FILES} == {"ipadapter", "loras", "clip_vision"}
    row = published.file_named("ip-adapter_sdxl.safetensors")
    assert row.page == "https://huggingface.co/h94/IP-Adapter"
    assert row.url == "https://huggingface.co/h94/IP-Adapter/resolve/main/sdxl_models/ip-adapter_sdxl.safetensors"
    assert {len(row.sha256) for row in published.FILES} == {0, 64}


def test_the_presets_are_those_of_the_loaders():
    surface = json.loads((Path(__file__).parents[1] / "support" / "nodes.json").read_text())
    options = [option for node in LOADERS for option in surface[node]["inputs"]["preset"]["options"]]
    assert list(published.PRESETS) == options
    for bases in published.PRESETS.values():
        for base, names in bases.items():
            rows = [published.file_named(name) for name in names]
            assert {row.base for row in rows} <= {base, "Kolors"}
            assert len({(row.family, row.encoder, row.variant) for row in rows}) == 1


@pytest.mark.parametrize(("name", "row"), [
    ("sub/IP-Adapter Plus_SD15.SafeTensors", "ip-adapter-plus_sd15.safetensors"),
    ("sub\\ip-adapter_sd15 (1).bin", "ip-adapter_sd15.safetensors"),
    ("ip-adapter_sd1.5.safetensors", "ip-adapter_sd15.safetensors"),
    ("ip_adapter_plus_general.bin", "Kolors-IP-Adapter-Plus.bin"),
    ("CLIP-ViT-H-14-laion2B-s32B-b79K.bin", "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"),
])  # fmt: skip
def test_a_published_name_is_known_in_any_spelling(name, row):
    assert published.published_as(name) == published.file_named(row)


def test_another_name_is_not_a_published_one():
    assert published.published_as("ip-adapter-plus_sd15_finetuned.safetensors") is None


@pytest.mark.parametrize(("name", "variant"), [
    ("ip-adapter-plus_sd15.bin", "plain"), ("my plus sdxl.safetensors", "plain"), ("plus/my.safetensors", ""), ("noob.bin", ""),
    ("ip-adapter-plus-face_sd15.bin", "face"), ("PlusFace.bin", "face"), ("compositionXL.bin", "composition"), ("sd15_Light.bin", "light"),
    ("ip-adapter-full-face_sd15.bin", "plain"), ("ip-adapter-faceid_sd15.bin", "plain"),
])  # fmt: skip
def test_the_variant_is_read_from_the_name(name, variant):
    assert published.variant_of(name) == variant
