"""The trained tiny world in the ComfyUI of this process."""

import pytest

from support.proof import World


@pytest.fixture(scope="session")
def tiny_world(pack) -> World:
    return World(pack)
