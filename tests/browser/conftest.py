"""The real editor, opened once for each file of tests."""

import json

import pytest

from support.convert import to_prompt
from support.editor import Editor, chromium
from support.rig import REPO


@pytest.fixture(scope="session")
def models(rig):
    """The small random models of all examples, made in one process instead of one for each example."""
    workflows = (json.loads(path.read_text(encoding="utf-8")) for path in sorted((REPO / "workflows").glob("*.json")))
    rig.provide(*(to_prompt(workflow, rig.info) for workflow in workflows))


@pytest.fixture(scope="module")
def editor(rig, models):
    with chromium() as page:
        opened = Editor(page, rig.server.url)
        opened.open()
        yield opened
