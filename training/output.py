"""Files of a run: the adapter as it is published, and the state to go on from. A file is complete under its name, or not there."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ipadapter_core.errors import IPAdapterError


def adapter_file(out: str, name: str, step: int) -> Path:
    return Path(out) / f"ip-adapter_{name}_{step}.safetensors"


def state_file(out: str, name: str, step: int) -> Path:
    return Path(out) / f"ip-adapter_{name}_{step}.state"


def _newest(out: str, name: str, ending: str) -> Path | None:
    pattern = re.compile(re.escape(f"ip-adapter_{name}_") + r"(\d+)" + re.escape(ending))
    found = [(int(match[1]), path) for path in Path(out).glob(f"*{ending}") if (match := pattern.fullmatch(path.name))]
    return max(found)[1] if found else None


def newest_adapter(out: str, name: str) -> Path | None:
    return _newest(out, name, ".safetensors")


def newest_state(out: str, name: str) -> Path | None:
    return _newest(out, name, ".state")


@contextlib.contextmanager
def whole(path: Path, advice: str) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` when all of it is on the disk.

    Who may read it is as with any new file: safetensors alone would leave it to its owner. Raises IPAdapterError with `advice` where
    writing fails; then nothing is left of it and `path` is as it was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        part.touch()
        mode = part.stat().st_mode
        yield part
        with contextlib.suppress(OSError):  # some file systems have no modes
            part.chmod(mode)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")
        raise IPAdapterError(f"{path} could not be written ({reason}): {advice}.") from error


def _sync_folder(folder: Path) -> None:
    """Makes a new name last through a power cut; Windows opens no folders and needs none of it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _advice(out: str, name: str) -> str:
    last = newest_adapter(out, name)
    kept = f"; {last.name} is the last good file" if last else ""
    return f"free some space and go on with --resume{kept}"


def write_adapter(out: str, name: str, step: int, weights: Mapping[str, Tensor], dtype: torch.dtype, metadata: Mapping[str, str]) -> Path:
    """The adapter in the published layout: image_proj.*, ip_adapter.N.to_k_ip.weight, ... and metadata, all of them texts."""
    path = adapter_file(out, name, step)
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in weights.items()}
    if key := next((key for key, value in tensors.items() if not torch.isfinite(value).all()), ""):
        raise IPAdapterError(f"{key} does not fit into {str(dtype).removeprefix('torch.')} at step {step}: set --save-dtype float32.")
    with whole(path, _advice(out, name)) as part:
        save_file(tensors, part, {"format": "pt", **metadata})
    return path


@dataclass
class State:
    """All that a run is made of at a step; told: step, position, settings and what else is no tensor."""

    tensors: dict[str, Tensor]
    told: dict[str, Any]


def write_state(out: str, name: str, state: State) -> Path:
    """Writes the state of a step, then removes those of earlier steps."""
    path = state_file(out, name, state.told["step"])
    with whole(path, _advice(out, name)) as part:
        tensors = {key: value.detach().to("cpu").contiguous() for key, value in state.tensors.items()}
        save_file(tensors, part, {"state": json.dumps(state.told)})
    for old in Path(out).glob(f"ip-adapter_{name}_*.state"):
        if old != path and re.fullmatch(re.escape(f"ip-adapter_{name}_") + r"\d+\.state", old.name):
            old.unlink(missing_ok=True)
    return path


def read_state(path: Path) -> State:
    """Raises IPAdapterError for a state that cannot be read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return State({key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["state"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IPAdapterError(f"{path} cannot be read ({error}): remove it and go on from the last adapter with --continue-from.") from error
