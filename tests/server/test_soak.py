"""`python3 dev.py soak` in small: re-queues, faults and two clients on a server of their own, which has the faults pack."""

import random

import pytest

from support.rig import Rig
from support.soak import KINDS, PACKS, PLACES, Soak, run
from support.soak_requests import REFERENCES, random_request


@pytest.fixture(scope="module")
def soak(comfy_root, tmp_path_factory):
    with Rig(comfy_root, tmp_path_factory.mktemp("soak"), extra=PACKS) as rig:
        yield Soak(rig, references=[one for one in REFERENCES if one.base == "sd15"])
