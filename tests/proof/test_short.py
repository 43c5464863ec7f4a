"""The claims that are measured at length by `python3 dev.py proof`, with few pictures.

Seeds are fixed, so a run on one machine gives the same figures each time; the bounds are where a share as measured at length would fall
in less than one of a thousand draws of COUNT pictures, so that another machine's rounding does not fail them.
"""

import json

import pytest

from support import measure_maps, measures
from support.proof import Share
from support.world_models import MODELS

COUNT = 40
LONG = json.loads((MODELS / "proof.json").read_text())


def bound(measure: str, name: str) -> float:
    """The share that COUNT pictures stay above, 999 times of 1000, where the long measurement is true."""
    share = Share(*LONG[measure][name]).value
    return share - 3.3 * (max(share * (1 - share), 0.02) / COUNT) ** 0.5


@pytest.fixture(scope="module")
def base(tiny_world):
    """The base's own rate of agreement."""
    return measures.without(tiny_world, COUNT)


@pytest.mark.parametrize("family", ["standard", "plus"])
def test_the_reference_comes_through(tiny_world, base, family):
    found = measures.weighted(tiny_world, COUNT, family, 1.0)
    for name in measures.MAIN:
        assert found[name].value >= bound(f"{family}, weight 1", name), (name, str(found[name]))
        assert found[name].interval[0] > base[name].interval[1], f"{name}: {found[name]} with, {base[name]} without"


def test_weight_0_is_the_base(tiny_world, base):
    assert measures.weighted(tiny_world, COUNT, "standard", 0.0) == base


def test_the_base_follows_its_text(tiny_world):
    found = measures.text_alone(tiny_world, COUNT)["shape and colour"]
    assert found.value >= bound("text alone", "shape and colour"), str(found)


def test_masks(tiny_world):
    found = measures.halves(tiny_world, COUNT, "plus")
    for name, share in found.items():
        assert share.value >= bound("plus, two halves by mask", name), (name, str(share))


def test_saved_embeds(tiny_world):
    assert measures.saved_embeds(tiny_world, 3, "standard")["identical pictures"].value == 1


def test_maps_lie_where_the_shape_came_out(tiny_world):
    found = measure_maps.maps(tiny_world, COUNT, "plus")
    own, other = (found[f"up layers: highest cell on the shape{whose}"] for whose in ("", " (map of the next picture)"))
    assert own.interval[0] > other.interval[1], f"{own} with its own map, {other} with another picture's"
