"""Files that save nodes write to ComfyUI's output folder and load nodes read from its input folder."""

from __future__ import annotations

import os

import folder_paths

from ...ipadapter_core.errors import IPAdapterError


def list_saved(suffix: str) -> list[str]:
    """Names of the files with that suffix in the input folder, with their subfolder."""
    root = folder_paths.get_input_directory()
    found = [os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names]
    return sorted(name.replace(os.sep, "/") for name in found if name.endswith(suffix))


def next_free(prefix: str, suffix: str) -> tuple[str, str]:
    """(path in the output folder, its name with the subfolder) under the next free number."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    while os.path.exists(path := os.path.join(folder, f"{name}_{counter:05}{suffix}")):
        counter += 1
    return path, f"{subfolder}/{os.path.basename(path)}" if subfolder else os.path.basename(path)


def saved_path(name: str, what: str) -> str:
    """Path of a name from list_saved(). Raises IPAdapterError where there is no such file, or only outside ComfyUI's folders."""
    path = _path(name)
    roots = (folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory())
    if not any(path.startswith(os.path.join(os.path.abspath(root), "")) for root in roots):
        raise IPAdapterError(f"{name} is outside ComfyUI's input folder: move the file there and choose it in the list.")
    if not os.path.isfile(path):
        raise IPAdapterError(f"There is no file {name} in the input folder: move the saved {what} there from the output folder.")
    return path


def stamp(name: str) -> int:
    """Changes when the file does; 0 where there is none."""
    path = _path(name)
    return os.stat(path).st_mtime_ns if os.path.isfile(path) else 0


def _path(name: str) -> str:
    return os.path.abspath(folder_paths.get_annotated_filepath(name))
