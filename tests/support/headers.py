"""Forged headers of safetensors files: what they say of the tensors, and where these lie."""

import json

from support import narrow
from support.mutate import Mutation

_VALUES = (
    0,
    1,
    -1,
    2**31,
    2**40,
    2**62,
    2**63,
    2**64,
    10**400,
    1.5,
    1e400,
    True,
    None,
    "1",
    [],
    [2**40],
    {},
    "F16",
    "\ud800",
    [[]],
    [1] * 100,
)


def _with_header(entries: object, payload: bytes) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + payload


def _opened(subject) -> tuple[dict, bytes]:
    content = narrow.content(subject.family, "safetensors")
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def header_values(rng, subject):
    entries, payload = _opened(subject)
    for _ in range(rng.choice((1, 1, 3))):
        key = rng.choice(list(entries))
        entry = entries[key]
        if not isinstance(entry, dict) or rng.random() < 0.1:
            entries[key] = rng.choice(_VALUES)
            continue
        field = rng.choice(("dtype", "shape", "data_offsets"))
        if isinstance(entry.get(field), list) and entry[field] and rng.random() < 0.7:
            entry[field][rng.randrange(len(entry[field]))] = rng.choice(_VALUES)
        elif rng.random() < 0.2:
            entry.pop(field, None)
        else:
            entry[field] = rng.choice(_VALUES)
    return _with_header(entries, payload)


def header_text(rng, subject):
    """JSON that is none, that is deep, that is no object, that says a key twice."""
    entries, payload = _opened(subject)
    text = json.dumps(entries).encode()
    forms = (
        b"[" * 50_000,
        b'{"a":' * 50_000,
        b"null",
        b"[]",
        b"{}",
        b'"' + b"x" * 100_000 + b'"',
        b"{" + b" " * 100_000,
        text[:-1],
        text[1:],
        text[:-1] + b", " + text[1:],
        text.replace(b'"F16"', b'"F8_E8M0"'),
        text.replace(b'"F16"', b'"BF16"'),
        text.replace(b'"F16"', b'"F4"'),
        text.replace(b'"F16"', b'"U16"'),
        b'{"__metadata__": {"a": 1}, ' + text[1:],
        b'{"__metadata__": [[]], ' + text[1:],
        text.replace(b" ", b""),
        text + b" " * 1000,
        text.decode().encode("utf-16"),
        b"9" * 5000,
        text.replace(b"768", b"9" * 5000),
    )
    return _with_header(rng.choice(forms), payload)


def offsets(rng, subject):
    """Overlapping tensors, holes between them, all tensors on the same bytes, a payload of a terabyte, the order turned round."""
    entries, payload = _opened(subject)
    how = rng.choice(("overlap", "hole", "one", "terabyte", "turned", "sparse file"))
    names = [name for name in entries if name != "__metadata__"]
    chosen = rng.choice(names)
    for name in names:
        start, end = entries[name]["data_offsets"]
        shift = {
            "overlap": -2 * (name == chosen),
            "hole": 2 ** rng.randint(1, 40) * (name == chosen),
            "one": -start,
            "terabyte": 2**40,
        }.get(how, 0)
        entries[name]["data_offsets"] = [max(0, start + shift), max(0, start + shift) + end - start]
    if how == "turned":
        for name in names:
            entries[name]["data_offsets"].reverse()
    if how == "sparse file":
        entries[chosen]["shape"] = [2**40]
        entries[chosen]["data_offsets"] = [0, 2**41]
    return _with_header(entries, payload)


HEADERS: dict[str, Mutation] = {
    "header: values": header_values,
    "header: text": header_text,
    "header: offsets": offsets,
}
