"""Which of the lists of conds that a guider passes to calc_cond_batch are negative ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

log = logging.getLogger(__name__)

Named = Sequence[tuple[str, list[dict]]]

# The names of conds in the guiders of ComfyUI (CFGGuider, DualCFGGuider, PerpNegGuider, BasicGuider) and of packs that have their own
_NEGATIVE = {
    "positive": False, "middle": False, "cond": False, "conditioning": False, "conditioned": False,
    "negative": True, "empty_negative_prompt": True, "uncond": True, "unconditional": True, "unconditioned": True,
}  # fmt: skip


def is_negative(cond: list[dict], named: Named) -> bool | None:
    """Whether a list of conds is one of the guider's that are known to be negative; None if that is not known.

    Context windows give copies with the same uuids; prompts with an area lend their uuid to the other side, so
    only uuids of one side tell.
    """
    for name, conds in named:
        if conds is cond:
            return _side(name)
    sides: dict[Any, set[bool | None]] = {}
    for name, conds in named:
        for one in conds or ():
            sides.setdefault(one.get("uuid"), set()).add(_side(name))
    for one in cond:
        side = sides.get(one.get("uuid"), set())
        if len(side) == 1:
            return next(iter(side))
    return None


def _side(name: str) -> bool | None:
    if name not in _NEGATIVE:
        tell_unknown(name)
    return _NEGATIVE.get(name)


@lru_cache
def tell_unknown(name: str) -> None:
    """Once for each name."""
    log.warning("The guider's prompt %r has no name that is known: the first prompt counts as positive, all others as negative.", name)
