"""The maps of a recording that are asked for."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.values import check_choice
from ..engine.watch import GROUPS, Recording, Reference

SHOWN = ("influence", "attention", "tokens")
LAYERS = ("all", *GROUPS)
SIDES = ("positive", "negative")


class Map(NamedTuple):
    """A map [rows, columns] of one reference and one latent of the batch, and what it is called."""

    map: Tensor
    name: str
    latent: int


def chosen_maps(recording: Recording, show: str, reference: int, layers: str, side: str) -> list[Map]:
    """The average over layers and steps of one of SHOWN, reference by reference and latent by latent; reference 0 means all.

    Raises IPAdapterError for what was not recorded.
    """
    for value, name, choices in ((show, "kind of map", SHOWN), (layers, "group of layers", LAYERS), (side, "side", SIDES)):
        check_choice(value, name, choices)
    given = recording.references
    if reference > len(given):
        names = "; ".join(one.name for one in given)
        raise IPAdapterError(f"There is no reference {reference}: {len(given)} acted in this sampling ({names}).")
    if show == "tokens" and any(one.tokens is None for one in given):
        raise IPAdapterError("No maps of tokens were recorded: switch on tokens on Watch Image Prompt and sample again.")
    found = [one for place, one in enumerate(given, 1) if reference in (0, place)]
    maps = [each for one in found for each in _of(one, show, layers, side, recording.samples.shape[0])]
    if not maps:
        raise IPAdapterError(
            f"On the {side} side no reference acted in the layers '{layers}'. Choose other layers or the other side (with cfg 1 there "
            "is no negative side; most IPAdapter nodes leave the middle out)."
        )
    return maps


def _of(reference: Reference, show: str, layers: str, side: str, latents: int) -> list[Map]:
    groups = slice(None) if layers == "all" else slice(LAYERS.index(layers) - 1, LAYERS.index(layers))
    sums = reference.tokens if show == "tokens" else (reference.influence if show == "influence" else reference.attention).unsqueeze(3)
    assert sums is not None
    number = SIDES.index(side)
    counts = reference.counts[groups, number].sum(0).unsqueeze(1)  # [latents, 1, rows, columns]
    means = sums[groups, number].sum(0) / counts.clamp_min(1)
    names = [f"latent {latent + 1}" if latents > 1 else "" for latent in range(latents)]
    return [
        Map(one, ", ".join(filter(None, (reference.name, f"token {place}" if show == "tokens" else "", names[latent]))), latent)
        for latent in range(latents)
        if counts[latent].any()
        for place, one in enumerate(means[latent], 1)
    ]
