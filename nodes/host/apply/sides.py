"""Which features an adapter projects for the two sides of a sampling: one row for each set of tokens, and the row of each latent."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ....ipadapter_core.adapter.embeds import combine, match_count
from ....ipadapter_core.adapter.masks import take
from ..cache import digest, digests
from .features import Features


@dataclass(frozen=True)
class Sides:
    """positive, negative: features of what acts at a layer, `pictures` of them side by side in a row of tokens, or a row for each.

    The first entry is the picture, the second (if there is one) what takes its place at the layers of composition. positive_rows,
    negative_rows: the row of each latent, the last one goes on. swapped_rows: the positive row that stands in each negative row where a
    precise type swaps the sides. key: another one whenever features are others.
    """

    positive: tuple[Features, ...]
    negative: tuple[Features, ...]
    positive_rows: tuple[int, ...]
    negative_rows: tuple[int, ...]
    swapped_rows: tuple[int, ...]
    pictures: int
    key: tuple


def side_by_side(given: Sequence[Features], negative: Features, method: str) -> Sides:
    """All pictures for all latents, combined by `method`."""
    positive = tuple(tuple(combine(part, method) for part in features) for features in given)
    negatives = tuple(tuple(match_count(part, len(features[0])) for part in negative) for features in positive)
    key = tuple(digest(part) for features in (*positive, *negatives) for part in features)
    return Sides(positive, negatives, (0,), (0,), (0,), len(positive[0][0]), key)


def per_latent(given: Sequence[Features], negative: Features, swaps: bool) -> Sides:
    """Picture i for latent i; those that come again share a row. swaps: the sides are swapped at some layers."""
    latents = max(len(features[0]) for features in given)
    several = any(len(part) > 1 for part in negative)  # identities are one row of zeros, whatever the pictures beside them
    positive_ids = _ids([part for features in given for part in features], latents)
    negative_ids = _ids(negative, latents if several or swaps else 1)
    if swaps:
        negative_ids = list(zip(negative_ids, positive_ids, strict=True))
    positive_rows, positive_first = _distinct(positive_ids)
    negative_rows, negative_first = _distinct(negative_ids)
    return Sides(
        positive=tuple(tuple(take(part, positive_first) for part in features) for features in given),
        negative=(tuple(take(part, negative_first) for part in negative),) * len(given),
        positive_rows=positive_rows,
        negative_rows=negative_rows,
        swapped_rows=tuple(positive_rows[first] for first in negative_first),
        pictures=1,
        key=(*(positive_ids[first] for first in positive_first), None, *(negative_ids[first] for first in negative_first)),
    )


def _ids(parts: Sequence, count: int) -> list[Hashable]:
    """What tells the entries 0 to count - 1 of the parts [n, ...] apart; the last one goes on."""
    seen = [digests(part[:count]) for part in parts]
    return [tuple(each[min(i, len(each) - 1)] for each in seen) for i in range(count)]


def _distinct(ids: Sequence[Hashable]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the row of each entry, the entry that each row is taken from)."""
    rows: dict[Hashable, int] = {}
    row_of = tuple(rows.setdefault(one, len(rows)) for one in ids)
    return row_of, tuple(row_of.index(row) for row in range(len(rows)))
