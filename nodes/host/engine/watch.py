"""Records where each reference acts while a watched model samples."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....ipadapter_core.adapter.layers import Layer
from ....ipadapter_core.adapter.masks import Area
from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.look.attention_maps import attention_parts, cells_of, influence, map_size, to_map
from .application import Application
from .chunks import SAMPLED, Chunks, tell_once
from .laid_out import grid_of
from .layer_patch import Acting
from .unet import cross_attentions

WATCH = "ipadapter_watch"  # the Records of a watched model in transformer_options, a tuple
KEPT = 4  # samplings: a first pass and what comes after it
GROUPS = {"down": "input", "middle": "middle", "up": "output"}
_NUMBER = {name: number for number, name in enumerate(GROUPS.values())}

Size = tuple[int, int]


class Sums(NamedTuple):
    """What is summed of one adapter in one group of layers on one device: [2 latents, c, rows, columns], the positive side first."""

    application: Application
    group: int
    device: torch.device


@dataclass(frozen=True)
class Reference:
    """The maps of one reference. influence, attention: [3 groups of layers, 2 sides, latents, rows, columns], sums over layers and steps;
    tokens: the same with [..., t, rows, columns], or None. counts [3, 2, latents, rows, columns]: of how many maps they are the sum.
    """

    name: str
    influence: Tensor
    attention: Tensor
    tokens: Tensor | None
    counts: Tensor


@dataclass(frozen=True)
class Recording:
    """One sampling: what it gave, and where each reference acted in it. size: (height, width) of the latents."""

    samples: Tensor
    size: Size
    references: tuple[Reference, ...]


@dataclass(eq=False)
class Recorder:
    """Sums the maps of one sampling; several threads may add at once. calls: how often each kind of call added to each sum."""

    tokens: bool
    size: Size = (0, 0)
    latents: int = 0
    sums: dict[Sums, Tensor] = field(default_factory=dict)
    calls: Counter[tuple[Application, int, Chunks]] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)
    _slots: dict[tuple[Chunks, torch.device], dict[Area | None, tuple[Tensor, Tensor | None]]] = field(default_factory=dict)

    def watch(self, options: Mapping[str, Any], chunks: Chunks) -> Callable[..., None] | None:
        """What every layer of a model call is to call; None for a call whose rows cannot be told apart."""
        sampled = options.get(SAMPLED)
        if chunks.latents is None or chunks.areas is None:
            tell_once("Another node changes the batch or samples parts of it in a way that is not known: those calls are not on the maps.")
            return None
        self.size = self.size if any(self.size) else (sampled.size if sampled else chunks.size)
        self.latents = self.latents or (sampled.latents if sampled else max(chunks.latents) + 1)
        return partial(self.see, chunks)  # pyright: ignore[reportAttributeAccessIssue]

    @torch.compiler.disable
    @torch.no_grad()
    def see(
        self, chunks: Chunks, application: Application, acting: Acting, layer: Layer, q: Tensor, text: Tensor, options: Mapping[str, Any]
    ) -> None:
        """One layer's q [b, n, c] and what its attention to the text gave. Layers in which a precise type swaps the sides are left out."""
        if layer.t in application.away or q.shape[0] != chunks.rows:
            return
        each, lengths = _seen(application, acting, layer, q, options)
        found = [influence(lengths, text), each.sum(-1), *([each.flatten(2)] if self.tokens else [])]
        values, size, group = torch.cat(found, -1), map_size(*self.size), _NUMBER[layer.name]
        grid = grid_of(q.shape[1], options, chunks)
        key = Sums(application, group, q.device)
        with self.lock:
            if key not in self.sums:
                self.sums[key] = torch.zeros(2 * self.latents, values.shape[-1], *size, device=q.device)
            for area, (slots, rows) in self._places(chunks, q.device).items():
                down, across = cells_of(area, size)
                cells = self.sums[key][:, :, down, across]
                cells.index_add_(0, slots, to_map(values if rows is None else values[rows], grid, (cells.shape[2], cells.shape[3])))
            self.calls[application, group, chunks] += 1

    def _places(self, chunks: Chunks, device: torch.device) -> dict[Area | None, tuple[Tensor, Tensor | None]]:
        """Area -> (the slot of each of its rows, its rows among all; None for all of them)."""
        key = (chunks, device)
        if key not in self._slots:
            found = _slots(chunks, self.latents)
            self._slots[key] = {
                area: (torch.tensor(slots, device=device), torch.tensor(rows, device=device) if len(found) > 1 else None)
                for area, (slots, rows) in found.items()
            }
        return self._slots[key]

    def recording(self, samples: Tensor) -> Recording:
        """All that was summed, moved off each device in one piece."""
        moved: dict[tuple[Application, int], Tensor] = {}
        for device in {key.device for key in self.sums}:
            keys = [key for key in self.sums if key.device == device]
            flat = torch.cat([self.sums[key].flatten() for key in keys]).cpu()
            for key, part in zip(keys, flat.split([self.sums[key].numel() for key in keys]), strict=True):
                part = part.view(self.sums[key].shape)
                moved[key[:2]] = moved[key[:2]] + part if key[:2] in moved else part
        applications = list(dict.fromkeys(application for application, _ in moved))
        found = [one for place, application in enumerate(applications, 1) for one in self._references(place, application, moved)]
        return Recording(samples.cpu(), self.size, tuple(found))

    def _references(self, place: int, application: Application, moved: dict[tuple[Application, int], Tensor]) -> list[Reference]:
        first = next(sums for (owner, _), sums in moved.items() if owner is application)
        sums = torch.stack([moved.get((application, group), torch.zeros_like(first)) for group in _NUMBER.values()])
        sums = sums.unflatten(1, (2, self.latents))  # [3, 2, latents, c, rows, columns]
        counts = torch.zeros(3, 2 * self.latents, *sums.shape[-2:])
        for (owner, group, chunks), times in self.calls.items():
            if owner is application:
                for area, (slots, _) in _slots(chunks, self.latents).items():
                    down, across = cells_of(area, (counts.shape[2], counts.shape[3]))
                    for slot in slots:
                        counts[group, slot, down, across] += times
        counts = counts.unflatten(1, (2, self.latents))
        pictures = sums.shape[3] // (2 + application.tokens) if self.tokens else sums.shape[3] // 2
        tokens = sums[:, :, :, 2 * pictures :].split(application.tokens, dim=3) if self.tokens else [None] * pictures
        name = f"{place}: {os.path.splitext(application.name)[0]}"
        return [
            Reference(
                f"{name}, picture {i + 1}" if pictures > 1 else name, sums[:, :, :, i], sums[:, :, :, pictures + i], tokens[i], counts
            )
            for i in range(pictures)
        ]


def _slots(chunks: Chunks, latents: int) -> dict[Area | None, tuple[list[int], list[int]]]:
    """Area -> (the slot, side x latents + latent, of each of its rows; the numbers of the rows)."""
    found: dict[Area | None, tuple[list[int], list[int]]] = {}
    numbers, areas = chunks.latents or (), chunks.areas or ()
    for place, (negative, area) in enumerate(zip(chunks.negative, areas, strict=True)):
        slots, rows = found.setdefault(area, ([], []))
        slots += [negative * latents + latent for latent in numbers]
        rows += range(place * len(numbers), (place + 1) * len(numbers))
    return found


def _seen(application: Application, acting: Acting, layer: Layer, q: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Probabilities [b, n, pictures, tokens] and the lengths [b, n, pictures] of what is added, with weights and masks as applied."""
    parts = acting.layout.attended(layer, q.shape[1], application.tokens, options)
    pictures = len(parts[0].pictures) if application.joined is None else len(application.joined.positive)
    each = torch.zeros(*q.shape[:2], pictures, application.tokens, device=q.device)
    lengths = each[..., 0].clone()
    for part in parts:
        probabilities, added = attention_parts(q, part.k, part.v, len(part.pictures), part.bias)
        numbers = list(part.pictures)
        each[:, :, numbers] = probabilities.unflatten(-1, (len(numbers), -1))
        scale = part.scale.float() if isinstance(part.scale, Tensor) else part.scale
        lengths[:, :, numbers] = added * abs(scale * acting.strength)
    return each, lengths


@dataclass(eq=False)
class Record:
    """What the Watch node gives: it is filled whenever a model that carries it samples, and holds the last samplings."""

    tokens: bool = False
    recordings: list[Recording] = field(default_factory=list)
    recorder: Recorder | None = None

    def __deepcopy__(self, memo: dict) -> Record:
        return self

    def find(self, samples: Any) -> Recording:
        """The sampling that gave these latents. Raises IPAdapterError where there is none."""
        if not self.recordings:
            raise IPAdapterError(
                "Nothing was recorded: connect the model of Watch Image Prompt to the sampler. If it is connected, ComfyUI still holds "
                "the sampler's result from before: change the seed."
            )
        for recording in reversed(self.recordings):
            kept = recording.samples
            if isinstance(samples, Tensor) and kept.shape == samples.shape and torch.equal(kept.to(samples.dtype), samples.cpu()):
                if recording.references:
                    return recording
                raise IPAdapterError(
                    "No reference acted while this latent was sampled: put an IPAdapter or Image Prompt node with a weight that is not 0 "
                    "on the model, and look at its start and end."
                )
        raise IPAdapterError(
            "The latent is none that the watched model has sampled lately: connect the LATENT output of the sampler that the model of "
            "Watch Image Prompt goes to, before anything changes it."
        )


def watched(model: Any, record: Record) -> Any:
    """A clone of a ModelPatcher that fills the record whenever it samples. Raises IPAdapterError for a model that is no UNet."""
    if not cross_attentions(model):
        raise IPAdapterError(
            "Attention maps are made of the cross-attentions of SD1.5, SDXL and Kolors, and the connected model is "
            f"{type(model.model).__name__}: take Watch Image Prompt out of this workflow."
        )
    work = model.clone()
    options = work.model_options["transformer_options"]
    options[WATCH] = (*options.get(WATCH, ()), record)
    if not work.get_wrappers(WrappersMP.OUTER_SAMPLE, WATCH):
        work.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WATCH, record_sampling)
    return work


def record_sampling(executor, *args, **kwargs):
    """OUTER_SAMPLE wrapper: one Recording for each sampling that comes to its end."""
    records: tuple[Record, ...] = executor.class_obj.model_patcher.model_options["transformer_options"][WATCH]
    for record in records:
        record.recorder = Recorder(record.tokens)
    try:
        samples = executor(*args, **kwargs)
        for record in records:
            if record.recorder is not None:
                record.recordings = [*record.recordings, record.recorder.recording(samples)][-KEPT:]
    finally:
        for record in records:
            record.recorder = None
    return samples


def watching(options: Mapping[str, Any], chunks: Chunks) -> tuple[Callable[..., None], ...]:
    """What the layers of a model call are to call, for each record that is being filled."""
    recorders = [record.recorder for record in options.get(WATCH, ()) if record.recorder is not None]
    return tuple(see for recorder in recorders if (see := recorder.watch(options, chunks)) is not None)
