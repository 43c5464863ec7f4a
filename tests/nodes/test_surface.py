"""The Python side of the established nodes: other packs instantiate the classes and call their methods with keywords."""

import inspect
import json
from pathlib import Path

import pytest

from support import lab

SURFACE = json.loads((Path(lab.__file__).parent / "nodes.json").read_text())


@pytest.mark.parametrize("name", SURFACE)
def test_method_and_keywords(name, pack):
    want, cls = SURFACE[name], pack[name]
    assert want["function"] == cls.FUNCTION
    parameters = inspect.signature(getattr(cls(), cls.FUNCTION)).parameters
    assert list(parameters)[: len(want["method_keywords"])] == want["method_keywords"]
