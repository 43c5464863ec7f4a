"""What an adapter file is, what it needs and whether that is here, in words."""

from __future__ import annotations

import os
from collections.abc import Callable

from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.files.family import Info
from ....ipadapter_core.files.published import PRESETS, file_named, is_of, variant_of
from ..faces.recogniser import find_models, models_for, require_insightface
from ..files.find import adapter_path, find_encoder, find_lora, identify_file


def report(name: str) -> str:
    """Lines about a file of the ipadapter folders; what is wrong with it in place of what it is. Reads its header only."""
    path = adapter_path(name)
    lines = [name, f"size: {os.path.getsize(path) / 2**20:.1f} MB"]
    try:
        info = identify_file(path)
    except IPAdapterError as error:
        return "\n".join([*lines, f"problem: {error}"])
    lines.append(f"is: {info.label}")
    lines += [f"not certain: {ambiguity}" for ambiguity in info.ambiguities]
    if not info.supported:
        return "\n".join([*lines, f"problem: {info.problem}."])
    lines += [f"for models: {info.base}", f"tokens per picture: {info.tokens}", f"preset: {_presets(info, name)}"]
    encoder = info.encoder
    lines.append(f"image encoder: {_here(lambda: find_encoder(encoder), encoder.name)}" if encoder else "image encoder: none needed")
    if info.face:
        lines.append(f"face recogniser: {_here(lambda: _recogniser(info), 'insightface')}")
        lines.append(f"LoRA: {_lora(info)}")
    return "\n".join(lines)


def _here(find: Callable[[], str], name: str) -> str:
    """`name` and the file that `find` finds for it, or the sentences it raises."""
    try:
        return f"{name}, here: {os.path.basename(find())}"
    except IPAdapterError as error:
        return f"{name}, MISSING. {error}"


def _lora(info: Info) -> str:
    try:
        path = find_lora(info)
    except IPAdapterError as error:
        return f"MISSING. {error}"
    return f"here: {os.path.basename(path)}" if path else "inside the file" if info.lora else "none needed"


def _recogniser(info: Info) -> str:
    require_insightface()
    return find_models(models_for(info.base))


def _presets(info: Info, name: str) -> str:
    """The presets of the unified loaders that can mean such a file."""
    variant = variant_of(name)
    rows = {preset: [file_named(one) for one in bases.get(info.base, ())] for preset, bases in PRESETS.items()}
    fitting = [preset for preset, files in rows.items() if any(is_of(row, info) and variant in ("", row.variant) for row in files)]
    return ", ".join(fitting) or "none, load it with IPAdapter Model Loader"
