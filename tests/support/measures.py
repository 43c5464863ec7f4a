"""What is claimed of image prompts, measured in the tiny world: each measure gives named shares. See world/README.md for the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support.proof import BATCH, STEPS, Share, World

Shares = dict[str, Share]
MAIN = ("shape", "colour", "background")
ALL = ("shape", "colour", "background", "position", "size", "style")
NEUTRAL = "a picture"


def neutral(n: int) -> list[str]:
    return [NEUTRAL] * n


def text_alone(world: World, n: int, steps: int = STEPS) -> Shares:
    """The base model: shape and colour as the text says."""
    wanted = world.random_scenes("text", n)
    captions = [world.scenes.caption(scene) for scene in wanted]
    made = world.made(torch.zeros(n, 1), captions, lambda part, first: world.model, steps=steps)
    found = world.read(made)
    both = Share(sum(a["shape"] == b.shape and a["colour"] == b.colour
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
    others = [next(one for one in world.scenes.COLOURS if one not in (s.colour, s.background)) for s in wanted]
    return wanted, pictures, others, [f"{one} background" for one in others]


def of_text_and_picture(world: World, made: Tensor, wanted: list[Any], others: list[str]) -> Shares:
    found, n = world.read(made), len(wanted)
    shape = [a["shape"] == scene.shape for a, scene in zip(found, wanted, strict=True)]
    background = [a["background"] == one for a, one in zip(found, others, strict=True)]
    both = sum(a and b for a, b in zip(shape, background, strict=True))
    return {"shape of the picture": Share(sum(shape), n), "background of the text": Share(sum(background), n), "both": Share(both, n)}


def text_and_picture(world: World, n: int, family: str, weight: float = 1.0) -> Shares:
    """The text names the background, the picture shows shape and another background."""
    wanted, pictures, others, captions = with_other_background(world, n)
    made = world.made(pictures, captions, lambda part, first: world.apply(family, part, weight))
    return of_text_and_picture(world, made, wanted, others)


def half_masks() -> Tensor:
    """[2, 1, 64, 128]: the left and the right half of a wide picture."""
    masks = torch.zeros(2, 1, 64, 128)
    masks[0, ..., :64] = masks[1, ..., 64:] = 1
    return masks


def halves(world: World, n: int, family: str, weight: float = 1.0) -> Shares:
    """Two references in the two halves of a wide picture by attn_mask; neutral text."""
    masks = half_masks()
    right_ones = world.references("right", n)[1]

    def model_of(part: Tensor, first: int) -> Any:
        model = world.apply(family, part, weight, attn_mask=masks[0])
        return world.apply(family, right_ones[first : first + len(part)], weight, model=model, attn_mask=masks[1])

    return in_halves(world, n, model_of)


def in_halves(world: World, n: int, model_of: Callable[[Tensor, int], Any], batch: int = BATCH) -> Shares:
    """What of references "left" and "right" is in the left and in the right half; model_of(left references, first) gives the model."""
    wanted, pictures = world.references("left", n)
    made = world.made(pictures, neutral(n), model_of, batch, halves=2)
    shares: Shares = {}
    for side, scenes, half in zip(("left", "right"), (wanted, world.references("right", n)[0]), made.chunk(2, dim=2), strict=True):
        shares |= {f"{side} {name}": share for name, share in world.agreement(half, scenes, MAIN).items()}
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
        a = [one[name] == getattr(scene, name) for one, scene in zip(found, first, strict=True)]
        b = [one[name] == getattr(scene, name) for one, scene in zip(found, second, strict=True)]
        shares[f"{name} of one of them"] = Share(sum(x or y for x, y in zip(a, b, strict=True)), n)
    return shares


def negative(world: World, n: int, family: str) -> Shares:
    """The background of a negative picture, with it and without it; text names the shape."""
    wanted, pictures = world.references("negative", n)
    captions = [f"a {scene.shape}" for scene in wanted]
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
        saved = (Path(folder_paths.get_output_directory()) / name).replace(Path(folder_paths.get_input_directory()) / name)
        (loaded,) = getattr(load, load.FUNCTION)(name)
        saved.unlink()
        apply = world.node("IPAdapterEmbeds")()
        given = dict(weight=1.0, weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only", clip_vision=world.encoder)
        given |= dict(model=world.model, ipadapter=world.adapter(family), neg_embed=negative)
        models = [getattr(apply, apply.FUNCTION)(pos_embed=embeds, **given)[0] for embeds in (positive, loaded)]
        same += torch.equal(*(world.sample(model, [NEUTRAL], i) for model in models))
    return {"identical pictures": Share(same, n)}
