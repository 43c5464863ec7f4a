"""What is claimed of image prompts, measured in the tiny world: each measure gives named shares. See world/README.md for the table."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support.proof import BATCH, Share, World

Shares = dict[str, Share]
MAIN = ("shape", "colour", "background")
ALL = ("shape", "colour", "background", "position", "size", "style")
NEUTRAL = "a picture"
TWO_SHAPES = "a shape on the left, a shape on the right"


def neutral(n: int) -> list[str]:
    return [NEUTRAL] * n


def text_alone(world: World, n: int) -> Shares:
    """The base model: shape and colour as the text says."""
    wanted = world.random_scenes("text", n)
    captions = [world.scenes.caption(scene) for scene in wanted]
    made = world.made(torch.zeros(n, 1), captions, lambda part, first: world.model)
    found = world.read(made)
    both = Share(sum(a["shape"] == world.scenes.get(b, "shape") and a["colour"] == world.scenes.get(b, "colour")
                     for a, b in zip(found, wanted, strict=True)), n)  # fmt: skip
    return {"shape and colour": both, **world.agreement(made, wanted, ALL)}


def single(world: World, n: int, model_of: Callable[[Tensor, int], Any], batch: int = BATCH) -> Shares:
    """Neutral text, a reference for each picture; model_of(references, first) gives the model of a batch."""
    wanted, pictures = world.references("single", n)
    return world.agreement(world.made(pictures, neutral(n), model_of, batch), wanted, ALL)


def weighted(world: World, n: int, family: str, weight: float, model: Any = None, **options: Any) -> Shares:
    return single(world, n, lambda part, first: world.apply(family, part, weight, model, **options))


def without(world: World, n: int) -> Shares:
    """The base's own rate: neutral text and no adapter, read against the same references."""
    return single(world, n, lambda part, first: world.model)


def with_other_background(world: World, n: int) -> tuple[list[Any], Tensor, list[str], list[str]]:
    """References as scenes and pictures, and for each a background that it does not show, as a colour and as the text that names it."""
    wanted, pictures = world.references("single", n)
    others = [next(one for one in world.scenes.COLOURS if one not in (s.things[0].colour, s.things[0].background)) for s in wanted]
    return wanted, pictures, others, [f"{one} background" for one in others]


def of_text_and_picture(world: World, made: Tensor, wanted: list[Any], others: list[str]) -> Shares:
    found, n = world.read(made), len(wanted)
    shape = [a["shape"] == scene.things[0].shape for a, scene in zip(found, wanted, strict=True)]
    background = [a["background"] == one for a, one in zip(found, others, strict=True)]
    both = sum(a and b for a, b in zip(shape, background, strict=True))
    return {"shape of the picture": Share(sum(shape), n), "background of the text": Share(sum(background), n), "both": Share(both, n)}


def text_and_picture(world: World, n: int, family: str, weight: float = 1.0) -> Shares:
    """The text names the background, the picture shows shape and another background."""
    wanted, pictures, others, captions = with_other_background(world, n)
    made = world.made(pictures, captions, lambda part, first: world.apply(family, part, weight))
    return of_text_and_picture(world, made, wanted, others)


def sides(world: World, n: int) -> tuple[list[Any], Tensor, list[Any], Tensor]:
    """References with a small thing on the left, which fits into that half, and as many with one on the right."""
    found = []
    for side in ("left", "right"):
        drawn = [world.scenes.scene_and_picture(f"proof {side} {i}", 0.0)[0] for i in range(n)]
        scenes = [replace(one, things=(replace(one.things[0], position=side, size="small"),)) for one in drawn]
        pictures = [world.pictures.as_tensor(world.scenes.draw(one, random.Random(f"{side} {i}"))) for i, one in enumerate(scenes)]
        found += [scenes, torch.stack(pictures).movedim(1, -1).float() / 255]
    return tuple(found)  # type: ignore[return-value]


def half_masks() -> Tensor:
    """[2, 1, 64, 64]: the left and the right half of a picture."""
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, ..., :32] = masks[1, ..., 32:] = 1
    return masks


def halves(world: World, n: int, family: str, weight: float = 1.0) -> Shares:
    """Two references in the two halves of a picture by attn_mask; the text says that there are two shapes, not which."""
    left, left_pictures, right, right_pictures = sides(world, n)
    masks = half_masks()

    def model_of(part: Tensor, first: int) -> Any:
        model = world.apply(family, part, weight, attn_mask=masks[0])
        return world.apply(family, right_pictures[first : first + len(part)], weight, model=model, attn_mask=masks[1])

    return of_halves(world, world.made(left_pictures, [TWO_SHAPES] * n, model_of), left, right)


def of_halves(world: World, made: Tensor, left: list[Any], right: list[Any]) -> Shares:
    shares: Shares = {}
    for side, scenes in enumerate((left, right)):
        found = world.read(made, side)
        for name in MAIN:
            right_ones = sum(a[name] == world.scenes.get(b, name) for a, b in zip(found, scenes, strict=True))
            shares[f"{'left' if side == 0 else 'right'} {name}"] = Share(right_ones, len(scenes))
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
