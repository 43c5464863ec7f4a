"""Encoded pictures: combined, applied with and without a negative side, saved, listed and read back; no file runs code."""

import json
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support import lab, plain
from support.world import AdapterFiles


@pytest.fixture(scope="module")
def small(pack, comfy):
    return plain.Small(pack, comfy)


@pytest.fixture(scope="module")
def encoded(small):
    """Positive [2, 1024] and negative embeds of two pictures."""
    return lab.call(small.pack["IPAdapterEncoder"], ipadapter=small.adapter, image=lab.images(2), weight=1.0, clip_vision=small.encoder)


@pytest.fixture
def input_folder(comfy):
    """ComfyUI's input folder; the .ipadpt files that a test puts there are taken away again."""
    folder = comfy / "input"
    before = set(folder.rglob("*"))
    yield folder
    for path in sorted(set(folder.rglob("*")) - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def folder_paths() -> Any:
    """ComfyUI's module of folders."""
    return sys.modules["folder_paths"]


def save(pack, embeds, prefix="IP_embeds"):
    """The name that the save node tells."""
    return pack["IPAdapterSaveEmbeds"]().save(embeds, prefix)["ui"]["text"][0]


def load(pack, name):
    return lab.call(pack["IPAdapterLoadEmbeds"], embeds=name)[0]


def apply(small, node="IPAdapterEmbeds", **kw):
    call = dict(model=small.unet, ipadapter=small.adapter, weight=0.8, weight_type="linear", start_at=0.0, end_at=1.0)
    return lab.call(small.pack[node], **call, embeds_scaling="V only", **kw)[0]


def sentence(call, *args, **kw) -> str:
    with pytest.raises(ValueError) as caught:
        call(*args, **kw)
    assert type(caught.value).__name__ == "IPAdapterError"
    return str(caught.value)


# Files


def test_saved_and_loaded_bit_for_bit(pack, comfy, encoded, input_folder):
    name = save(pack, encoded[0], "trip/embeds")
    path = comfy / "output" / name
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])  # the safetensors format, by its description
    assert header["embeds"]["dtype"] == "F32" and header["embeds"]["shape"] == list(encoded[0].shape)
    assert torch.equal(load_file(path)["embeds"], encoded[0])
    (input_folder / "x.ipadpt").write_bytes(raw)
    assert torch.equal(load(pack, "x.ipadpt"), encoded[0])


def test_others_may_read_a_saved_file_as_any_new_one(pack, comfy, tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    assert (comfy / "output" / save(pack, torch.zeros(1, 4), "shared/e")).stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("first", [None, 1, 2, 3, 7], ids=lambda first: f"counter {first or 'of this core'}")
def test_names_count_up_and_nothing_is_overwritten(pack, comfy, monkeypatch, first):
    """Cores differ in which names they count: old ones only those with an underscore behind the number, and begin at 1 here."""
    folder = comfy / "output" / f"many{first}"
    folder.mkdir()
    others = [folder / "e_00002.ipadpt", folder / "e_00004.ipadpt"]
    for path in others:
        path.write_bytes(b"someone else's")
    real = folder_paths().get_save_image_path
    if first:
        monkeypatch.setattr(folder_paths(), "get_save_image_path", lambda *args: (*real(*args)[:2], first, *real(*args)[3:]))
    counter = folder_paths().get_save_image_path(f"{folder.name}/e", str(comfy / "output"))[2]
    numbers = [n for n in range(counter, counter + 9) if n not in (2, 4)][:3]
    saved = [save(pack, torch.full((1, 4), float(n)), f"{folder.name}/e") for n in range(3)]
    assert saved == [f"{folder.name}/e_{n:05}.ipadpt" for n in numbers]
    assert [float(load_file(comfy / "output" / name)["embeds"][0, 0]) for name in saved] == [0.0, 1.0, 2.0]
    assert [path.read_bytes() for path in others] == [b"someone else's"] * 2


def test_savers_at_the_same_time_take_names_of_their_own(pack, comfy, monkeypatch):
    """All are told the same number by the core."""
    real, together = folder_paths().get_save_image_path, threading.Barrier(8)

    def same_number(*args):
        found = real(*args)
        together.wait(10)
        return found

    monkeypatch.setattr(folder_paths(), "get_save_image_path", same_number)
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda n: save(pack, torch.full((1, 4), float(n)), "race/e"), range(8)))
    assert len(set(names)) == 8
    assert [float(load_file(comfy / "output" / name)["embeds"][0, 0]) for name in names] == list(map(float, range(8)))


def test_a_file_that_cannot_be_written_leaves_nothing(pack, comfy, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save(pack, torch.zeros(1, 4), "full/e")
    assert list((comfy / "output" / "full").iterdir()) == []


def test_nothing_is_saved_outside_the_output_folder(pack, comfy, tmp_path):
    for prefix in ("../out", str(tmp_path / "out")):
        assert sentence(save, pack, torch.zeros(1, 4), prefix) == (
            f"{prefix} is outside ComfyUI's output folder: change filename_prefix to a name inside it."
        )
    assert not list(comfy.glob("out_*")) and not list(tmp_path.iterdir())


def test_the_list_is_the_input_folders(pack, comfy, input_folder):
    (input_folder / "people").mkdir()
    for name in ("b.ipadpt", "people/a.ipadpt", "people/a.png", "c.ipadpt.txt"):
        (input_folder / name).write_bytes(b"")
    (comfy / "output" / "elsewhere.ipadpt").write_bytes(b"")
    assert pack["IPAdapterLoadEmbeds"].INPUT_TYPES()["required"]["embeds"][0] == ["b.ipadpt", "people/a.ipadpt"]


def test_a_subfolders_file(pack, input_folder):
    (input_folder / "people").mkdir()
    save_file({"embeds": torch.ones(1, 4)}, input_folder / "people" / "a.ipadpt")
    assert torch.equal(load(pack, "people/a.ipadpt"), torch.ones(1, 4))


@pytest.mark.parametrize("refuses", [False, True], ids=["this core", "a core that refuses such names"])
def test_no_way_out_of_comfyuis_folders(pack, comfy, tmp_path, monkeypatch, refuses):
    """Prompts from the network may name any file: those outside stay unread, whatever they hold."""
    for path in (comfy / "x.ipadpt", tmp_path / "x.ipadpt"):
        save_file({"embeds": torch.ones(1, 4)}, path)

    def refuse(*args):
        raise ValueError("Invalid filename")

    if refuses:  # as ComfyUI 0.33 does
        monkeypatch.setattr(folder_paths(), "get_annotated_filepath", refuse)
    for name in ("../x.ipadpt", "people/../../x.ipadpt", str(tmp_path / "x.ipadpt"), "../x.ipadpt [output]"):
        assert "outside ComfyUI's input folder" in sentence(load, pack, name)
        assert not refuses or pack["IPAdapterLoadEmbeds"].IS_CHANGED(name) == 0
    (comfy / "x.ipadpt").unlink()


def test_a_file_that_is_not_there(pack):
    assert sentence(load, pack, "gone.ipadpt") == (
        "There is no file gone.ipadpt in the input folder: move the saved embeds there from the output folder."
    )
    assert pack["IPAdapterLoadEmbeds"].IS_CHANGED("gone.ipadpt") == 0


def test_a_changed_file_is_told_from_the_old_one(pack, input_folder):
    path, told = input_folder / "x.ipadpt", pack["IPAdapterLoadEmbeds"].IS_CHANGED
    save_file({"embeds": torch.ones(1, 4)}, path)
    os.utime(path, ns=(1_700_000_000_000_000_000, 1_700_000_000_000_000_000))
    first = told("x.ipadpt")
    assert told("x.ipadpt") == first
    save_file({"embeds": torch.zeros(1, 4)}, path)
    assert told("x.ipadpt") != first


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_pickled_tensor_of_the_other_pack(pack, input_folder, zipped, dtype):
    """torch.save(tensor) in both of torch's layouts; half precision is widened, which changes no value."""
    embeds = torch.linspace(-1, 1, 2048).reshape(2, 1024).to(dtype)
    torch.save(embeds, input_folder / "old.ipadpt", _use_new_zipfile_serialization=zipped)
    got = load(pack, "old.ipadpt")
    assert got.dtype == torch.float32 and torch.equal(got, embeds.float())


class Code:
    """Unpickled, it makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(pack, input_folder, tmp_path, write):
    write(Code(tmp_path / "ran"), input_folder / "bad.ipadpt")
    assert sentence(load, pack, "bad.ipadpt") == (
        "bad.ipadpt is not an embeds file, or it holds code, which is not run: encode the picture again and save it."
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no embeds", b"\x80\x02", b"PK\x03\x04broken", b"\x80\x04]q\x00(h\xff.", bytes(range(256))])
def test_a_file_that_holds_something_else(pack, input_folder, content):
    (input_folder / "bad.ipadpt").write_bytes(content)
    assert "bad.ipadpt is not an embeds file" in sentence(load, pack, "bad.ipadpt")


@pytest.mark.parametrize("tensors", [{"other": torch.ones(1, 4)}, {"embeds": torch.ones(4)}, {"embeds": torch.full((1, 4), float("nan"))}])
def test_a_safetensors_file_without_usable_embeds(pack, input_folder, tensors):
    save_file(tensors, input_folder / "bad.ipadpt")
    assert "bad.ipadpt holds no usable embeds" in sentence(load, pack, "bad.ipadpt")


# Applying and combining


def test_without_a_negative_side_a_standard_adapter_takes_zeros(small, encoded):
    got = small.out(apply(small, pos_embed=encoded[0][:1]))
    assert torch.equal(got, small.out(apply(small, pos_embed=encoded[0][:1], neg_embed=torch.zeros(1, 1024))))
    assert torch.equal(got, small.out(small.apply()))


def test_without_a_negative_side_a_plus_adapter_needs_its_encoder(small, comfy):
    file = AdapterFiles(comfy / "models" / "ipadapter")["plus", "sd15"]
    plus = lab.call(small.pack["IPAdapterModelLoader"], ipadapter_file=file)[0]
    node = small.pack["IPAdapterEmbeds"]()
    text = sentence(node.apply_ipadapter, small.unet, plus, torch.zeros(1, 257, 1280), 1.0, "linear", 0.0, 1.0)
    assert "needs an image encoder for its negative side" in text and "or a neg_embed" in text
    assert node.apply_ipadapter(small.unet, plus, torch.zeros(1, 257, 1280), 1.0, "linear", 0.0, 1.0, torch.zeros(1, 257, 1280))


def test_one_embed_for_each_latent(small, encoded):
    """As the batch node with the pictures themselves, bit for bit, and each latent as in a run of its embed for all latents."""
    got = small.out(apply(small, "IPAdapterEmbedsBatch", pos_embed=encoded[0]), batch=2)
    assert torch.equal(got, small.out(small.apply(node="IPAdapterBatch", image=lab.images(2), encode_batch_size=0), batch=2))
    off = small.out(small.unet, batch=2)
    for i in range(2):
        alone = small.out(apply(small, pos_embed=encoded[0][i : i + 1]), batch=2)
        assert plain.error(got[i], alone[i], off[i]) < 1e-4  # rounding of fp32 alone


def test_embeds_of_different_shapes(pack):
    node = pack["IPAdapterCombineEmbeds"]()
    text = sentence(node.batch, torch.zeros(1, 257, 1280), "average", torch.zeros(1, 1024))
    told = "These embeds come from different encoders or adapters, or were encoded at other sizes, and cannot be combined: "
    assert text == f"{told}[257, 1280], [1024]."


def test_max_and_min_and_missing_inputs(pack):
    a, b = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 3.0]])
    batch = pack["IPAdapterCombineEmbeds"]().batch
    assert torch.equal(batch(a, "max", embed4=b)[0], torch.tensor([[1.0, 3.0]]))
    assert torch.equal(batch(a, "min", embed4=b)[0], torch.tensor([[0.0, -2.0]]))
    assert torch.equal(batch(a, "concat", embed5=b)[0], torch.cat([a, b]))
    assert torch.equal(batch(a, "average")[0], a)
