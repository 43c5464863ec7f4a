"""The real editor, opened once for each file of tests."""

import json
import os
from pathlib import Path

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


@pytest.fixture(scope="module", params=("installed", "newest", "newest, Nodes 2.0"))
def any_editor(request, rig, models):
    """The editors in which a script of the pack has to work: ComfyUI's own, the newest, and that with its nodes drawn by the page."""
    newest = os.environ.get("NEWEST_FRONTEND")
    if not newest:
        pytest.fail("set NEWEST_FRONTEND to the static/ folder of a comfyui-frontend-package, or run: python3 dev.py test")
    with chromium() as page:
        frontend = None if request.param == "installed" else Path(newest)
        opened = Editor(page, rig.server.url, frontend, nodes_2=request.param.endswith("Nodes 2.0"))
        opened.open()
        yield opened
