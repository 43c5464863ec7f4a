"""Weights and pictures frame by frame, and the prompts that go with them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import IPAdapterError
from ..pictures.images import rgb
from ..values import MOST, brief, check_number, check_whole

TIMINGS = ("custom", "linear", "ease_in_out", "ease_in", "ease_out", "random")
MOST_FRAMES = 100_000
METHODS = ("full batch", "shift batches", "alternate batches")

CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "ease_in_out": lambda x: (1 - math.cos(math.pi * x)) / 2,
    "ease_in": lambda x: math.sin(math.pi * x / 2),
    "ease_out": lambda x: 1 - math.cos(math.pi * x / 2),
}


@dataclass(frozen=True)
class Strategy:
    """How weights run over the frames. `weights`: numbers with commas or new lines between them; `frame_count`: the number of pictures."""

    weights: str = ""
    timing: str = "custom"
    frames: int = 0
    start_frame: int = 0
    end_frame: int = 9999
    add_starting_frames: int = 0
    add_ending_frames: int = 0
    method: str = "full batch"
    frame_count: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.weights, str):
            raise IPAdapterError(f"weights must be numbers with commas between them, and this is {brief(self.weights)}.")
        for name in ("frames", "start_frame", "end_frame", "add_starting_frames", "add_ending_frames", "frame_count"):
            check_whole(getattr(self, name), name, high=MOST_FRAMES)

    @classmethod
    def from_wire(cls, values: Any) -> Strategy:
        """From a WEIGHTS_STRATEGY dict; what it lacks has its default. Raises IPAdapterError where it is none."""
        if not isinstance(values, Mapping) or "weights" not in values:
            raise IPAdapterError("weights_strategy is not what IPAdapter Weights gives. Connect its weights_strategy output.")
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


class Animation(NamedTuple):
    weights: list[float]
    image_1: Tensor | None
    image_2: Tensor | None


def parse_weights(text: str) -> list[float]:
    """Numbers separated by commas or new lines. Raises IPAdapterError for anything else."""
    parts = [part.strip() for part in text.replace("\n", ",").split(",")]
    try:
        numbers = [float(part) for part in parts if part]
    except ValueError:
        numbers = [math.nan]
    if not all(abs(number) <= MOST for number in numbers):
        raise IPAdapterError(f"weights cannot be read: {brief(text.strip())!r}. Write numbers with commas between, such as 1.0, 0.5.")
    return numbers


def weight_curve(strategy: Strategy) -> list[float]:
    """The weights of one picture: as given (`custom`), or `frames` of them from the first number to the last along a curve.

    `random` draws from a generator seeded with the numbers and the frames, so that the same inputs give the same weights.
    """
    numbers = parse_weights(strategy.weights)
    if isinstance(strategy.timing, str) and strategy.timing == "custom":
        return numbers or [0.0]
    if not isinstance(strategy.timing, str) or strategy.timing not in TIMINGS:
        raise IPAdapterError(f"There is no timing {brief(strategy.timing)!r}. The timings are: {', '.join(TIMINGS)}.")
    start, end = (numbers[0], numbers[-1]) if numbers else (0.0, 1.0)
    frames = max(strategy.frames, 2)
    first = min(strategy.start_frame, frames)
    steps = max(min(strategy.end_frame, frames) - first, 0)
    if strategy.timing == "random":
        draw = random.Random(f"{numbers} {frames} {first} {steps}").uniform
        curve = [draw(start, end) for _ in range(steps - 1)]
    else:
        ease = CURVES[strategy.timing]
        curve = [start + (end - start) * ease(i / (steps - 1)) for i in range(steps - 1)]
    return [start] * first + curve + [end] * (frames - first - len(curve))


def animate(strategy: Strategy, image: Tensor | None = None) -> Animation:
    """Weights for all frames and, with pictures [n, h, w, c], what each frame shows: image_1 and, where two are mixed, image_2.

    full batch: every picture for one curve. shift batches: pictures i and i + 1 for one curve each. alternate batches: the same pairs,
    every other one mirrored, so that even pictures stay in image_1. Raises IPAdapterError for pairs of fewer than two pictures.
    """
    if not isinstance(strategy.method, str) or strategy.method not in METHODS:
        raise IPAdapterError(f"There is no method {brief(strategy.method)!r}. The methods are: {', '.join(METHODS)}.")
    curve = weight_curve(strategy)
    before, after = strategy.add_starting_frames, strategy.add_ending_frames
    if image is None:
        return Animation(_pad(curve, before, after), None, None)
    pictures = rgb(image)
    count, frames = pictures.shape[0], len(curve)
    if strategy.method == "full batch":
        return Animation(_pad(curve * count, before, after), _show(pictures, range(count), frames, before, after), None)
    if count < 2:
        raise IPAdapterError(f"{strategy.method} fades between pictures, but there is only one: connect more, or set method to full batch.")
    pairs = range(count - 1)
    if strategy.method == "shift batches":
        weights, first, second = curve * len(pairs), list(pairs), [i + 1 for i in pairs]
    else:
        mirrored = [max(curve) - (w - min(curve)) for w in curve]
        weights = [w for i in pairs for w in (mirrored if i % 2 else curve)]
        first, second = [i + i % 2 for i in pairs], [i + 1 - i % 2 for i in pairs]
    image_1, image_2 = (_show(pictures, indices, frames, before, after) for indices in (first, second))
    return Animation(_pad(weights, before, after), image_1, image_2)


def _pad(values: list[float], before: int, after: int) -> list[float]:
    return values[:1] * before + values + values[-1:] * after


def _show(image: Tensor, indices: Sequence[int], frames: int, before: int, after: int) -> Tensor:
    """Pictures `indices`, each for `frames` frames, between the very first picture and the very last."""
    shown = [0] * before + [i for i in indices for _ in range(frames)] + [image.shape[0] - 1] * after
    return image[torch.tensor(shown, device=image.device)]


def prompt_schedule(strategy: Strategy, prompt: str) -> str:
    """Lines `"<frame>": "<prompt>",`: the non-empty lines of `prompt`, one for each picture (cut, or the last repeated).

    A picture lasts `frames` frames, or as many as there are weights where fewer than 2 are given.
    """
    if not isinstance(prompt, str):
        raise IPAdapterError(f"prompt must be text, and this is {brief(prompt)}.")
    lines = [line for line in prompt.splitlines() if line.strip()] or [""]
    count = max(strategy.frame_count, 1)
    lines = (lines + lines[-1:] * count)[:count]
    frames = strategy.frames if strategy.frames > 1 else len(weight_curve(strategy))
    before = strategy.add_starting_frames
    schedule = [(i * frames + before, line) for i, line in enumerate(lines)]
    if before > 0:
        schedule.insert(0, (0, lines[0]))
    if strategy.add_ending_frames > 0:
        schedule.append((count * frames + before, lines[-1]))
    return "".join(f'"{frame}": {json.dumps(line, ensure_ascii=False)},\n' for frame, line in schedule)


def join_weights(*weights: float | Sequence[float]) -> list[float]:
    """Weights of one frame or of many, one after another."""
    listed = [w for part in weights for w in (part if isinstance(part, Sequence) else [part])]
    for weight in listed:
        check_number(weight, "A weight")
    return listed
