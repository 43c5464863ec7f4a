"""What stands on a model, as panels to plot."""

from __future__ import annotations

from typing import Any

import comfy.samplers

from ...ipadapter_core.errors import IPAdapterError
from ...ipadapter_core.layers import Weight, layers
from ...ipadapter_core.plot import Panel, Series
from .patch import Application, layer_patches
from .unet import base_of

_BLOCKS = {"input": "in", "middle": "mid", "output": "out"}


def panels(model: Any, steps: int, scheduler: str) -> list[Panel]:
    """The weight of every adapter on a model over layers, over the steps of a sampling, and over latents where it has one for each.

    Where a picture is on the negative side, the weight counts below 0, for it pushes away. Over steps and latents it is that of the
    adapter's strongest layer. Raises IPAdapterError where there is no adapter.
    """
    base = base_of(model)
    applied = _applications(model)
    if not applied:
        raise IPAdapterError(
            "There is no adapter on this model: connect the model that an IPAdapter node gives, with a weight that is not 0."
        )
    names = {slot: f"{place}: {application.name}" for place, (slot, application) in enumerate(applied.items(), 1)}
    places = sorted({(layer.t, f"{_BLOCKS[layer.name]} {layer.id}") for layer in layers(base)})

    def over_layers(application: Application) -> list[float]:
        on = {layer.t: -1 if layer.t in application.away else 1 for layer in application.layers.values()}
        return [on[t] * _mean(application.weights[t]) if t in on else 0.0 for t, _ in places]

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)[:steps].tolist()
    by_layer = {slot: over_layers(application) for slot, application in applied.items()}

    def over_steps(slot: int, application: Application) -> list[float]:
        strongest = max(by_layer[slot], key=abs)
        return [strongest if application.is_open(sigma) else 0.0 for sigma in sigmas]

    found = [
        Panel(
            f"Weight over the layers of {base}, as they are computed",
            [label for _, label in places],
            [Series(names[slot], values) for slot, values in by_layer.items()],
            "bars",
        ),
        Panel(
            f"Weight over {steps} steps ({scheduler})",
            [str(i + 1) for i in range(len(sigmas))],
            [Series(names[slot], over_steps(slot, application)) for slot, application in applied.items()],
            "steps",
        ),
    ]
    latents = {slot: one for slot, application in applied.items() if (one := _over_latents(application))}
    if latents:
        count = max(map(len, latents.values()))
        series = [Series(names[slot], [*values, *values[-1:] * (count - len(values))]) for slot, values in latents.items()]
        found.append(Panel("Weight over frames", [str(i + 1) for i in range(count)], series, "line"))
    return found


def _applications(model: Any) -> dict[int, Application]:
    patches = layer_patches(model.model_options.get("transformer_options", {}))
    return dict(sorted({slot: application for patch in patches.values() for slot, application in patch.applications()}.items()))


def _mean(weight: Weight) -> float:
    return sum(weight) / len(weight) if isinstance(weight, tuple) else weight


def _over_latents(application: Application) -> list[float]:
    listed = [weight for weight in application.weights.values() if isinstance(weight, tuple)]
    return [max(values, key=abs) for values in zip(*listed, strict=True)]
