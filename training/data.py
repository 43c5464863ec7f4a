"""Training data: a folder with metadata.jsonl, webdataset shards, or what precompute wrote, as one stream of samples.

Shards are read by an index of their members, not from front to back: so the order is shuffled over all of them, and a run that
is resumed goes on at any place of the stream without reading what came before.
"""

from __future__ import annotations

import glob
import io
import json
import logging
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load as load_safetensors
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.files.family import ARCFACE
from ipadapter_core.pictures.preprocess import clip_pixels

from .loss import generator

log = logging.getLogger(__name__)

Sample = dict[str, Any]
INFO = "precomputed.safetensors"  # what precompute writes last, beside its shards
_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp")
_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError)  # what Pillow raises for files it cannot read


class Unreadable(Exception):
    """A picture that cannot be read; the message names it."""


@dataclass(frozen=True)
class Need:
    """What is made of a picture: side in pixels, crop, size of the encoder's input (0: none), and whether faces are needed."""

    resolution: int
    crop: str
    clip: int
    face: bool
    unit_faces: bool = True


@dataclass
class Raw:
    """A picture with its caption, another picture to prompt with, and a face embedding, where they are given."""

    picture: Image.Image
    text: str
    reference: Image.Image | None
    face: list[float] | None


class Source(Protocol):
    name: str

    def __len__(self) -> int: ...

    def sample(self, index: int, place: int, seed: int) -> Sample: ...


def open_picture(file: Any, name: str) -> Image.Image:
    """An RGB picture, turned as its EXIF data say. Raises Unreadable."""
    try:
        with Image.open(file) as picture:
            picture.load()
            return (ImageOps.exif_transpose(picture) or picture).convert("RGB")
    except _BROKEN as error:
        raise Unreadable(f"{name} ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from error


def fit(picture: Image.Image, need: Need, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixels [3, s, s] in -1..1 (the short side scaled to s, the long side cropped), and SDXL's size conditioning [6]:
    height and width before, top and left of the crop, height and width after."""
    side, (width, height) = need.resolution, picture.size
    scale = side / min(width, height)
    wide, high = max(side, round(width * scale)), max(side, round(height * scale))
    share = torch.rand(2, generator=random) if need.crop == "random" else torch.tensor([0.5, 0.5])
    top, left = int((high - side) * share[0]), int((wide - side) * share[1])
    resized = picture.resize((wide, high), Image.Resampling.LANCZOS).crop((left, top, left + side, top + side))
    pixels = torch.from_numpy(np.asarray(resized).copy()).movedim(-1, 0).float() / 127.5 - 1
    return pixels, torch.tensor([height, width, top, left, side, side], dtype=torch.float32)


def make_sample(raw: Raw, need: Need, name: str, random: torch.Generator) -> Sample:
    """What the encoders take of a picture. Raises IPAdapterError for a face embedding that is missing or of another width."""
    pixels, time_ids = fit(raw.picture, need, random)
    sample: Sample = {"pixels": pixels, "time_ids": time_ids, "text": raw.text}
    if need.clip:
        shown = torch.from_numpy(np.asarray(raw.reference or raw.picture).copy()).float().unsqueeze(0) / 255
        sample["clip"] = clip_pixels(shown, need.clip)[0]
    if need.face:
        if not isinstance(raw.face, list):
            raise IPAdapterError(f"{name} has no face_embedding, and this kind of adapter is trained on one for each picture.")
        if len(raw.face) != ARCFACE:
            raise IPAdapterError(
                f"The face_embedding of {name} has {len(raw.face)} numbers, and adapters take {ARCFACE}: use InsightFace's embeddings."
            )
        face = torch.tensor(raw.face, dtype=torch.float32)
        sample["face"] = torch.nn.functional.normalize(face, dim=0) if need.unit_faces else face
    return sample


def caption(told: Any, place: str) -> str:
    text = told.get("text") if isinstance(told, dict) else None
    if not isinstance(text, str):
        raise IPAdapterError(f'{place} has no caption: give each picture a "text" (it may be empty).')
    return text


class Pictures:
    """Samples out of pictures: what a subclass reads, made into what the encoders take."""

    def __init__(self, name: str, need: Need):
        self.name, self.need = name, need

    def raw(self, index: int) -> tuple[Raw, str]:
        raise NotImplementedError

    def sample(self, index: int, place: int, seed: int) -> Sample:
        raw, name = self.raw(index)
        return make_sample(raw, self.need, name, generator(seed, "crop", place))


class Folder(Pictures):
    """metadata.jsonl with a line {"file_name": ..., "text": ...} for each picture; optional: reference, face_embedding."""

    def __init__(self, folder: Path, need: Need):
        super().__init__(str(folder), need)
        self.folder, self.rows = folder, []
        path = folder / "metadata.jsonl"
        if not path.is_file():
            raise IPAdapterError(f'{folder} has no metadata.jsonl: write a line {{"file_name": ..., "text": ...}} for each picture.')
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
            if not line.strip():
                continue
            place = f"Line {number} of {path}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise IPAdapterError(f"{place} is no JSON ({error}).") from error
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                raise IPAdapterError(f'{place} has no "file_name".')
            caption(row, f"{place} ({row['file_name']})")
            self.rows.append(row)

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, index: int) -> tuple[Raw, str]:
        row = self.rows[index]
        name, other = row["file_name"], row.get("reference")
        picture = open_picture(self.folder / name, name)
        reference = open_picture(self.folder / other, other) if other and self.need.clip else None
        return Raw(picture, row["text"], reference, row.get("face_embedding")), name


class Tars:
    """An index of the members of .tar files: for each sample its shard and {extension: (offset, bytes)}."""

    def __init__(self, paths: Sequence[str]):
        self.entries: list[tuple[str, str, dict[str, tuple[int, int]]]] = []
        for path in paths:
            found: dict[str, dict[str, tuple[int, int]]] = {}
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        key, extension = base_plus_ext(member.name)
                        if member.isfile() and key and extension:
                            found.setdefault(key, {})[extension.lower()] = (member.offset_data, member.size)
            except (tarfile.TarError, OSError) as error:
                log.warning("%s is damaged (%s): the %d samples before that are used", path, error, len(found))
            self.entries += [(path, key, parts) for key, parts in found.items()]

    def read(self, index: int, extension: str) -> bytes:
        path, key, parts = self.entries[index]
        offset, size = parts[extension]
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise Unreadable(f"{path}: {key}.{extension} (cut short)")
        return data


class Shards(Pictures):
    """webdataset shards: KEY.jpg (or png, webp), KEY.txt or KEY.json with "text", optional KEY.reference.jpg and face_embedding."""

    def __init__(self, paths: Sequence[str], name: str, need: Need):
        super().__init__(name, need)
        self.tars = Tars(paths)
        self.tars.entries = [entry for entry in self.tars.entries if any(extension in entry[2] for extension in _PICTURES)]

    def __len__(self) -> int:
        return len(self.tars.entries)

    def raw(self, index: int) -> tuple[Raw, str]:
        path, key, parts = self.tars.entries[index]
        name = f"{path}: {key}"
        told: Any = {}
        try:
            if "json" in parts:
                told = json.loads(self.tars.read(index, "json"))
            if "txt" in parts and isinstance(told, dict):
                told["text"] = self.tars.read(index, "txt").decode("utf-8").strip()
        except ValueError as error:
            raise IPAdapterError(f"{name} has a caption that cannot be read ({error}).") from error
        text = caption(told, name)
        other = next((f"reference.{end}" for end in _PICTURES if f"reference.{end}" in parts), "")
        picture, reference = (
            open_picture(io.BytesIO(self.tars.read(index, extension)), f"{name}.{extension}") if extension else None
            for extension in (next(end for end in _PICTURES if end in parts), other if self.need.clip else "")
        )
        assert picture is not None
        return Raw(picture, text, reference, told.get("face_embedding")), name


class Precomputed:
    """What precompute wrote: features of each sample, and what stands for no picture and no text."""

    def __init__(self, folder: Path):
        self.name = str(folder)
        try:
            with safe_open(folder / INFO, framework="pt", device="cpu") as file:
                self.told = {**(file.metadata() or {})}
                self.none = {name: file.get_tensor(name).float() for name in file.keys()}
        except Exception as error:  # safetensors has no error class of its own for files that are missing
            raise IPAdapterError(f"{folder / INFO} cannot be read ({error}): run precompute again.") from error
        self.tars = Tars(sorted(str(path) for path in folder.glob("*.tar")))
        if len(self) != int(self.told["samples"]):
            raise IPAdapterError(f"{folder} has {len(self)} of {self.told['samples']} samples: run precompute again.")

    def __len__(self) -> int:
        return len(self.tars.entries)

    def sample(self, index: int, place: int, seed: int) -> Sample:
        return {name: value.float() for name, value in load_safetensors(self.tars.read(index, "safetensors")).items()}


def is_precomputed(data: str) -> bool:
    return (Path(data) / INFO).is_file()


def open_source(data: str, need: Need) -> Source:
    """The pictures of a folder or of shards. Raises IPAdapterError where there are none."""
    path = Path(data)
    source: Source
    if path.is_dir() and ((path / "metadata.jsonl").exists() or not list(path.glob("*.tar"))):
        source = Folder(path, need)
    else:
        patterns = [str(path / "*.tar")] if path.is_dir() else expand_urls(data)
        paths = sorted({found for pattern in patterns for found in glob.glob(pattern)})
        if not paths:
            raise IPAdapterError(f"--data is {data}, and there is no such folder or file.")
        source = Shards(paths, data, need)
    if not len(source):
        raise IPAdapterError(f"{data} has no pictures.")
    return source


class Stream(Dataset):
    """The endless shuffled stream of a source: a place in it -> (sample, what could not be read). Every epoch has its own order.

    In place of an unreadable picture comes the next one that can be read, so that what stands at a place depends on nothing else.
    """

    def __init__(self, source: Source, seed: int, shuffle: bool = True):
        self.source, self.seed, self.shuffle = source, seed, shuffle
        self._epoch, self._order = -1, torch.empty(0)
        self._bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.source)

    def _at(self, place: int) -> Iterator[int]:
        count = len(self.source)
        epoch, start = divmod(place, count)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(count, generator=generator(self.seed, "order", epoch)) if self.shuffle else torch.arange(count)
        return (int(self._order[(start + i) % count]) for i in range(count))

    def __getitem__(self, place: int) -> tuple[Sample | IPAdapterError, list[str]]:
        skipped = []
        for index in self._at(place):
            if index in self._bad:
                continue
            try:
                return self.source.sample(index, place, self.seed), skipped
            except Unreadable as error:
                self._bad[index] = str(error)
                skipped.append(str(error))
            except IPAdapterError as error:  # as a value: a worker process would bury it in a traceback
                return error, skipped
        some = "; ".join(list(self._bad.values())[:3])
        return IPAdapterError(f"None of the {len(self.source)} pictures of {self.source.name} can be read: {some}."), skipped


class Places(Sampler):
    """Batches of places of the stream for one of several processes: from `start` on, `size` for each process in turn."""

    def __init__(self, start: int, size: int, process: int = 0, processes: int = 1, end: int | None = None):
        self.start, self.size, self.process, self.processes, self.end = start, size, process, processes, end

    def __iter__(self) -> Iterator[list[int]]:
        place = self.start + self.process * self.size
        while self.end is None or place < self.end:
            last = place + self.size if self.end is None else min(place + self.size, self.end)
            yield list(range(place, last))
            place += self.size * self.processes
