"""The real editor, opened once for each file of tests."""

import pytest

from support.editor import Editor, chromium


@pytest.fixture(scope="module")
def editor(rig):
    with chromium() as page:
        opened = Editor(page, rig.server.url)
        opened.open()
        yield opened
