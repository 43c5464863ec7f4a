"""Fixtures of the files that test Flux and SD3.5: narrow transformers with all of their blocks, and what applies features to them."""

from types import SimpleNamespace
from typing import Any

import pytest

from support import whole_transformer as whole


@pytest.fixture(scope="module")
def host(pack) -> SimpleNamespace:
    return whole.parts()


@pytest.fixture(scope="module")
def models(comfy) -> dict[str, whole.Transformer]:
    return {arch: whole.Transformer(arch) for arch in ("flux", "sd3")}


@pytest.fixture(scope="module")
def apply(host, models) -> Any:
    return whole.applying(host, models)
