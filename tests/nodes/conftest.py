"""Fixtures of the files that test Flux and SD3.5: narrow transformers with all of their blocks, and what applies features to them."""

from types import SimpleNamespace
from typing import Any

import pytest

from support import whole_transformer as whole


@pytest.fixture(scope="module")
def host(pack) -> SimpleNamespace:
    return whole.parts()


class Models(dict[str, whole.Transformer]):
    """Made when they are asked for."""

    def __missing__(self, arch: str) -> whole.Transformer:
        return self.setdefault(arch, whole.Transformer(arch))


@pytest.fixture(scope="module")
def models(comfy) -> Models:
    return Models()


@pytest.fixture(scope="module")
def apply(host, models) -> Any:
    return whole.applying(host, models)
