"""Ways to damage or forge an adapter file: KINDS[name](rng, subject) gives a file's content. The same numbers give the same file."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from support import narrow
from support.narrow import Flat


@dataclass(frozen=True)
class Subject:
    """The undamaged file: a family's adapter in one of "safetensors", "zip" and "legacy"."""

    family: str
    container: str

    @property
    def content(self) -> bytes:
        return narrow.content(self.family, self.container)

    @property
    def tensors(self) -> Flat:
        return dict(narrow.adapter(self.family))

    def written(self, tensors: Flat) -> bytes:
        return narrow.written(tensors, self.container)

    @property
    def head(self) -> tuple[int, int]:
        """Where the names and shapes lie: the header, or the first pickle."""
        if self.container == "safetensors":
            return 0, 8 + int.from_bytes(self.content[:8], "little")
        return 0, min(len(self.content), 40_000)


Mutation = Callable[[random.Random, Subject], bytes]

# Bytes


def cut(rng, subject):
    return subject.content[: rng.randrange(len(subject.content))]


def cut_early(rng, subject):
    return subject.content[: rng.randrange(subject.head[1])]


def cut_late(rng, subject):
    return subject.content[: -rng.randint(1, 2000)]


def _flipped(rng, subject, start, end):
    content = bytearray(subject.content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(content)


def bits_flipped(rng, subject):
    return _flipped(rng, subject, 0, len(subject.content))


def bits_flipped_early(rng, subject):
    return _flipped(rng, subject, *subject.head)


def bits_flipped_late(rng, subject):
    return _flipped(rng, subject, max(0, len(subject.content) - 4000), len(subject.content))


def zeroed(rng, subject):
    content = bytearray(subject.content)
    start = rng.randrange(rng.choice((subject.head[1], len(content))))
    length = min(rng.choice((1, 16, 4096, len(content))), len(content) - start)
    content[start : start + length] = bytes(length)
    return bytes(content)


def noise_inside(rng, subject):
    content = bytearray(subject.content)
    start = rng.randrange(rng.choice((subject.head[1], len(content))))
    length = min(rng.choice((4, 100, 10_000)), len(content) - start)
    content[start : start + length] = rng.randbytes(length)
    return bytes(content)


def length_field(rng, subject):
    """Some little-endian number near the beginning or the end becomes an extreme one; of safetensors often the header's length."""
    content = bytearray(subject.content)
    size = rng.choice((2, 4, 8))
    near = rng.randrange(64), rng.randrange(subject.head[1]), len(content) - rng.randint(8, 120)
    at = 0 if subject.container == "safetensors" and rng.random() < 0.7 else rng.choice(near)
    top = 1 << 8 * size
    value = rng.choice((0, 1, 7, 255, top // 2 - 1, top // 2, top - 1, len(content) % top, rng.randrange(top), 100_000_000 % top))
    content[at : at + size] = value.to_bytes(size, "little")
    return bytes(content)


def prefix(rng, subject):
    fronts = (
        b"\xef\xbb\xbf",
        b"\n",
        b"\0",
        b"PK\3\4",
        b"\x80\2",
        rng.randbytes(rng.randint(1, 100)),
        b"HTTP/1.1 200 OK\r\n\r\n",
        bytes(512),
    )
    return rng.choice(fronts) + subject.content


def appended(rng, subject):
    return subject.content + rng.choice((b"\0", rng.randbytes(100), bytes(70_000), subject.content))


def blocks_swapped(rng, subject):
    content = subject.content
    size = min(rng.choice((8, 512, 4096)), len(content) // 4)
    a, b = sorted(rng.sample(range(len(content) // size), 2))
    a, b = a * size, b * size
    return content[:a] + content[b : b + size] + content[a + size : b] + content[a : a + size] + content[b + size :]


def block_lost(rng, subject):
    start = rng.randrange(len(subject.content))
    return subject.content[:start] + subject.content[start + rng.choice((1, 2, 512, 4096)) :]


# Tensors


def _some(rng, tensors: Flat) -> list[str]:
    """One name or several; those of the projection, which differ between families, are as likely as the many layers'."""
    part = rng.choice(("image_proj.", "ip_adapter."))
    names = [name for name in tensors if name.startswith(part)]
    return rng.sample(names, min(len(names), rng.choice((1, 1, 2, 5))))


def dropped(rng, subject):
    tensors = subject.tensors
    names = _some(rng, tensors)
    if rng.random() < 0.2:
        names = [name for name in tensors if name.startswith(rng.choice(("image_proj.", "ip_adapter.")))]
    return subject.written({key: value for key, value in tensors.items() if key not in names})


NAMES = (
    "ip_adapter.99.to_k_ip.weight",
    "ip_adapter.01.to_k_ip.weight",
    "ip_adapter.\u0663.to_k_ip.weight",
    "ip_adapter.-1.to_k_ip.weight",
    "ip_adapter.1.to_k_ip",
    "image_proj.layers.999999999999.0.to_q.weight",
    f"ip_adapter.{'9' * 5000}.to_k_ip.weight",
    f"image_proj.layers.{'9' * 5000}.1.1.weight",
    "image_proj.latents",
    "image_proj.proj.3.weight",
    "image_proj.",
    "ip_adapter.",
    ".",
    "",
    "a\nb",
    "image_proj.a\nip_adapter.0.to_k_ip.weight",
    "\x1b[31mred",
    "\u202eright to left",
    "x" * 100_000,
    "image_proj_model.proj.weight",
    "adapter_modules.1.to_k_ip.weight",
    "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight",
    "state_dict",
    "lora_up.weight",
    "ip_adapter.1.to_k_ip.lora_up.weight",
    "ip_adapter.2.to_q_lora.down.weight",
    "unet.down_blocks.0.weight",
    "image_proj.\U0001f600",
)


def renamed(rng, subject):
    tensors = subject.tensors
    for name in _some(rng, tensors):
        value = tensors.pop(name)
        tensors[rng.choice((rng.choice(NAMES), name.upper(), name + ".", name.replace(".", "_"), "model." + name, name[:-1]))] = value
    return subject.written(tensors)


def added(rng, subject):
    shape = rng.choice(((1,), (0,), (), (8, 768), (2, 2, 2)))
    return subject.written(subject.tensors | {rng.choice(NAMES): torch.zeros(shape, dtype=torch.float16)})


def _reshaped(rng, value: Tensor) -> Tensor:
    shape = list(value.shape)
    for _ in range(rng.randint(1, 2)):
        axis = rng.randrange(len(shape)) if shape else 0
        if shape and shape[axis] % 2 == 0 and rng.random() < 0.5:
            shape[axis : axis + 1] = [2, shape[axis] // 2]
        else:
            shape.insert(axis, 1)
    return value.reshape(rng.choice((shape, [-1], [-1, 1], [1, -1])))


def reshaped(rng, subject):
    tensors = subject.tensors
    return subject.written(tensors | {name: _reshaped(rng, tensors[name]) for name in _some(rng, tensors)})


def resized(rng, subject):
    """Other sizes along an axis, now and then the same in all layers or none at all."""
    tensors = subject.tensors
    names = _some(rng, tensors)
    if rng.random() < 0.3:
        ending = names[0].split(".", 2)[-1]
        names = [name for name in tensors if name.endswith(ending)]
    factor = rng.choice((0, 1, 0.5, 2))
    for name in names:
        value = tensors[name]
        axis = rng.randrange(value.ndim)
        count = int(value.shape[axis] * factor) if factor != 1 else value.shape[axis] + 1
        index = torch.arange(count) % value.shape[axis]
        tensors[name] = value.float().index_select(axis, index).to(value.dtype)
    return subject.written(tensors)


def transposed(rng, subject):
    tensors = subject.tensors
    return subject.written(tensors | {name: tensors[name].movedim(0, -1).contiguous() for name in _some(rng, tensors)})


def twelve_axes(rng, subject):
    tensors = subject.tensors
    for name in _some(rng, tensors):
        value = tensors[name]
        tensors[name] = value.reshape([1] * rng.choice((12 - value.ndim, 40)) + list(value.shape))
    return subject.written(tensors)


DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


def other_dtype(rng, subject):
    """Converted, or the same bytes read as another kind of number."""
    tensors = subject.tensors
    names = list(tensors) if rng.random() < 0.3 else _some(rng, tensors)
    dtype, same_bytes = rng.choice(DTYPES), rng.random() < 0.3
    for name in names:
        value = tensors[name]
        if same_bytes and (value.nbytes // max(1, value.shape[0])) % dtype.itemsize == 0 and value.ndim == 2:
            tensors[name] = value.view(dtype)
        else:
            tensors[name] = value.float().to(dtype)
    try:
        return subject.written(tensors)
    except (KeyError, ValueError, RuntimeError):  # safetensors cannot write every dtype
        return narrow.written(tensors, "zip")


def _poked(rng, subject, values):
    tensors = subject.tensors
    for name in _some(rng, tensors):
        value = tensors[name].float()
        flat = value.view(-1)
        for _ in range(rng.choice((1, 10, 1000))):
            flat[rng.randrange(len(flat))] = rng.choice(values)
        tensors[name] = value
    return subject.written(tensors)


def not_numbers(rng, subject):
    return _poked(rng, subject, (math.nan, math.inf, -math.inf))


def huge(rng, subject):
    """Finite numbers whose products or sums are not."""
    if rng.random() < 0.5:
        return _poked(rng, subject, (3e38, -3e38, 1e30, 65504.0))
    tensors = subject.tensors
    return subject.written(tensors | {name: tensors[name].float() * 1e30 for name in _some(rng, tensors)})


def tiny(rng, subject):
    tensors = subject.tensors
    factor = rng.choice((0.0, 1e-40, -1e-30))
    return subject.written(tensors | {name: tensors[name].float() * factor for name in _some(rng, tensors)})


def exchanged(rng, subject):
    tensors = subject.tensors
    a, b = rng.sample(list(tensors), 2)
    return subject.written(tensors | {a: tensors[b], b: tensors[a]})


def twice(rng, subject):
    """The same tensor under two names that mean the same, once in another shape."""
    tensors = subject.tensors
    name = rng.choice(list(tensors))
    other = name.replace("image_proj.", "image_proj_model.").replace("ip_adapter.", "adapter_modules.")
    return subject.written({**tensors, other: rng.choice((tensors[name].clone(), torch.zeros(3, 3)))})


def many_tokens(rng, subject):
    """Latents that are many and narrow: a small file whose K and V would be large."""
    proj: Flat = {}
    narrow.resampler(proj, "image_proj.", 1, 768, narrow.HIDDEN)
    proj["image_proj.latents"] = torch.zeros(1, rng.choice((5000, 200_000, 1_000_000)), 1)
    layers = {key: value for key, value in narrow.adapter("plus").items() if key.startswith("ip_adapter.")}
    return subject.written({key: value.half() for key, value in {**proj, **layers}.items()})


BYTES: dict[str, Mutation] = {
    "bytes: cut": cut,
    "bytes: cut early": cut_early,
    "bytes: cut late": cut_late,
    "bytes: bits flipped": bits_flipped,
    "bytes: bits flipped early": bits_flipped_early,
    "bytes: bits flipped late": bits_flipped_late,
    "bytes: zeroed": zeroed,
    "bytes: noise": noise_inside,
    "bytes: length field": length_field,
    "bytes: prefix": prefix,
    "bytes: appended": appended,
    "bytes: blocks swapped": blocks_swapped,
    "bytes: block lost": block_lost,
}
TENSORS: dict[str, Mutation] = {
    "tensors: dropped": dropped,
    "tensors: renamed": renamed,
    "tensors: added": added,
    "tensors: reshaped": reshaped,
    "tensors: resized": resized,
    "tensors: transposed": transposed,
    "tensors: 12 axes and more": twelve_axes,
    "tensors: other dtype": other_dtype,
    "tensors: NaN and infinity": not_numbers,
    "tensors: huge": huge,
    "tensors: tiny": tiny,
    "tensors: exchanged": exchanged,
    "tensors: twice": twice,
    "tensors: many tokens": many_tokens,
}
