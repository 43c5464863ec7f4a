"""What is claimed of image prompts, measured in the tiny world: each measure gives named shares. See world/README.md for the table."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support.measure_maps import maps
from support.proof import Share, World

Shares = dict[str, Share]
MAIN = ("shape", "colour", "background")
ALL = ("shape", "colour", "background", "position", "size", "style")
NEUTRAL = "a picture"


def neutral(n: int) -> list[str]:
    return [NEUTRAL] * n


def prefixed(name: str, shares: Shares) -> Shares:
    return {f"{name}: {one}": share for one, share in shares.items()}


def text_alone(world: World, n: int) -> Shares:
    """The base model: shape and colour as the text says."""
    wanted = world.random_scenes("text", n)
    captions = [world.scenes.caption(scene) for scene in wanted]
    made = world.made(torch.zeros(n, 1), captions, lambda part, first: world.model)
    found = world.read(made)
    both = Share(sum(a["shape"] == world.scenes.get(b, "shape") and a["colour"] == world.scenes.get(b, "colour")
                     for a, b in zip(found, wanted, strict=True)), n)  # fmt: skip
    return {"shape and colour": both, **world.agreement(made, wanted, ALL)}


def weighted(world: World, n: int, family: str, weight: float, **options: Any) -> Shares:
    """Neutral text, a reference for each picture."""
    wanted, pictures = world.references("single", n)
    made = world.made(pictures, neutral(n), lambda part, first: world.apply(family, part, weight, **options))
    return world.agreement(made, wanted, ALL)


def without(world: World, n: int) -> Shares:
    """The base's own rate: neutral text and no adapter, read against the same references."""
    wanted, pictures = world.references("single", n)
    return world.agreement(world.made(pictures, neutral(n), lambda part, first: world.model), wanted, ALL)


def text_and_picture(world: World, n: int, family: str) -> Shares:
    """The text names the background, the picture shows shape and another background."""
    wanted, pictures = world.references("single", n)
    others = [next(one for one in world.scenes.COLOURS if one not in (s.things[0].colour, s.things[0].background)) for s in wanted]
    made = world.made(pictures, [f"{one} background" for one in others], lambda part, first: world.apply(family, part))
    found = world.read(made)
    shape = [a["shape"] == scene.things[0].shape for a, scene in zip(found, wanted, strict=True)]
    background = [a["background"] == one for a, one in zip(found, others, strict=True)]
    both = sum(a and b for a, b in zip(shape, background, strict=True))
    return {"shape of the picture": Share(sum(shape), n), "background of the text": Share(sum(background), n), "both": Share(both, n)}


def sides(world: World, n: int) -> tuple[list[Any], Tensor, list[Any], Tensor]:
    """References with a thing on the left, and as many with one on the right."""
    found = []
    for side in ("left", "right"):
        drawn = [world.scenes.scene_and_picture(f"proof {side} {i}", 0.0)[0] for i in range(n)]
        scenes = [replace(one, things=(replace(one.things[0], position=side),)) for one in drawn]
        pictures = [world.pictures.as_tensor(world.scenes.draw(one, random.Random(f"{side} {i}"))) for i, one in enumerate(scenes)]
        found += [scenes, torch.stack(pictures).movedim(1, -1).float() / 255]
    return tuple(found)  # type: ignore[return-value]


def halves(world: World, n: int, family: str, weight: float = 1.0) -> Shares:
    """Two references in the two halves of a picture by attn_mask."""
    left, left_pictures, right, right_pictures = sides(world, n)
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, ..., :32] = masks[1, ..., 32:] = 1

    def model_of(part: Tensor, first: int) -> Any:
        model = world.apply(family, part, weight, attn_mask=masks[0])
        return world.apply(family, right_pictures[first : first + len(part)], weight, model=model, attn_mask=masks[1])

    made = world.made(left_pictures, neutral(n), model_of)
    shares: Shares = {}
    for side, scenes in enumerate((left, right)):
        found = world.read(made, side)
        for name in MAIN:
            right_ones = sum(a[name] == world.scenes.get(b, name) for a, b in zip(found, scenes, strict=True))
            shares[f"{'left' if side == 0 else 'right'} {name}"] = Share(right_ones, n)
    return shares


def several(world: World, n: int, family: str, combine: str) -> Shares:
    """Two references for one picture: how often it agrees with the first, with the second, with one of them."""
    first, pictures = world.references("first", n)
    second, others = world.references("second", n)
    made = []
    for i in range(n):
        both = torch.stack([pictures[i], others[i]])
        model = world.apply(family, both, node="IPAdapterAdvanced", combine_embeds=combine)
        made.append(world.sample(model, [NEUTRAL], i))
    found = world.read(torch.cat(made))
    shares: Shares = {}
    for name in MAIN:
        a = [one[name] == world.scenes.get(scene, name) for one, scene in zip(found, first, strict=True)]
        b = [one[name] == world.scenes.get(scene, name) for one, scene in zip(found, second, strict=True)]
        shares[f"{name} of one of them"] = Share(sum(x or y for x, y in zip(a, b, strict=True)), n)
    return shares


def negative(world: World, n: int, family: str) -> Shares:
    """The background of a negative picture, with it and without it; text names the shape."""
    wanted, pictures = world.references("negative", n)
    captions = [f"a {scene.things[0].shape}" for scene in wanted]
    _, positive = world.references("positive", n)

    def avoided(part: Tensor, first: int) -> Any:
        return world.apply(family, positive[first : first + len(part)], 0.3, image_negative=part)

    def plain(part: Tensor, first: int) -> Any:
        return world.apply(family, positive[first : first + len(part)], 0.3)

    return {
        name: world.agreement(world.made(pictures, captions, model_of), wanted, ("background",))["background"]
        for name, model_of in (("with it", avoided), ("without it", plain))
    }


def saved_embeds(world: World, n: int, family: str) -> Shares:
    """Pictures from embeds that went through a file: identical to those without."""
    import folder_paths

    _, pictures = world.references("single", n)
    same = 0
    for i in range(n):
        picture = pictures[i : i + 1]
        encoded = dict(ipadapter=world.adapter(family), image=picture, weight=1.0, clip_vision=world.encoder)
        node = world.node("IPAdapterEncoder")()
        positive, negative = getattr(node, node.FUNCTION)(**encoded)[:2]
        save, load = world.node("IPAdapterSaveEmbeds")(), world.node("IPAdapterLoadEmbeds")()
        name = getattr(save, save.FUNCTION)(positive, f"proof_{i}")["ui"]["text"][0]
        (Path(folder_paths.get_output_directory()) / name).replace(Path(folder_paths.get_input_directory()) / name)
        (loaded,) = getattr(load, load.FUNCTION)(name)
        apply = world.node("IPAdapterEmbeds")()
        given = dict(weight=1.0, weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only", clip_vision=world.encoder)
        given |= dict(model=world.model, ipadapter=world.adapter(family), neg_embed=negative)
        models = [getattr(apply, apply.FUNCTION)(pos_embed=embeds, **given)[0] for embeds in (positive, loaded)]
        same += torch.equal(*(world.sample(model, [NEUTRAL], i) for model in models))
    return {"identical pictures": Share(same, n)}


def every(families: Sequence[str] = ("standard", "plus")) -> dict[str, Callable[[World, int], Shares]]:
    """All measures by their names in the table."""
    found: dict[str, Callable[[World, int], Shares]] = {"text alone": text_alone, "neutral text, no adapter": without}
    for family in families:
        for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
            found[f"{family}, weight {weight:g}"] = lambda w, n, f=family, x=weight: weighted(w, n, f, x)
        found[f"{family}, text names the background"] = lambda w, n, f=family: text_and_picture(w, n, f)
        found[f"{family}, two halves by mask"] = lambda w, n, f=family: halves(w, n, f)
        found[f"{family}, maps"] = lambda w, n, f=family: maps(w, n, f)
        found[f"{family}, negative picture"] = lambda w, n, f=family: negative(w, n, f)
    for combine in ("concat", "average"):
        found[f"standard, two references, {combine}"] = lambda w, n, c=combine: several(w, n, "standard", c)
    found["standard, embeds saved and loaded"] = lambda w, n: saved_embeds(w, n, "standard")
    found["plus, start_at 0.3"] = lambda w, n: weighted(w, n, "plus", 1.0, start_at=0.3)
    found["plus, end_at 0.5"] = lambda w, n: weighted(w, n, "plus", 1.0, end_at=0.5)
    return found
