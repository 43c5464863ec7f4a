"""Files that somebody made on purpose: pickles with code or with tensors larger than the file, zip bombs, files of another kind."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch._utils import _rebuild_tensor_v2

from support import narrow
from support.mutate import Mutation
from support.narrow import torch_file

MARKER = Path("code-ran")  # in the working directory, made by every pickle whose code is run


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _nested(subject, **more) -> dict:
    tensors = subject.tensors
    parts = {
        part: {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(part)}
        for part in ("image_proj", "ip_adapter")
    }
    return {**parts, **more}


def code(rng, subject):
    """A call that would leave MARKER behind, beside or in place of the tensors, in a zip, before zip and as a bare pickle."""
    text = f"open({str(MARKER)!r}, 'w').close()"
    calls = (
        Call(exec, text),
        Call(eval, text),
        Call(os.system, f"touch {MARKER}"),
        Call(open, str(MARKER), "w"),
        Call(np.save, str(MARKER), [1]),
        Call(os.mkdir, str(MARKER)),
        Call(torch.save, 1, str(MARKER)),
        Call(getattr, "x", "upper"),
        Call(__import__, "antigravity"),
    )
    harmful = rng.choice(calls)
    content = rng.choice(
        (harmful, _nested(subject, extra=harmful), _nested(subject, image_proj=harmful), {harmful.call[0].__name__: harmful})
    )
    if rng.random() < 0.3:
        return pickle.dumps(content, rng.choice((2, 3, 4, 5)))
    return torch_file(content, rng.random() < 0.6)


def larger_than_the_file(rng, subject):
    """Strides of 0, expanded views and storages that claim more than there is."""
    one = torch.ones(1, dtype=torch.float16)
    huge = rng.choice((2**22, 2**30, 2**40))
    nested = _nested(subject)

    def claim(pickled: bytes) -> bytes:
        """Says that the storages of one element have many."""
        return pickled.replace(b"K\x01tq", b"\x8a\x07" + huge.to_bytes(7, "little") + b"tq")

    if subject.family == "faceid":
        nested["image_proj"]["proj.0.weight"] = one.expand(huge, 512)
        nested["image_proj"]["proj.0.bias"] = one.expand(huge)
        nested["image_proj"]["proj.2.weight"] = one.expand(768 * 4, huge)
    elif rng.random() < 0.5:
        nested["other"] = {str(n): one.expand(huge) for n in range(100)}
    else:
        for key, value in nested["ip_adapter"].items():
            nested["ip_adapter"][key] = one.expand(huge if value.shape[0] == narrow.WIDTH else value.shape[0], *value.shape[1:])
    zipped = rng.random() < 0.7
    content = torch_file(nested, zipped)
    return content if rng.random() < 0.6 else _rezipped(content, {"data.pkl": claim}) if zipped else claim(content)


def objects(rng, subject):
    """What torch reads from a pickle besides plain tensors on the CPU."""
    huge = rng.choice((2**20, 2**36, 2**60))
    meta = torch.empty(rng.choice((3, 2**40)), device="meta")
    sparse = torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (huge,))
    things = (
        meta,
        sparse,
        torch.eye(3).to_sparse_csr(),
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2).requires_grad_(),
        torch.quantize_per_tensor(torch.ones(8, 8), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.device("cuda:7"),
        torch.Size((huge,)),
        torch.float16,
        {1, 2},
        bytearray(5),
        b"bytes",
        10**400,
        2j,
        "x" * 100_000,
        None,
        [torch.ones(2)],
        Call(bytearray, huge),
        Call(torch.Tensor, huge),
        Call(torch.nn.Parameter, torch.ones(2)),
        Call(torch.storage.UntypedStorage, huge),
        Call(torch.Size, (1, 2)),
        Call(OrderedDict, [("a", torch.ones(2))]),
        OrderedDict(a=OrderedDict()),
        torch.ones(8).untyped_storage(),
        np.float32(1),
        np.zeros(3),
        Path("x"),
        ...,
        range(huge),
        slice(1),
        Call(complex, 1, 2),
        Call(set, [1]),
        Call(_rebuild_tensor_v2, torch.ones(2).untyped_storage(), -5, (3,), (1,), False, OrderedDict()),
        Call(_rebuild_tensor_v2, torch.ones(2).untyped_storage(), 0, (3, huge), (0, -1), False, OrderedDict()),
        Call(_rebuild_tensor_v2, 5, 0, (3,), (1,), False, OrderedDict()),
    )
    thing = rng.choice(things)
    nested = _nested(subject)
    where = rng.choice(("root", "group", "tensor", "extra", "key", "state_dict"))
    if where == "tensor":
        part = rng.choice(list(nested))
        nested[part][rng.choice(list(nested[part]))] = thing
    elif where == "key" and not isinstance(thing, dict | list | set | bytearray):
        nested["ip_adapter" if rng.random() < 0.5 else "extra"] = {thing: torch.ones(2)} if thing.__hash__ else {}
    elif where in ("group", "extra", "state_dict"):
        nested[{"group": "image_proj"}.get(where, where)] = thing
    return torch_file(thing if where == "root" else nested, rng.random() < 0.7)


def structures(rng, subject):
    """Dicts inside themselves, dicts that hold one another twice (2^40 ways down), very deep ones, very long names."""
    nested = _nested(subject)
    how = rng.choice(("cycle", "doubled", "deep", "name", "names", "shared", "state_dict", "numbers"))
    if how == "cycle":
        nested[rng.choice(("image_proj", "self"))] = nested
    elif how == "doubled":
        inner: dict = {"x": torch.ones(1)}
        for _ in range(40):
            inner = {"a": inner, "b": inner}
        nested["extra"] = inner
    elif how == "deep":
        inner = {"x": torch.ones(1)}
        for _ in range(400):
            inner = {"a": inner}
        nested["extra"] = inner
    elif how == "name":
        nested["image_proj"]["x" * 100_000] = torch.ones(1)
    elif how == "names":
        one = torch.ones(1)
        nested["y" * 100_000] = {str(n): one for n in range(2000)}
    elif how == "shared":
        nested["ip_adapter"] = nested["image_proj"]
    elif how == "state_dict":
        nested = {"state_dict": {"state_dict": nested}}
    else:
        nested["ip_adapter"] = {tuple(key.split(".")): value for key, value in nested["ip_adapter"].items()}
    return torch_file(nested, rng.random() < 0.7)


def opcodes(rng, subject):
    """The pickle inside a well-formed zip, damaged."""

    def damage(content: bytes) -> bytes:
        pickled = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(pickled))
            pickled[at] = rng.choice((rng.randrange(256), rng.choice(b"RcbuseaotQP.0(jhqr")))
        return bytes(pickled) if rng.random() < 0.8 else bytes(pickled[: rng.randrange(len(pickled))])

    return _rezipped(_zip(subject), {"data.pkl": damage})


def _zip(subject) -> bytes:
    return narrow.content(subject.family, "zip")


def _rezipped(content, changes, method=zipfile.ZIP_STORED, add=()) -> bytes:
    """The zip of a torch file with some records' contents changed (None: left out)."""
    out = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(content))
    with source, zipfile.ZipFile(out, "w", method) as target:
        for name in source.namelist():
            change = next((change for ending, change in changes.items() if name.endswith(ending)), bytes)
            if change:
                target.writestr(zipfile.ZipInfo(name), change(source.read(name)), method)
        for name, record in add:
            target.writestr(zipfile.ZipInfo(name), record, method)
    return out.getvalue()


def zips(rng, subject):
    """Zips within zips, deflated records, records missing, twice, too short, with other names."""
    how = rng.choice(("inside", "inside torch's", "deflated", "lost", "twice", "short", "empty", "names", "comment", "code"))
    if how == "inside":
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr(rng.choice(("adapter.bin", "archive/data.pkl", "a/b.safetensors")), subject.content)
        return out.getvalue()
    if how == "inside torch's":
        return _rezipped(_zip(subject), {"data.pkl": lambda content: content + _zip(subject)})
    if how == "deflated":
        return _rezipped(_zip(subject), {}, zipfile.ZIP_DEFLATED)
    ending = rng.choice(("data.pkl", "/0", "/1", "version", "byteorder", ".data/serialization_id"))
    if how == "lost":
        return _rezipped(_zip(subject), {ending: None})
    if how == "short":
        return _rezipped(_zip(subject), {ending: lambda content: content[: len(content) // 2]})
    if how == "empty":
        return _rezipped(_zip(subject), {ending: lambda content: b""})
    if how == "twice":
        name = "archive/data.pkl" if rng.random() < 0.5 else "other/data.pkl"
        return _rezipped(_zip(subject), {}, add=[(name, pickle.dumps(Call(os.system, f"touch {MARKER}"), 2))])
    if how == "names":
        names = ("../../x", "/etc/x", "a\\b", "\u0663", "x" * 60_000, "")
        return _rezipped(_zip(subject), {}, add=[(rng.choice(names), b"1")])
    if how == "code":
        return _rezipped(_zip(subject), {}, add=[("archive/code/x.py", b"import os")])
    return _zip(subject)[:-2] + b"\x05\x00hello"


@cache
def _bomb(record: str, size: int) -> bytes:
    """A torch file with `size` zeros in the records of that name, deflated to a thousandth."""
    small = torch_file({"image_proj": {"proj.weight": torch.zeros(4)}, "ip_adapter": {"1.to_k_ip.weight": torch.zeros(4)}})

    def claim(pickled: bytes) -> bytes:
        return pickled.replace(b"K\x04tq", b"J" + (size // 4).to_bytes(4, "little") + b"tq")

    return _rezipped(small, {"data.pkl": claim, record: lambda content: bytes(size)}, zipfile.ZIP_DEFLATED)


def bombs(rng, subject):
    """A small file that would unpack to a quarter of a gigabyte: deflated, one record listed ninety times, or gzipped."""
    how = rng.choice(("deflated", "listed", "pickle", "gzip"))
    if how == "gzip":
        return gzip.compress(bytes(1 << 20))
    if how == "deflated":
        return _bomb("data/0", 1 << 28)
    if how == "pickle":
        return _bomb("data.pkl", 1 << 28)
    content = _zip(subject)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        start = archive.start_dir
    end = content.rindex(b"PK\x05\x06")
    directory = content[start:end].split(b"PK\x01\x02")
    entry = next(b"PK\x01\x02" + part for part in directory if largest.filename.encode() in part).split(b"PK\x06\x06")[0]
    copies = b"".join(entry.replace(largest.filename.encode(), largest.filename.encode()[:-2] + b"%02d" % n) for n in range(90))
    more = content[start:].split(b"PK\x06\x06")[0].split(b"PK\x05\x06")[0] + copies
    count = more.count(b"PK\x01\x02")
    return content[:start] + more + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(more), start, 0)


def _picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, kind)
    return out.getvalue()


def _tar(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.zeros(4))
    return out.getvalue()


@cache
def _others() -> tuple[bytes, ...]:
    ones = torch.ones(2, 2)
    kinds = (
        "lora.lora_up.weight",
        "lora_unet_a.lora_down.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.x",
        "control_model.x",
        "vision_model.embeddings.x",
        "vision_model.embeddings.position_embedding.weight",
        "visual.proj",
        "text_model.x",
        "emb_params",
        "double_blocks.0.x",
        "motion_modules.x",
        "id_encoder.x",
        "redux_up.x",
        "anything",
    )
    files = [writer({name: ones}) for name in kinds for writer in (save, torch_file)]
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    return (
        *files,
        *map(_picture, ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")),
        b"",
        b"\0",
        b"\x80",
        b"PK",
        b"{",
        bytes(9),
        bytes(100_000),
        b"<!DOCTYPE html><html></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 98183288\n",
        b"Not found",
        "Zugriff verweigert: größer".encode(),
        "text".encode("utf-16"),
        json.dumps({"a": [1, 2]}).encode(),
        b"GGUF\3\0\0\0" + bytes(1000),
        b"%PDF-1.7\n%\xe2\xe3\n" + bytes(500),
        b"\x7fELF" + bytes(500),
        b"MZ" + bytes(500),
        b"SQLite format 3\0" + bytes(500),
        _npz(),
        b"\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }".ljust(128) + bytes(16),
        _tar(pickle.dumps(1, 2)),
        _tar(b"x"),
        gzip.compress(b"x" * 1000),
        b"7z\xbc\xaf\x27\x1c" + bytes(100),
        b"Rar!\x1a\7\0" + bytes(100),
        b"\x89HDF\r\n\x1a\n" + bytes(500),
        script.getvalue(),
        pickle.dumps({"a": 1}),
        pickle.dumps([1], 0),
        torch_file([ones]),
        torch_file(ones),
        torch_file({}),
        torch_file(None),
        torch_file({}, zipped=False),
        save({}),
        b"\x1f\x8b\x08",
        b"import torch\nprint(1)\n",
        b"BZh91AY&SY" + bytes(99),
        b"\x80\x02}q\x00.",
        b"\x80\x02." * 5,
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.",
    )


def other_kinds(rng, subject):
    content = rng.choice(_others())
    return content if rng.random() < 0.9 else rng.randbytes(rng.randint(1, 5000))


PICKLES: dict[str, Mutation] = {
    "pickle: code": code,
    "pickle: larger than the file": larger_than_the_file,
    "pickle: objects": objects,
    "pickle: structures": structures,
    "pickle: opcodes": opcodes,
}
ZIPS: dict[str, Mutation] = {"zip: forged": zips, "zip: bombs": bombs}
OTHERS: dict[str, Mutation] = {"other kinds of file": other_kinds}
