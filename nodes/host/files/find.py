"""Which file is which: adapters, encoders and LoRAs in ComfyUI's folders, found by content, with the name as a hint."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.files import published
from ....ipadapter_core.files.checkpoint import is_safetensors, read_shapes
from ....ipadapter_core.files.encoders import Encoder, Tower, fits, tower_of
from ....ipadapter_core.files.family import Info, has_twin, identify
from ....ipadapter_core.files.published import PRESETS, Published

log = logging.getLogger(__name__)

FOLDER = "ipadapter"
_LISTED = 12
_REMEMBERED = 512
_AUTO = ("plus", "kolors-plus", "flux-instantx", "sd3-instantx", "standard", "flux-xlabs", "full-face")  # families, the preferred one first


@dataclass(frozen=True)
class _Facts:
    """What is in a file: an adapter, an image encoder, or a sentence that says what else."""

    info: Info | None = None
    tower: Tower | None = None
    problem: str = ""


_facts: OrderedDict[str, tuple[tuple[int, int], _Facts]] = OrderedDict()


def register_folder() -> None:
    """Makes models/ipadapter known to ComfyUI under the key `ipadapter`; paths that the user's yaml gave it stay first."""
    paths = list(folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))[0])
    default = os.path.join(folder_paths.models_dir, FOLDER)
    if not any(os.path.abspath(path) == os.path.abspath(default) for path in paths):
        paths.append(default)
    folder_paths.folder_names_and_paths[FOLDER] = (paths, folder_paths.supported_pt_extensions)
    folder_paths.filename_list_cache.pop(FOLDER, None)


def adapter_names() -> list[str]:
    """Names of the files in the ipadapter folders, for a combo; reads none of them."""
    return folder_paths.get_filename_list(FOLDER)


def adapter_choices() -> list[str]:
    """adapter_names(), or in their place that there is none: an empty list would say nothing on the node."""
    return adapter_names() or [f"(no file in models/{FOLDER})"]


def adapter_path(name: str) -> str:
    """Full path of a name from adapter_names(). Raises IPAdapterError listing what is there instead."""
    if path := folder_paths.get_full_path(FOLDER, name):
        return path
    raise IPAdapterError(_gone(name))


def _gone(name: str) -> str:
    return f"{name} is no longer in {_places(FOLDER)}. {_there(FOLDER)}"


def identify_file(path: str) -> Info:
    """What an adapter file is; read once for every (path, size, mtime). Raises IPAdapterError if it is no adapter or cannot be read."""
    facts = _look(path)
    if facts.info is None:
        raise IPAdapterError(facts.problem)
    return facts.info


def describe_folder(folder: str, limit: int | None = None) -> dict[str, str]:
    """What each file of a model folder (ipadapter, clip_vision) is, as a short text by file name."""
    return {name: _describe(name, _look(path)) for name, path in _files(folder)[:limit]}


def find_adapter(preset: str, base: str) -> str:
    """Path of the adapter file that a loader preset means for a model of `base` ("SD1.5", "SDXL", "Kolors").

    A file of the published name comes first if it holds what its name says, then any file with the same content whose name does
    not say that it is another variant. Raises IPAdapterError with what was looked for, what is there and where to get it.
    """
    if base not in PRESETS[preset]:
        bases = " and ".join(PRESETS[preset])
        raise IPAdapterError(f"The preset {preset} has no adapter for {base} models, only for {bases}. Choose another preset.")
    fitting, how, notes = _fitting(preset, base)
    if not fitting:
        rows = [published.file_named(name) for name in PRESETS[preset][base]]
        raise _missing(f"No adapter for the preset {preset} and {base} models", FOLDER, rows, notes)
    for note in notes:
        log.warning(note)
    (name, path), *others = fitting
    rest = f"; these fit as well: {', '.join(other for other, _ in others)}" if others else ""
    log.info("%s for %s: %s, by its %s%s", preset, base, name, how, rest)
    return path


def _fitting(preset: str, base: str) -> tuple[list[tuple[str, str]], str, list[str]]:
    """(files, the one to take first, "name" or "content", notes on files that are not what their names say)."""
    rows = [published.file_named(name) for name in PRESETS[preset][base]]
    files = sorted(_files(FOLDER), key=_preference)
    notes = []
    for row in rows:
        for name, path in files:
            if published.published_as(name) != row:
                continue
            facts = _look(path)
            if facts.info and published.is_of(row, facts.info):
                return [(name, path)], "name", []
            notes.append(f"{name} is not what its name says: {_describe(name, facts)}.")
    fitting = [(name, path) for name, path in files if (info := _look(path).info) and any(published.is_of(row, info) for row in rows)]
    if published.has_variants(rows[0]):  # files of the same shapes: a name that says another variant rules a file out
        named = [file for file in fitting if published.variant_of(file[0]) == rows[0].variant]
        fitting = named or [file for file in fitting if not published.variant_of(file[0])]
    return fitting, "content", notes


def lacking_preset(preset: str) -> str:
    """What a preset lacks for models of any base, as a sentence; "" where nothing is, or where only opening large files would tell."""
    bases = {base: published.file_named(names[0]) for base, names in PRESETS[preset].items()}
    if all(_quick(path) for _, path in _files(FOLDER)) and not any(_fitting(preset, base)[0] for base in bases):
        sources = ", or ".join(f"for {base} models {row.name} ({row.url})" for base, row in bases.items())
        there = f"No adapter for the preset {preset} was found in {_places(FOLDER)}. {_there(FOLDER)}"
        return f"{there} Put one of these into that folder: {sources}."
    encoders = [row.encoder for row in bases.values()]
    if not _files("clip_vision") and encoders[0] is not None and None not in encoders:
        return str(_no_encoder(encoders[0], []))
    return ""


def lacking_adapter(name: str | None) -> str:
    """Why a file that an adapter list names cannot be loaded, as a sentence; "" where it is there. None: not known yet."""
    if not _files(FOLDER):
        rows = [row for row in published.ADAPTERS if row.family == "plus" and row.variant == "plain"]
        return str(_missing("No adapter", FOLDER, rows, [], look=False))
    if name is None or name in adapter_names():
        return ""
    return _gone(name)


def short_labels() -> dict[str, str]:
    """What each adapter file is in a few words ("plus, SDXL, ViT-H"), by name; "" where that takes more than a look at its header.

    Other than safetensors files are told by their published names until they have been read for another reason.
    """
    return {name: _short(name, path) for name, path in _files(FOLDER)}


def _short(name: str, path: str) -> str:
    if _quick(path):
        facts = _look(path)
        if facts.info is None or not facts.info.supported:
            return _describe(name, facts)
        row, variant = facts.info, published.variant_of(name)
    elif (row := published.published_as(name)) and row.family:
        variant = row.variant
    else:
        return ""
    family = " ".join([row.family, *([variant] if variant not in ("", "plain") else [])])
    return ", ".join([family, row.base, *([row.encoder.name] if row.encoder else [])])


def _quick(path: str) -> bool:
    """Whether what a file is takes no more than a look at its header, or is known already."""
    state, known = os.stat(path), _facts.get(path)
    return path.lower().endswith((".safetensors", ".sft")) or (known is not None and known[0] == (state.st_size, state.st_mtime_ns))


def best_adapter(bases: Sequence[str]) -> str:
    """Path of the adapter to take for a model of `bases`, the nearest first, where nobody chooses.

    One whose encoder is here before one whose is missing, pictures before faces, plus before standard, and what is for everything before
    what is for portraits or layouts. Raises IPAdapterError where none fits.
    """
    found = []
    for name, path in _files(FOLDER):
        info = _look(path).info
        if info is not None and info.supported and info.base in bases:
            special = published.variant_of(name) not in ("", "plain")
            order = _AUTO.index(info.family) if info.family in _AUTO else len(_AUTO)
            rank = (_lacks_encoder(info.encoder), info.face, bases.index(info.base), special, order, _preference((name, path)))
            found.append((rank, path))
    if not found:
        rows = [row for row in published.ADAPTERS if row.base == bases[0] and row.family in _AUTO[:4] and row.variant == "plain"]
        raise _missing(f"No adapter for {bases[0]} models", FOLDER, rows, [])
    return min(found)[1]


def _lacks_encoder(encoder: Encoder | None) -> bool:
    return encoder is not None and not any((tower := _look(path).tower) and fits(tower, encoder) for _, path in _files("clip_vision"))


def find_encoder(encoder: Encoder) -> str:
    """Path of a clip_vision file that holds the encoder an adapter needs, told by its widths. Raises as find_adapter does."""
    files, notes = [], []
    for name, path in _files("clip_vision"):
        facts = _look(path)
        if facts.tower and fits(facts.tower, encoder):
            files.append((name, path))
        elif encoder.file and published.stem(name) == published.stem(encoder.file):
            notes.append(f"{name} is not what its name says: {_describe(name, facts)}.")
    for note in notes:
        log.warning(note)
    if files:
        name, path = min(files, key=lambda file: (published.stem(file[0]) != published.stem(encoder.file), _preference(file)))
        log.info("image encoder %s: %s", encoder.name, name)
        return path
    raise _no_encoder(encoder, notes)


def siglip_files() -> list[str]:
    """Paths of the clip_vision files that hold SigLIP-so400m."""
    found = ((path, _look(path).tower) for _, path in sorted(_files("clip_vision"), key=_preference))
    return [path for path, tower in found if tower is not None and tower.name == "SigLIP-so400m"]


def _no_encoder(encoder: Encoder, notes: list[str]) -> IPAdapterError:
    rows = [row for row in published.FILES if row.name == encoder.file]
    kind = f"image encoder {encoder.name}" if encoder.file else "image encoder"
    return _missing(f"No {kind} ({encoder.feature} {encoder.width} wide)", "clip_vision", rows, notes)


def find_lora(info: Info) -> str | None:
    """Path of the LoRA file published for a FaceID adapter; None where the family has none or the adapter has it inside.

    Raises IPAdapterError when the LoRA is in neither place.
    """
    names = [row.lora for row in published.ADAPTERS if row.lora and (row.family, row.base) == (info.family, info.base)]
    if not names:
        return None
    for name, path in sorted(_files("loras"), key=_preference):
        if published.stem(name) == published.stem(names[0]):
            return path
    if info.lora:
        return None
    rows = [published.file_named(names[0])]
    raise _missing(f"No LoRA for {info.label}, which has none inside,", "loras", rows, [], look=False)


def _look(path: str) -> _Facts:
    state = os.stat(path)
    key = (state.st_size, state.st_mtime_ns)
    known = _facts.get(path)
    if known is None or known[0] != key:
        _facts[path] = known = (key, _read(Path(path)))
        while len(_facts) > _REMEMBERED:
            _facts.popitem(last=False)
    _facts.move_to_end(path)
    return known[1]


def _read(path: Path) -> _Facts:
    name = _relative(path)
    try:
        shapes = read_shapes(path)
    except IPAdapterError as error:
        return _Facts(problem=str(error))
    try:
        info = identify(shapes, name)
        if has_twin(info) and not is_safetensors(path):  # the published twins, whose hashes are known, are .bin files
            info = identify(shapes, name, _sha256(path))
        return _Facts(info)
    except IPAdapterError as error:
        return _Facts(tower=tower_of(shapes), problem=str(error))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _relative(path: Path) -> str:
    for folder in folder_paths.get_folder_paths(FOLDER):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name


def _files(folder: str) -> list[tuple[str, str]]:
    return [(name, path) for name in folder_paths.get_filename_list(folder) if (path := folder_paths.get_full_path(folder, name))]


def _preference(file: tuple[str, str]) -> tuple[bool, int, str]:
    return not file[0].lower().endswith((".safetensors", ".sft")), len(file[0]), file[0]


def _describe(name: str, facts: _Facts) -> str:
    if facts.info:
        return facts.info.label if facts.info.supported else f"{facts.info.label} (not supported)"
    if facts.tower:
        return f"image encoder {facts.tower.name}"
    sentence = facts.problem.split(". ")[0].removesuffix(".")
    sentence = sentence.removeprefix(name.replace("\\", "/")).removeprefix(os.path.basename(name)).strip()
    return sentence.removeprefix("is ").removesuffix(", not an IP-Adapter")


def _places(folder: str) -> str:
    return " or ".join(folder_paths.get_folder_paths(folder))


def _there(folder: str, look: bool = True) -> str:
    names = [name for name, _ in _files(folder)]
    if not names:
        return "No files were found there."
    listed: Iterable[str] = names[:_LISTED]
    if look:
        listed = (f"{name}: {what}" for name, what in describe_folder(folder, _LISTED).items())
    more = f"; and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"There are: {'; '.join(listed)}{more}."


def _missing(what: str, folder: str, rows: list[Published], notes: list[str], look: bool = True) -> IPAdapterError:
    sentences = [f"{what} was found in {_places(folder)}.", *notes, _there(folder, look)]
    if rows:
        names = " or ".join(row.name for row in rows)
        sentences.insert(1, f"Looked for {names}{', and for any file with such content' if look else ''}.")
        sentences.append(f"Get {rows[0].name} ({rows[0].url}, page {rows[0].page}) and put it in that folder.")
    return IPAdapterError(" ".join(sentences))
