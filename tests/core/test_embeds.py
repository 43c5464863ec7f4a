"""Combining features of several pictures, against the formulas written out number by number."""

import math
from statistics import fmean

import pytest
import torch

from ipadapter_core.adapter.embeds import COMBINE_METHODS, combine, match_count
from ipadapter_core.errors import IPAdapterError

FORMULAS = {  # of one component's values over the pictures
    "add": sum,
    "subtract": lambda values: values[0] - fmean(values[1:]),
    "average": fmean,
    "norm average": lambda values: fmean(value / math.sqrt(sum(x * x for x in values)) for value in values),
    "max": max,
    "min": min,
}


def features(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("rest", [(7,), (5, 4)])
def test_formulas(method, count, rest):
    embeds = features(count, *rest)
    got = combine(embeds, method)
    assert got.shape == (1, *rest)
    want = [FORMULAS[method](column) for column in embeds.flatten(1).T.tolist()]
    assert got.flatten().tolist() == pytest.approx(want, rel=1e-13)


def test_concat_keeps_every_picture():
    embeds = features(3, 5, 4)
    assert combine(embeds, "concat") is embeds


@pytest.mark.parametrize("method", [*FORMULAS, "concat"])
def test_one_picture_stays_as_it_is(method):
    embeds = features(1, 5, 4)
    assert torch.equal(combine(embeds, method), embeds)


def test_norm_average_of_zeros_is_zero():
    """The negative side of adapters that read the projected embedding is all zeros."""
    assert torch.equal(combine(torch.zeros(3, 8), "norm average"), torch.zeros(1, 8))
    assert torch.equal(combine(torch.zeros(3, 8, dtype=torch.float16), "norm average"), torch.zeros(1, 8, dtype=torch.float16))


def test_unknown_method():
    with pytest.raises(IPAdapterError, match=r"There is no method to combine embeds 'multiply'\. Choose one of: concat, "):
        combine(features(2, 3), "multiply")


def test_methods_on_the_nodes_are_known():
    assert set(COMBINE_METHODS) == {*FORMULAS, "concat"} - {"max", "min"}


@pytest.mark.parametrize(
    ("have", "count", "entries"), [(1, 3, [0, 0, 0]), (2, 4, [0, 1, 1, 1]), (3, 3, [0, 1, 2]), (4, 2, [0, 1]), (3, 1, [0])]
)
def test_match_count(have, count, entries):
    embeds = features(have, 5, 4)
    assert torch.equal(match_count(embeds, count), torch.stack([embeds[i] for i in entries]))
