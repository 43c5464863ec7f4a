"""What the rows of a model call are: for each chunk its side, the latents in it, and the part of the picture it covers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ....ipadapter_core.adapter.masks import Area
from ....ipadapter_core.errors import IPAdapterError
from .polarity import is_negative

log = logging.getLogger(__name__)

CONDS = "ipadapter_conds"  # the guider's ((name, conds), ...)
SAMPLED = "ipadapter_sampled"  # the Sampled of the calc_cond_batch that a model call belongs to


@dataclass(frozen=True)
class Sampled:
    """What calc_cond_batch was asked for: the side of each of its lists of conds (None: not known), and the latents.

    areas: cond uuid -> its part of the latents of `size` (height, width); prompts without an area are left out.
    """

    negative: tuple[bool | None, ...]
    latents: int
    size: tuple[int, int]
    areas: Mapping[Any, Area] = field(hash=False)


@dataclass(frozen=True)
class Chunks:
    """The rows of a model call: chunks of as many rows as there are `latents` in it, one after another.

    latents: the number of each latent in the whole batch, None where that is not known. areas: the part of the picture that each
    chunk covers, None for all of it; `areas` itself is None where a crop cannot be placed. size: (height, width) of the latents.
    """

    negative: tuple[bool, ...]
    latents: tuple[int, ...] | None
    areas: tuple[Area | None, ...] | None
    rows: int
    size: tuple[int, int]


def chunks_of(options: Mapping[str, Any], rows: int, size: tuple[int, int]) -> Chunks:
    """The chunks of a call with transformer_options `options` and `rows` latents of `size` (height, width).

    Raises IPAdapterError where both sides are in the call and it cannot be told which rows are on which side.
    """
    sampled: Sampled | None = options.get(SAMPLED)
    numbers = tuple(options.get("cond_or_uncond") or (0,))
    negative = tuple(_side(number, sampled) for number in numbers)
    areas = _areas(options, len(numbers), size, sampled)
    count, rest = divmod(rows, len(numbers))
    latents = _latents(options, count, sampled)
    known = latents is not None or sampled is None or sampled.latents == count
    if not rest and known:
        return Chunks(negative, latents, areas, rows, size)
    if len(set(negative)) > 1:
        raise IPAdapterError(
            f"Another node changes the batch on its way to the adapter ({rows} rows for {len(numbers)} prompts) and does not say "
            "which rows belong to the negative prompt. IPAdapter cannot work beside it: bypass that node (attention couple, "
            "a tiled or a low-memory sampler), or set cfg to 1."
        )
    same = areas if areas is not None and len(set(areas)) == 1 else None
    return Chunks(negative[:1], None, same and same[:1], rows, size)


def _side(number: int, sampled: Sampled | None) -> bool:
    """A chunk's number is its place in the list given to calc_cond_batch; 0 is the positive one where no name tells."""
    named = None if sampled is None or number >= len(sampled.negative) else sampled.negative[number]
    return number != 0 if named is None else named


def _latents(options: Mapping[str, Any], count: int, sampled: Sampled | None) -> tuple[int, ...] | None:
    """The latents of the whole batch in a chunk of `count`: AnimateDiff's sub_idxs, core's context window, or all; None if unknown.

    With a causal anchor a window holds that frame in front of its own.
    """
    frames = (options.get("ad_params") or {}).get("sub_idxs")
    window = options.get("context_window")
    if frames is None and window is not None and getattr(window, "dim", None) == 0:
        frames = list(window.index_list)
        anchor = getattr(window, "causal_anchor_index", None)
        if anchor is not None and len(frames) + 1 == count:
            frames = [anchor, *frames]
    if frames is None:
        return tuple(range(count)) if sampled is None or sampled.latents == count else None
    return tuple(frames) if len(frames) == count else None


def _areas(options: Mapping[str, Any], count: int, size: tuple[int, int], sampled: Sampled | None) -> tuple[Area | None, ...] | None:
    if sampled is None or size == sampled.size:
        return (None,) * count
    uuids = tuple(options.get("uuids") or ())
    areas = tuple(sampled.areas.get(uuid) for uuid in uuids)
    if len(areas) == count and all(area is not None and (area.height, area.width) == size for area in areas):
        return areas
    return None


def area_of(cond: Mapping[str, Any], size: tuple[int, int]) -> Area | None:
    """The part of latents of `size` that a cond is sampled on, cut at their edges as the sampler cuts it; None for all of them."""
    if len(cond.get("area") or ()) != 4:
        return None
    height, width, y, x = cond["area"]
    return Area(y, x, min(height, size[0] - y), min(width, size[1] - x), size)


def remember_conds(executor, x, timestep, model_options=None, seed=None):
    """PREDICT_NOISE wrapper: puts the guider's conds where describe_conds finds them."""
    model_options = {} if model_options is None else model_options
    options = {**model_options.get("transformer_options", {}), CONDS: tuple(executor.class_obj.conds.items())}
    return executor(x, timestep, {**model_options, "transformer_options": options}, seed)


def describe_conds(executor, model, conds, x_in, timestep, model_options):
    """CALC_COND_BATCH wrapper: says which lists of conds are negative, whatever their place in the call, and where their areas lie."""
    options = model_options.get("transformer_options", {})
    named = options.get(CONDS, ())
    negative = tuple(None if cond is None else is_negative(cond, named) for cond in conds)
    size = (x_in.shape[-2], x_in.shape[-1])
    areas = {one.get("uuid"): area for cond in conds for one in cond or () if (area := area_of(one, size)) is not None}
    options = {**options, SAMPLED: Sampled(negative, x_in.shape[0], size, areas)}
    return executor(model, conds, x_in, timestep, {**model_options, "transformer_options": options})


@lru_cache
def tell_once(text: str) -> None:
    """A warning that would come again at every step."""
    log.warning(text)
