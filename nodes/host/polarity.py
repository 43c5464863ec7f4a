"""Which side a chunk of a model call is on, and which latents it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONDS = "ipadapter_conds"  # the guider's ((name, conds), ...)
NEGATIVE = "ipadapter_negative"  # for each list given to calc_cond_batch: is it a negative one?


def negative_chunks(options: Mapping[str, Any], batch: int) -> tuple[bool, ...]:
    """For each chunk of the batch: does it belong to a negative prompt? One positive chunk where it cannot be told."""
    chunks = options.get("cond_or_uncond") or ()
    if not chunks or batch % len(chunks):
        return (False,)
    named = options.get(NEGATIVE, ())
    return tuple(named[i] if i < len(named) and named[i] is not None else i != 0 for i in chunks)


def latent_index(options: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """Which latents of the whole batch a chunk holds: AnimateDiff's sub_idxs, core's context window, or all."""
    frames = (options.get("ad_params") or {}).get("sub_idxs")
    if frames is not None and len(frames) == count:
        return tuple(frames)
    window = options.get("context_window")
    if window is not None and getattr(window, "dim", None) == 0 and len(window.index_list) == count:
        return tuple(window.index_list)
    return tuple(range(count))


def remember_conds(executor, x, timestep, model_options=None, seed=None):
    """PREDICT_NOISE wrapper: puts the guider's conds where name_conds finds them."""
    model_options = {} if model_options is None else model_options
    options = {**model_options.get("transformer_options", {}), CONDS: tuple(executor.class_obj.conds.items())}
    return executor(x, timestep, {**model_options, "transformer_options": options}, seed)


def name_conds(executor, model, conds, x_in, timestep, model_options):
    """CALC_COND_BATCH wrapper: tells negative lists of conds from the others, whatever their place in the call."""
    options = model_options.get("transformer_options", {})
    named = options.get(CONDS, ())
    negative = tuple(None if cond is None else is_negative(cond, named) for cond in conds)
    options = {**options, NEGATIVE: negative}
    return executor(model, conds, x_in, timestep, {**model_options, "transformer_options": options})


def is_negative(cond: list[dict], named: tuple[tuple[str, list[dict]], ...]) -> bool | None:
    """Whether a list of conds is one of the guider's whose name has "negative" in it; None if it is not known.

    Context windows give copies with the same uuids; prompts with an area lend their uuid to the other side, so
    only uuids of one side tell.
    """
    for name, conds in named:
        if conds is cond:
            return "negative" in name
    sides: dict[Any, set[bool]] = {}
    for name, conds in named:
        for one in conds or ():
            sides.setdefault(one.get("uuid"), set()).add("negative" in name)
    for one in cond:
        side = sides.get(one.get("uuid"), set())
        if len(side) == 1:
            return next(iter(side))
    return None
