"""`python3 dev.py soak` in small."""

import random

import pytest

from support.soak import GROWTH, KINDS, PLACES, Soak
from support.soak_requests import REFERENCES, random_request


@pytest.fixture(scope="module")
def soak(rig):
    return Soak(rig, references=REFERENCES[:2])


def test_the_same_requests_take_no_more_memory_and_give_the_same_pictures(soak):
    """Ten requests twice: the second time everything is known, so that the bytes of all tensors stay as they are."""
    requests = [random_request(random.Random(number), number) for number in range(10)]
    first = [soak.pictures(request) for request in requests]
    known = soak.memory()
    assert [soak.pictures(request) for request in requests] == first
    assert soak.memory()["tensors"] <= known["tensors"] * (1 + GROWTH)
    for request in soak.references:
        soak.check(request, "after 20 re-queues")
    assert soak.failures == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_the_prompt_after_a_fault_is_right(soak, place, kind):
    assert soak.fail(place, kind, 3) == 3
    assert soak.failures == []


def test_two_clients_at_once_get_their_own_pictures(soak):
    assert soak.two_clients(5) == {"first": 5, "second": 5}
    assert soak.failures == []
