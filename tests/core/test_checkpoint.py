"""Reading adapter files: containers, prefixes, and one clear sentence for every kind of bad file."""

import os
import pickle
import time
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.files.checkpoint import from_state_dicts, read_checkpoint, read_shapes
from ipadapter_core.files.family import identify
from support import shapes, synth


@pytest.fixture(scope="module")
def adapter():
    """A small standard SD1.5 adapter, nested as torch files hold it."""
    return synth.adapter("base", "sd15")


def flat(nested, image_proj="image_proj", ip_adapter="ip_adapter"):
    names = {"image_proj": image_proj, "ip_adapter": ip_adapter}
    return {f"{names[part]}.{key}": value for part, tensors in nested.items() for key, value in tensors.items()}


def edited(nested, **changes):
    """The adapter as a flat file with tensors replaced ("__" for "."), or dropped where the new value is None."""
    tensors = flat(nested) | {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in tensors.items() if value is not None}


def assert_same(checkpoint, nested):
    for part in ("image_proj", "ip_adapter"):
        tensors = getattr(checkpoint, part)
        assert tensors.keys() == nested[part].keys()
        assert all(torch.equal(tensors[key], nested[part][key]) for key in tensors)


WRITERS = {
    "safetensors": lambda nested, path: save_file(flat(nested), path),
    "safetensors, NoobAI's prefixes": lambda nested, path: save_file(flat(nested, "image_proj_model", "adapter_modules"), path),
    "torch, nested": torch.save,
    "torch, flat": lambda nested, path: torch.save(flat(nested), path),
    "torch, Kolors FaceID's prefix": lambda nested, path: torch.save(
        {"image_proj": nested["image_proj"], "adapter_modules": nested["ip_adapter"]}, path),
    "torch, inside state_dict, with other values": lambda nested, path: torch.save(
        {"state_dict": nested, "step": 1000, "ip_scale": 0.5}, path),
    "torch, the format before zip": lambda nested, path: torch.save(nested, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_container_gives_the_same_tensors_whatever_its_name(writer, ending, adapter, tmp_path):
    path = tmp_path / f"adapter.{ending}"
    WRITERS[writer](adapter, path)
    assert read_shapes(path) == {key: tuple(tensor.shape) for key, tensor in flat(adapter).items()}
    assert_same(read_checkpoint(path), adapter)


def test_another_packs_dicts(adapter):
    checkpoint = from_state_dicts({**adapter, "faceidplusv2": False})
    assert_same(checkpoint, adapter)
    assert checkpoint.ip_adapter["1.to_k_ip.weight"].data_ptr() == adapter["ip_adapter"]["1.to_k_ip.weight"].data_ptr()


def test_mixed_dtypes_stay_and_fp8_is_widened_exactly(adapter, tmp_path):
    mixed = {
        "image_proj": {key: value.to(torch.float64) for key, value in adapter["image_proj"].items()},
        "ip_adapter": {key: value.to(torch.bfloat16) for key, value in adapter["ip_adapter"].items()},
    }
    fp8 = adapter["ip_adapter"]["1.to_k_ip.weight"].to(torch.float8_e4m3fn)
    mixed["ip_adapter"]["1.to_k_ip.weight"] = fp8
    save_file(flat(mixed), tmp_path / "mixed.safetensors")
    checkpoint = read_checkpoint(tmp_path / "mixed.safetensors")
    assert checkpoint.image_proj["proj.weight"].dtype == torch.float64
    assert checkpoint.ip_adapter["3.to_k_ip.weight"].dtype == torch.bfloat16
    widened = checkpoint.ip_adapter["1.to_k_ip.weight"]
    assert widened.dtype == torch.float16 and torch.equal(widened.float(), fp8.float())


def test_what_is_no_part_of_the_adapter_is_left_out(adapter, tmp_path):
    save_file(flat(adapter) | {"image_encoder.vision.weight": torch.ones(2)}, tmp_path / "trained.safetensors")
    assert_same(read_checkpoint(tmp_path / "trained.safetensors"), adapter)


def test_a_gigabyte_is_identified_by_its_header_alone(tmp_path):
    name = "ip-adapter-plus_sdxl_vit-h.safetensors"
    published, fp16 = shapes.SUPPORTED[name]
    path = shapes.write_header(tmp_path / name, published | {"optimizer.state": (10_000, 10_000)})
    assert path.stat().st_size > 1_000_000_000 > fp16
    tracemalloc.start()
    start = time.perf_counter()
    info = identify(read_shapes(path), name)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert info.label == "IP-Adapter plus for SDXL (16 tokens, ViT-H)"
    assert peak < 2_000_000  # the header has 30 kB; tracing makes this slow, so the time is bound loosely
    assert seconds < 0.5


# --- bad files


def write(path, content):
    path.write_bytes(content)
    return path


def refused(path):
    """The sentence that reading shapes and reading the checkpoint both refuse a file with."""
    messages = []
    for read in (read_shapes, read_checkpoint):
        with pytest.raises(IPAdapterError) as caught:
            read(path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    return messages[0]


def test_an_empty_file(tmp_path):
    assert refused(write(tmp_path / "a.safetensors", b"")) == "a.safetensors is empty (0 bytes). Download it again."


def test_a_missing_file(tmp_path):
    assert refused(tmp_path / "a.bin") == "a.bin cannot be read: No such file or directory. Check the path and its permissions."


def test_a_git_lfs_pointer(tmp_path):
    path = write(tmp_path / "a.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 98183288\n")
    assert refused(path) == "a.bin is a git-lfs pointer, not the model. Run `git lfs pull`, or download the file from its page."


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html></html>", b"\n  <html lang='en'>", b"\xef\xbb\xbf<html>"])
def test_a_web_page(page, tmp_path):
    sentence = "a.safetensors is a web page saved instead of the model. Download the file itself with the page's button."
    assert refused(write(tmp_path / "a.safetensors", page)) == sentence


def test_a_text(tmp_path):
    path = write(tmp_path / "a.safetensors", b"Access to model h94/IP-Adapter is restricted.")
    assert refused(path) == "a.safetensors is a text file, probably an error message saved instead of the model. Download it again."


def test_noise(tmp_path):
    path = write(tmp_path / "a.safetensors", bytes(range(200, 256)) * 40)
    sentence = "a.safetensors is neither a safetensors file nor one that torch.save wrote, by its first bytes. Download it again."
    assert refused(path) == sentence


def test_a_renamed_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.safetensors", "w") as archive:
        archive.writestr("ip-adapter.safetensors", b"inside")
    assert refused(tmp_path / "a.safetensors") == "a.safetensors is a zip archive under another name. Unpack it and use the file inside."


def test_another_archive(tmp_path):
    path = write(tmp_path / "a.bin", b"7z\xbc\xaf\x27\x1c" + bytes(100))
    assert refused(path) == "a.bin is a 7z archive under another name. Unpack it and use the file inside."


def test_a_safetensors_file_cut_in_the_payload(adapter, tmp_path):
    save_file(flat(adapter), tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").stat().st_size
    payload = whole - 8 - int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")
    os.truncate(tmp_path / "a.safetensors", whole - 1000)
    assert refused(tmp_path / "a.safetensors") == (
        f"a.safetensors is cut short: its header names {payload} bytes of tensors, and {payload - 1000} follow. Download it again."
    )


def test_a_safetensors_file_cut_in_the_header(adapter, tmp_path):
    save_file(flat(adapter), tmp_path / "a.safetensors")
    header = int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")
    os.truncate(tmp_path / "a.safetensors", 500)
    assert refused(tmp_path / "a.safetensors") == (
        f"a.safetensors is cut short: its header alone has {header} bytes and the file 500. Download it again.")


def test_a_safetensors_file_with_more_behind_it(adapter, tmp_path):
    save_file(flat(adapter), tmp_path / "a.safetensors")
    with (tmp_path / "a.safetensors").open("ab") as file:
        file.write(b"more")
    assert refused(tmp_path / "a.safetensors").startswith("a.safetensors is damaged: its header names")


@pytest.mark.parametrize(("header", "reason"), [
    (b'{"a": nonsense}', "Expecting value"),
    (b'{"a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 9]}}', "a tensor's offsets do not fit its shape"),
    (b'{"a": {"dtype": "F16", "shape": [2], "data_offsets": [4, 0]}}', "a tensor's offsets do not fit its shape"),
    (b'{"a": {"dtype": "F16", "shape": [-2, -2], "data_offsets": [0, 8]}}', "a shape or an offset is not a natural number"),
    (b'{"a": {"dtype": "F16", "shape": [2.0], "data_offsets": [0, 4]}}', "a shape or an offset is not a natural number"),
    (b'{"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 4]}}', "the number type X9 is not known"),
    (b'{"a": {"shape": [2], "data_offsets": [0, 4]}}', "'dtype'"),
    (b'{"a": 3}', "not subscriptable"),
    (b'{"a":' * 100_000, "recursion"),
    (b'{"\xff": 1}', "decode"),
])  # fmt: skip
def test_a_damaged_safetensors_header(header, reason, tmp_path):
    path = write(tmp_path / "a.safetensors", len(header).to_bytes(8, "little") + header + bytes(4))
    message = refused(path)
    assert message.startswith("a.safetensors has a damaged safetensors header (") and message.endswith("). Download it again.")
    assert reason in message


def test_offsets_beyond_the_file(tmp_path):
    huge = 2**60
    header = b'{"a": {"dtype": "F16", "shape": [%d], "data_offsets": [0, %d]}}' % (huge // 2, huge)
    path = write(tmp_path / "a.safetensors", len(header).to_bytes(8, "little") + header + bytes(64))
    assert refused(path) == f"a.safetensors is cut short: its header names {huge} bytes of tensors, and 64 follow. Download it again."


def test_overlapping_tensors_are_refused_when_they_are_read(adapter, tmp_path):
    head, payload = shapes.header({key: tuple(tensor.shape) for key, tensor in flat(adapter).items()})
    overlapping = head.replace(b'"data_offsets": [6291456, 6297600]', b'"data_offsets": [6291448, 6297592]')
    assert overlapping != head
    path = write(tmp_path / "a.safetensors", overlapping + bytes(payload))
    with pytest.raises(IPAdapterError, match=r"a\.safetensors is damaged \(.+\)\. Download it again\."):
        read_checkpoint(path)


def test_a_torch_file_cut_short(adapter, tmp_path):
    torch.save(adapter, tmp_path / "a.bin")
    os.truncate(tmp_path / "a.bin", (tmp_path / "a.bin").stat().st_size // 2)
    assert refused(tmp_path / "a.bin") == "a.bin is cut short or damaged (File is not a zip file). Download it again."


def test_an_old_torch_file_cut_short(adapter, tmp_path):
    torch.save(adapter, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    os.truncate(tmp_path / "a.bin", (tmp_path / "a.bin").stat().st_size // 2)
    message = refused(tmp_path / "a.bin")
    assert message.startswith("a.bin is damaged: torch cannot read it (") and message.endswith("). Download it again.")


class Harmful:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_names_the_danger(zipped, adapter, tmp_path):
    marker = tmp_path / "ran"
    torch.save({**adapter, "x": Harmful(marker)}, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    assert refused(tmp_path / "a.bin") == (
        f"a.bin is refused: it is a pickle that calls {os.name}.system, and loading it could run any program on this computer. "
        "Use a safetensors file."
    )
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_plain_pickle_is_refused(protocol, tmp_path):
    path = write(tmp_path / "a.bin", pickle.dumps(Harmful(tmp_path / "ran"), protocol))
    assert refused(path).startswith("a.bin is refused: it is a pickle that ")
    assert not (tmp_path / "ran").exists()


def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    assert refused(tmp_path / "a.pt") == "a.pt is refused: it is a TorchScript program, not weights alone. Use a safetensors file."


def test_a_torch_file_without_names(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "a.bin")
    assert refused(tmp_path / "a.bin") == "a.bin holds a list instead of named tensors: it is not an IP-Adapter. Choose another file."


# --- well-formed files that cannot be used


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"image_proj__proj__bias": None},
     "a.safetensors lacks the tensor image_proj.proj.bias: it is damaged or was converted wrongly. Download it again."),
    ({"ip_adapter__7__to_v_ip__weight": None},
     "a.safetensors lacks the tensor ip_adapter.7.to_v_ip.weight: it is damaged or was converted wrongly. Download it again."),
    ({"ip_adapter__7__to_v_ip__weight": torch.zeros(64, 700)},
     "a.safetensors has ip_adapter.7.to_v_ip.weight in the shape [64, 700], and [64, 768] fits its other tensors: "
     "it is damaged or was converted wrongly. Download it again."),
    ({"image_proj__norm__bias": torch.zeros(5)},
     "a.safetensors has image_proj.norm.bias in the shape [5], and [768] fits its other tensors: "
     "it is damaged or was converted wrongly. Download it again."),
    ({"image_proj__pos_emb__weight": torch.zeros(5)},
     "a.safetensors has the tensor image_proj.pos_emb.weight, which no IP-Adapter for SD1.5 (4 tokens, ViT-H) has: "
     "this variant is not supported yet. Choose another file."),
    ({"image_proj__proj__bias": torch.zeros(3072, dtype=torch.int8)},
     "a.safetensors holds image_proj.proj.bias as int8: it is quantised or damaged. Use the published file."),
    ({"ip_adapter__1__to_k_ip__weight": torch.full((32, 768), torch.nan)},
     "a.safetensors has NaN or infinite numbers in ip_adapter.1.to_k_ip.weight: it is damaged or its training failed. Use another copy."),
    ({"image_proj__proj__bias": torch.cat([torch.zeros(3071), torch.tensor([-torch.inf])])},
     "a.safetensors has NaN or infinite numbers in image_proj.proj.bias: it is damaged or its training failed. Use another copy."),
])  # fmt: skip
def test_a_tensor_that_cannot_be_used_is_named(changes, sentence, adapter, tmp_path):
    save_file(edited(adapter, **changes), tmp_path / "a.safetensors")
    with pytest.raises(IPAdapterError) as caught:
        read_checkpoint(tmp_path / "a.safetensors")
    assert str(caught.value) == sentence


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2])
def test_one_nan_is_found_in_every_dtype(dtype, adapter):
    weight = torch.zeros(64, 768)
    weight[40, 700] = torch.nan
    broken = {**adapter, "ip_adapter": adapter["ip_adapter"] | {"5.to_k_ip.weight": weight.to(dtype)}}
    with pytest.raises(IPAdapterError, match=r"This adapter has NaN or infinite numbers in ip_adapter\.5\.to_k_ip\.weight"):
        from_state_dicts(broken)


@pytest.mark.parametrize("family", ["plus", "full_face", "faceid", "faceid_plus"])
def test_every_tensor_of_every_projection_is_asked_for(family):
    nested = synth.adapter(family, "sd15")
    from_state_dicts(nested)
    for key in nested["image_proj"]:
        less = {**nested, "image_proj": {k: v for k, v in nested["image_proj"].items() if k != key}}
        with pytest.raises(IPAdapterError):
            from_state_dicts(less)


def test_half_a_lora_pair_is_named():
    nested = synth.adapter("faceid", "sd15")
    del nested["ip_adapter"]["6.to_q_lora.up.weight"]
    with pytest.raises(IPAdapterError, match=r"lacks the tensor ip_adapter\.6\.to_q_lora\.up\.weight"):
        from_state_dicts(nested)


def test_a_lora_and_an_unsupported_adapter_are_named(tmp_path):
    save_file({"unet.mid_block.attentions.0.to_q.lora_A.weight": torch.ones(2)}, tmp_path / "style.safetensors")
    with pytest.raises(IPAdapterError, match=r"^style\.safetensors is a LoRA, not an IP-Adapter\. Put it in models/loras\.$"):
        read_checkpoint(tmp_path / "style.safetensors")
    shapes.write_header(tmp_path / "flux.safetensors", shapes.FOREIGN["InstantCharacter"][0])
    sentence = r"^flux\.safetensors cannot be used: this is an InstantCharacter adapter: "
    with pytest.raises(IPAdapterError, match=sentence):
        read_checkpoint(tmp_path / "flux.safetensors")
