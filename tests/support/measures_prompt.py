"""What is measured of Image Prompt: every layer patched and the adapter's own negative side ("as published"), or as IPAdapter Plus."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from support import lab
from support.measures import Shares, half_masks, in_halves, of_text_and_picture, single, with_other_background
from support.proof import World

PUBLISHED = "as published"


def image_prompt(
    world: World, family: str, references: list[tuple[Tensor, Tensor | None]], weight: float = 1.0, method: str = PUBLISHED,
    start_at: float = 0.0,
) -> Any:  # fmt: skip
    """The model with references [1, h, w, 3], each with its region or none, on it."""
    chain = None
    for image, region in references:
        given = dict(image=image, weight=1.0, role="everything", fit="center crop", tiles=2, region=region, more=chain)
        (chain,) = lab.call(world.node("ImagePromptReference"), **given)
    given = dict(weight=weight, join="side by side", method=method, start_at=start_at, clip_vision=world.encoder)
    return lab.call(world.node("ImagePrompt"), model=world.model, ipadapter=world.adapter(family), reference=chain, **given)[0]


def weighted(world: World, n: int, family: str, weight: float = 1.0, method: str = PUBLISHED) -> Shares:
    return single(world, n, lambda part, first: image_prompt(world, family, [(part, None)], weight, method), batch=1)


def text_and_picture(world: World, n: int, family: str, weight: float, start_at: float) -> Shares:
    """The text names the background; from `start_at` on the picture, which shows another, is there too."""
    wanted, pictures, others, captions = with_other_background(world, n)

    def model_of(part: Tensor, first: int) -> Any:
        return image_prompt(world, family, [(part, None)], weight, start_at=start_at)

    made = world.made(pictures, captions, model_of, batch=1)
    return of_text_and_picture(world, made, wanted, others)


def halves(world: World, n: int, family: str) -> Shares:
    masks, right_ones = half_masks(), world.references("right", n)[1]

    def model_of(part: Tensor, first: int) -> Any:
        return image_prompt(world, family, [(part, masks[0]), (right_ones[first : first + 1], masks[1])])

    return in_halves(world, n, model_of, batch=1)
