"""An adapter file's tensors with their prefixes normalised; a safetensors file is identified by its header alone.

A file is read for what it holds, whatever its name ends in.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import IPAdapterError
from .family import identify
from .shapes import check_layout

log = logging.getLogger(__name__)

_ALIASES = (  # other trainers' and the diffusers-style names of the same tensors
    (re.compile(r"^(image_proj_model|ip_adapter_proj_model)\."), "image_proj."),
    (re.compile(r"^adapter_modules\."), "ip_adapter."),
    *(
        (re.compile(rf"^(image_proj\.layers\.\d+)\.{theirs}\."), rf"\1.{ours}.")
        for theirs, ours in (  # diffusers' IPAdapterTimeImageProjection
            ("ln0", "0.norm1"), ("ln1", "0.norm2"), (r"attn\.to_q", "0.to_q"), (r"attn\.to_kv", "0.to_kv"),
            (r"attn\.to_out\.0", "0.to_out"), ("adaln_norm", "1.0"), (r"ff\.net\.0\.proj", "1.1"),
            (r"ff\.net\.2", "1.3"), ("adaln_proj", "2.1"),
        )
    ),
    (re.compile(r"^double_blocks\.(\d+)\.processor\.ip_adapter_double_stream_([kv])_proj\."), r"ip_adapter.\1.to_\2_ip."),
)
_ARCHIVES = ((b"7z\xbc\xaf", "7z"), (b"Rar!", "RAR"), (b"\x1f\x8b", "gzip"))
_DTYPE_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
                "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}
_HEADER_LIMIT = 100_000_000  # the safetensors format's own
_AXES, _NAME, _DEPTH = 64, 200, 8  # more than any tensor, name of one, or nesting of dicts that was ever published
# What torch.save writes for plain tensors. torch would read more without running code, yet some of that makes memory out of nothing.
_PLAIN = re.compile(
    r"collections OrderedDict|torch._utils _rebuild_(tensor_v[23]|parameter)|torch(\.storage)? \w+Storage|"
    r"torch (Size|device|[a-z]+[0-9]+\w*|bool)"
)
_HARMLESS = re.compile(r"None|torch\S* .*|(builtins|__builtin__) (bytearray|complex|set)|_codecs encode")  # None: a name that is computed
_AGAIN = "Download it again."
_OTHER = "Choose another file."


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors without their prefixes: image_proj["proj.weight"], ip_adapter["1.to_k_ip.weight"]."""

    image_proj: dict[str, Tensor]
    ip_adapter: dict[str, Tensor]


def read_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Names, prefixes normalised, and shapes of a file's tensors; of a safetensors file only the header is read.

    Raises IPAdapterError for a file that is no such file, is cut short, or is a pickle with code in it.
    """
    path = Path(path)
    if is_safetensors(path):
        return _header(path)
    return {key: tuple(tensor.shape) for key, tensor in _torch_tensors(path).items()}


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The tensors of an adapter file on the CPU in the file's dtypes (fp8 widened to fp16, which holds it exactly).

    Raises IPAdapterError for what read_shapes refuses, an unsupported kind, a missing or misshaped tensor, non-float
    tensors, NaN or infinity.
    """
    path = Path(path)
    if not is_safetensors(path):
        return _checked(_torch_tensors(path), path.name)
    _check(read_shapes(path), path.name)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(key) for key in file.keys() if _is_adapters(name := _normalise(key))}
    except SafetensorError as error:
        raise IPAdapterError(f"{path.name} is damaged ({_brief(error)}). {_AGAIN}") from error
    return _finish(tensors, path.name)


def from_state_dicts(mapping: Mapping[str, Any], name: str = "This adapter") -> Checkpoint:
    """A Checkpoint of dicts that another pack read: {"image_proj": {...}, "ip_adapter": {...}}. Raises as read_checkpoint does."""
    return _checked(_flatten(mapping), name)


def is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors (True) or torch.save's (False), by its first bytes. Raises IPAdapterError when it is neither."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise IPAdapterError(f"{path.name} cannot be read: {error.strerror or error}. Check the path and its permissions.") from error
    if not size:
        raise IPAdapterError(f"{path.name} is empty (0 bytes). {_AGAIN}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _HEADER_LIMIT:
        return True
    if head.startswith((b"PK", b"\x80")):
        return False
    if head.startswith(b"version https://git-lfs"):
        raise IPAdapterError(f"{path.name} is a git-lfs pointer, not the model. Run `git lfs pull`, or download the file from its page.")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise IPAdapterError(f"{path.name} is a web page saved instead of the model. Download the file itself with the page's button.")
    for magic, archive in _ARCHIVES:
        if head.startswith(magic):
            raise IPAdapterError(f"{path.name} is a {archive} archive under another name. Unpack it and use the file inside.")
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        raise IPAdapterError(f"{path.name} is a text file, probably an error message saved instead of the model. {_AGAIN}")
    raise IPAdapterError(f"{path.name} is neither a safetensors file nor one that torch.save wrote, by its first bytes. {_AGAIN}")


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Normalised names and shapes of a safetensors file; 8 bytes of length, then JSON, then the payload (safetensors, format)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(min(length, size))
    if length > size - 8:
        raise IPAdapterError(f"{path.name} is cut short: its header alone has {length} bytes and the file {size}. {_AGAIN}")
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        shapes, end = {}, 0
        for key, entry in entries.items():
            shape, last = _entry(entry)
            _put(shapes, key, shape)
            end = max(end, last)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IPAdapterError(f"{path.name} has a damaged safetensors header ({_brief(error)}). {_AGAIN}") from error
    if (payload := size - 8 - length) != end:
        state = "is cut short" if payload < end else "is damaged"
        raise IPAdapterError(f"{path.name} {state}: its header names {end} bytes of tensors, and {payload} follow. {_AGAIN}")
    return shapes


def _entry(entry: dict[str, Any]) -> tuple[tuple[int, ...], int]:
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, end)) or len(shape) > _AXES:
        raise ValueError("a shape or an offset is not a natural number")
    if entry["dtype"] not in _DTYPE_BYTES:
        raise ValueError(f"the number type {entry['dtype']} is not known")
    if end - start != math.prod(shape) * _DTYPE_BYTES[entry["dtype"]]:
        raise ValueError("a tensor's offsets do not fit its shape")
    return shape, end


def _torch_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, names flat and normalised, storages mapped from the file where it is a zip."""
    # torch.load maps a file only by its path, and newer ones read a path that ends in .safetensors as such, whatever it holds
    zipped = _is_torch_zip(path)
    mapped = zipped and path.suffix.lower() != ".safetensors"
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            content = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load has no common error class for damaged files
        raise IPAdapterError(f"{path.name} is damaged: torch cannot read it ({_brief(error)}). {_AGAIN}") from error
    if not isinstance(content, Mapping):
        raise IPAdapterError(f"{path.name} holds a {type(content).__name__} instead of named tensors: it is not an IP-Adapter. {_OTHER}")
    try:
        tensors = _flatten(content)
    except ValueError as error:
        raise IPAdapterError(f"{path.name} is damaged: {error}. {_AGAIN}") from error
    if sum(tensor.nbytes for tensor in tensors.values()) > path.stat().st_size:  # views of one storage that stand for more than it
        raise IPAdapterError(f"{path.name} is damaged: its tensors are larger than the file. {_AGAIN}")
    return tensors


def _is_torch_zip(path: Path) -> bool:
    """Whether a file is torch.save's zip (True) or the pickles it wrote before.

    Raises IPAdapterError for damaged and compressed ones, and where more than plain tensors is in it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            _check_pickles(file, path.name, 5)  # a magic number, a version, the system, the content, the storages' keys
            return False
        try:
            archive = zipfile.ZipFile(file)
            records = archive.infolist()
        except Exception as error:  # zipfile has no common error class either
            raise IPAdapterError(f"{path.name} is cut short or damaged ({_brief(error)}). {_AGAIN}") from error
        if any("/code/" in record.filename for record in records):
            raise IPAdapterError(f"{path.name} is refused: it is a TorchScript program, not weights alone. Use a safetensors file.")
        pickles = [record for record in records if record.filename.endswith("data.pkl")]
        if not pickles:
            raise IPAdapterError(f"{path.name} is a zip archive under another name. Unpack it and use the file inside.")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records) or sum(record.file_size for record in records) > size:
            raise IPAdapterError(f"{path.name} is a compressed zip, which torch.save does not write: it is damaged or forged. {_AGAIN}")
        for record in pickles:
            try:
                pickled = archive.open(record)
            except Exception as error:
                raise IPAdapterError(f"{path.name} is cut short or damaged ({_brief(error)}). {_AGAIN}") from error
            with pickled:
                _check_pickles(pickled, path.name, 1)
    return True


def _check_pickles(file: IO[bytes], name: str, count: int) -> None:
    """Raises IPAdapterError where one of `count` pickles names more than plain tensors are made of, or cannot be followed."""
    try:
        called = (arg for _ in range(count) for op, arg, _ in pickletools.genops(file) if op.name in ("GLOBAL", "INST", "STACK_GLOBAL"))
        found = next((str(one) for one in called if not _PLAIN.fullmatch(str(one))), None)
    except Exception as error:
        raise IPAdapterError(f"{name} is damaged: torch cannot read it ({_brief(error)}). {_AGAIN}") from error
    if found is None:
        return
    if _HARMLESS.fullmatch(found):
        raise IPAdapterError(f"{name} is refused: it is a pickle that holds more than tensors. Use a safetensors file.")
    raise IPAdapterError(
        f"{name} is refused: it is a pickle that calls {_brief(found).replace(' ', '.')}, "
        "and loading it could run any program on this computer. Use a safetensors file."
    )


def _flatten(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Nested dicts of tensors as one with dotted, normalised names; what is no tensor (a step count, a scale) is left out.

    A dict that is found again is not gone into again. Raises ValueError for names and dicts that no adapter has.
    """
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}

    def walk(values: Mapping[Any, Any], prefix: str, depth: int) -> None:
        seen.add(id(values))
        if depth > _DEPTH:
            raise ValueError(f"its dicts are nested more than {_DEPTH} deep")
        for key, value in values.items():
            if isinstance(value, Mapping) and id(value) not in seen:
                walk(value, f"{prefix}{_readable(key)}.", depth + 1)
            elif isinstance(value, Tensor):
                _put(tensors, f"{prefix}{_readable(key)}", value.detach())

    inner = content.get("state_dict")
    walk(inner if isinstance(inner, Mapping) else content, "", 1)
    return tensors


def _put(found: dict[str, Any], key: str, value: Any) -> None:
    """Raises ValueError for a second tensor of the same normalised name."""
    name = _normalise(_readable(key))
    if name in found:
        raise ValueError(f"there are two tensors {name}")
    found[name] = value


def _readable(key: object) -> str:
    """A tensor's name. Raises ValueError for one that cannot be shown."""
    if not isinstance(key, str | int) or len(text := str(key)) > _NAME or not text.isprintable():
        raise ValueError("the name of a tensor cannot be read")
    return text


def _brief(error: object) -> str:
    """The first line of an error, or its class where it says nothing, short enough to be read."""
    first = (str(error).splitlines() or [""])[0][:160]
    return "".join(char if char.isprintable() else "?" for char in first).strip() or type(error).__name__


def _normalise(key: str) -> str:
    for pattern, prefix in _ALIASES:
        key = pattern.sub(prefix, key)
    return key


def _is_adapters(key: str) -> bool:
    return key.startswith(("image_proj.", "ip_adapter."))


def _check(shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    info = identify(shapes, name)
    if not info.supported:
        raise IPAdapterError(f"{name} cannot be used: {info.problem}. {_OTHER}")
    check_layout(shapes, info, name)


def _checked(tensors: dict[str, Tensor], name: str) -> Checkpoint:
    _check({key: tuple(tensor.shape) for key, tensor in tensors.items()}, name)
    return _finish(tensors, name)


def _finish(tensors: dict[str, Tensor], name: str) -> Checkpoint:
    checkpoint = Checkpoint({}, {})
    for key, tensor in tensors.items():
        if not _is_adapters(key):
            log.info("%s: %s is not part of an adapter and is left out", name, key)
            continue
        group, rest = key.split(".", 1)
        getattr(checkpoint, group)[rest] = _usable(tensor, key, name)
    return checkpoint


def _usable(tensor: Tensor, key: str, name: str) -> Tensor:
    if not tensor.is_floating_point():
        raise IPAdapterError(
            f"{name} holds {key} as {str(tensor.dtype).removeprefix('torch.')}: it is quantised or damaged. Use the published file."
        )
    if tensor.dtype.itemsize == 1:
        tensor = tensor.to(torch.float16)
    low, high = tensor.aminmax()  # a NaN anywhere makes both NaN; one pass, no copy
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise IPAdapterError(f"{name} has NaN or infinite numbers in {key}: it is damaged or its training failed. Use another copy.")
    return tensor
