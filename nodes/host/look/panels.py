"""What stands on a model, as panels to plot."""

from __future__ import annotations

import os
from collections.abc import Iterable
from statistics import fmean
from typing import Any

import comfy.samplers

from ....ipadapter_core.adapter.layers import layers
from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.look.plot import Panel, Series
from ..engine.application import Application
from ..engine.base import base_of
from ..engine.layer_patch import applications

_BLOCKS = {"input": "in", "middle": "mid", "output": "out", "double": "double", "single": "single"}
Signed = dict[int, tuple[float, ...]]  # t -> a weight for each frame (one for all), below 0 where it pushes away


def schedulers() -> list[str]:
    """The schedulers of a KSampler, those of other packs among them."""
    return comfy.samplers.KSampler.SCHEDULERS


def panels(model: Any, steps: int, scheduler: str) -> list[Panel]:
    """The weight of every adapter on a model over layers, over the steps of a sampling, and over frames where one has several.

    Where a picture is on the negative side, the weight counts below 0, for it pushes away. Over steps and frames it is that of the
    adapter's strongest layer. Raises IPAdapterError where there is no adapter.
    """
    base = base_of(model)
    applied = applications(model.model_options.get("transformer_options", {}))
    if not applied:
        raise IPAdapterError(
            "There is no adapter on this model: connect the model that an IPAdapter node gives, with a weight that is not 0."
        )
    names = [f"{place}: {os.path.splitext(application.name)[0]}" for place, application in enumerate(applied, 1)]
    signed = [_signed(application) for application in applied]
    frames = max(len(weight) for weights in signed for weight in weights.values())
    places = sorted({(layer.t, f"{_BLOCKS[layer.name]} {layer.id}") for layer in layers("Flux" if base == "Chroma" else base)})
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)[:-1].tolist()

    def series(values: Iterable[list[float]]) -> list[Series]:
        return [Series(name, one) for name, one in zip(names, values, strict=True)]

    def over_steps(application: Application, weights: Signed) -> list[float]:
        strongest = _strongest([one for weight in weights.values() for one in weight])
        window = application.window
        return [strongest if window is None else strongest * window.strength(sigma, sampling) for sigma in sigmas]

    title = f"Weight over the layers of {base}, as they are computed{', mean of all frames' if frames > 1 else ''}"
    bars = series([fmean(weights.get(t, (0.0,))) for t, _ in places] for weights in signed)
    windows = series(map(over_steps, applied, signed))
    found = [
        Panel(title, [label for _, label in places], bars, "bars"),
        Panel(f"Weight of the strongest layer over {len(sigmas)} steps ({scheduler})", _numbers(len(sigmas)), windows, "steps"),
    ]
    if frames > 1:
        curves = series(_over_frames(weights, frames) for weights in signed)
        found.append(Panel("Weight of the strongest layer over frames", _numbers(frames), curves, "line"))
    return found


def _signed(application: Application) -> Signed:
    """Of the layers that the adapter is on."""
    weights = {layer.t: application.weights[layer.t] for layer in application.layers.values()}
    listed = {t: weight if isinstance(weight, tuple) else (weight,) for t, weight in weights.items()}
    return {t: tuple(-one for one in weight) if t in application.away else weight for t, weight in listed.items()}


def _over_frames(weights: Signed, count: int) -> list[float]:
    """The last weight of a list goes on."""
    return [_strongest([weight[min(frame, len(weight) - 1)] for weight in weights.values()]) for frame in range(count)]


def _strongest(values: list[float]) -> float:
    return max(values, key=lambda value: (abs(value), value))


def _numbers(count: int) -> list[str]:
    return [str(i + 1) for i in range(count)]
