"""Whether the maps of Watch Image Prompt lie where the thing of the reference came out, measured in the tiny world."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from support import lab
from support.proof import BATCH, Share, World

CELLS = 8  # of the latents on each side, and of the maps
LAYERS = ("all", "up")


def places(world: World, made: Tensor) -> Tensor:
    """[n, CELLS, CELLS]: the share of each cell that the thing covers: pixels nearer to its colour than to the background's, as read."""
    colours = {name: torch.tensor(rgb) / 255 for name, rgb in world.scenes.COLOURS.items()}
    found = []
    for picture, told in zip(made, world.read(made), strict=True):
        thing, background = ((picture - colours[told[name]]).norm(dim=-1) for name in ("colour", "background"))
        found.append((thing < background).float())
    return F.avg_pool2d(torch.stack(found)[:, None], made.shape[1] // CELLS)[:, 0]


def watched(world: World, n: int, family: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures [n, 64, 64, 3] from references with one thing each and neutral text, and the influence in LAYERS [n, CELLS, CELLS]."""
    from ipadapter_pack.nodes.host.look.map_choice import chosen_maps

    _, pictures = world.references("maps", n)
    made: list[Tensor] = []
    maps: dict[str, list[Tensor]] = {layers: [] for layers in LAYERS}
    for first in range(0, n, BATCH):
        part = pictures[first : first + BATCH]
        model, record = lab.call(world.node("WatchImagePrompt"), model=world.apply(family, part))
        made.append(world.sample(model, [world.scenes.NEUTRAL] * len(part), first + 1))
        for layers, found in maps.items():
            found += [one.map for one in chosen_maps(record.recordings[-1], "influence", 0, layers, "positive")]
    return torch.cat(made), {layers: torch.stack(found) for layers, found in maps.items()}


def maps(world: World, n: int, family: str) -> dict[str, Share]:
    """Whether a map's highest cell is on the thing, and whether its highest cells, as many as the thing has, are mostly those.

    Beside it the same with the map of the next picture: what a map that knows nothing of its picture gets.
    """
    made, found = watched(world, n, family)
    things = (places(world, made) >= 0.5).flatten(1)
    kept = things.any(dim=1)
    shares: dict[str, Share] = {}
    for layers, each in found.items():
        own = each[kept].flatten(1)
        for whose, ones in (("", own), (" (map of the next picture)", own.roll(1, 0))):
            pointing, covering = 0, 0
            for thing, one in zip(things[kept], ones, strict=True):
                top = torch.zeros_like(thing)
                top[one.topk(int(thing.sum())).indices] = True
                pointing += bool(thing[one.argmax()])
                covering += int((top & thing).sum()) >= 0.5 * int((top | thing).sum())
            shares[f"{layers} layers: highest cell on the shape{whose}"] = Share(pointing, len(ones))
            shares[f"{layers} layers: IoU of 0.5 or more{whose}"] = Share(covering, len(ones))
    return shares
