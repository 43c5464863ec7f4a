"""The golden values: what ComfyUI_IPAdapter_plus 2.0.0 gave for the same calls on the same synthetic weights (see support/lab.py).

Every case calls the nodes in the established interface and samples a tiny real ComfyUI UNet with the patched model; helper nodes are
compared by their outputs. TOLERANCE is the rounding of float32 sums in another order over some twenty layers and three to six steps,
as a share of what the adapter changes; ROUNDING is what the UNet alone may differ by between machines and numbers of threads.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import cases as sampled
from support import node_cases as helpers
from support import world as world_module

TOLERANCE = 1e-4
ROUNDING = 5e-6  # of the latent without the adapter, which some cases change by a thousandth only
NEEDS_FACES = ("family/faceid", "family/portrait", "face_image")

SUPPORT = Path(sampled.__file__).parent
GOLDEN = {**load_file(SUPPORT / "golden.safetensors"), **json.loads((SUPPORT / "golden.json").read_text())}
CASES, NODE_CASES = sampled.cases(), helpers.node_cases()


@pytest.fixture
def face_align(name, monkeypatch):
    """The resize in place of insightface's face crop that the golden values of the face cases were made with."""
    if name.startswith(NEEDS_FACES):
        for module, stand_in in world_module.face_align_modules().items():
            monkeypatch.setitem(sys.modules, module, stand_in)
        threads = torch.get_num_threads()
        torch.set_num_threads(2)  # the stand-in's resize rounds to other bytes with one thread
        yield
        torch.set_num_threads(threads)
    else:
        yield


@pytest.mark.usefixtures("face_align")
@pytest.mark.parametrize("name", CASES)
def test_latent(name, pack, world):
    arch, patch, sampling = CASES[name]
    got = world.out(arch, patch(world, pack), **sampling)
    without = world.baseline(arch, **sampling)
    assert (got - GOLDEN[name]).norm() < TOLERANCE * (GOLDEN[name] - without).norm() + ROUNDING * without.norm()


@pytest.mark.usefixtures("face_align")
@pytest.mark.parametrize("name", NODE_CASES)
def test_outputs(name, pack, world):
    want = {key.rsplit("/", 1)[1]: value for key, value in GOLDEN.items() if key.rsplit("/", 1)[0] == f"node/{name}"}
    got = helpers.digests(NODE_CASES[name](world, pack))
    assert want
    for output, value in want.items():
        have = got[output]
        if isinstance(value, str) or isinstance(have, str):
            assert have == value
        else:
            assert helpers.node_error(have, value) < TOLERANCE


def test_every_golden_value_has_its_case():
    """No recorded value is left without a call that is held against it, and no case without a value."""
    named = set(CASES) | {f"node/{name}" for name in NODE_CASES}
    recorded = {key.rsplit("/", 1)[0] if key.startswith("node/") else key for key in GOLDEN}
    assert named == recorded
