"""Files that save nodes write to ComfyUI's output folder and load nodes read from its input folder."""

from __future__ import annotations

import contextlib
import os

import folder_paths
import safetensors.torch
from torch import Tensor

from ....ipadapter_core.errors import IPAdapterError

_LISTED = "files in input, for ipadapter"


def list_saved(suffix: str) -> list[str]:
    """Names of the files with that suffix in the input folder, with their subfolder."""
    return [name for name in _input_files() if name.endswith(suffix)]


def _input_files() -> list[str]:
    """The folder is walked once for all lists of an /object_info: ComfyUI's own memory of file lists lives as long as the request."""
    helper = getattr(folder_paths, "cache_helper", None)
    if helper is not None and (known := helper.get(_LISTED)) is not None:
        return known[0]
    root = folder_paths.get_input_directory()
    found = [os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names]
    names = sorted(name.replace(os.sep, "/") for name in found)
    if helper is not None:
        helper.set(_LISTED, (names, {}, 0.0))
    return names


def save_new(tensors: dict[str, Tensor], prefix: str, suffix: str) -> str:
    """Writes a safetensors file to the output folder under a number that no file has; returns its name with the subfolder.

    The name is taken before anything is written to it: whoever saves at the same time takes another. Who may read the file is as with
    any new one: safetensors alone would leave it to its owner. Raises IPAdapterError for a prefix that leads out of the output folder.
    """
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    except OSError:
        raise
    except Exception:  # ComfyUI has no class of its own for it
        raise IPAdapterError(f"{prefix} is outside ComfyUI's output folder: change filename_prefix to a name inside it.") from None
    while True:
        path = os.path.join(folder, f"{name}_{counter:05}{suffix}")
        try:
            open(path, "x").close()
            mode = os.stat(path).st_mode
            break
        except FileExistsError:
            counter += 1
    try:
        safetensors.torch.save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)
    except BaseException:
        os.remove(path)
        raise
    with contextlib.suppress(OSError):  # some file systems have no modes
        os.chmod(path, mode)
    return f"{subfolder}/{os.path.basename(path)}" if subfolder else os.path.basename(path)


def saved_path(name: str, what: str) -> str:
    """Path of a name from list_saved(). Raises IPAdapterError where there is no such file, or only outside ComfyUI's folders."""
    path = _path(name)
    roots = (folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory())
    if path is None or not any(path.startswith(os.path.join(os.path.abspath(root), "")) for root in roots):
        raise IPAdapterError(f"{name} is outside ComfyUI's input folder: move the file there and choose it in the list.")
    if not os.path.isfile(path):
        raise IPAdapterError(f"There is no file {name} in the input folder: move the saved {what} there from the output folder.")
    return path


def stamp(name: str) -> int:
    """Changes when the file does; 0 where there is none."""
    path = _path(name)
    return os.stat(path).st_mtime_ns if path and os.path.isfile(path) else 0


def _path(name: str) -> str | None:
    """None for a name that leads out of ComfyUI's folders, where the core refuses it; older ones give the path."""
    try:
        return os.path.abspath(folder_paths.get_annotated_filepath(name))
    except ValueError:
        return None
