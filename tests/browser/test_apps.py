"""The examples that are apps: newer editors open them as a panel, those before as the graph that they are."""

import json

import pytest

from support.rig import REPO

APPS = sorted((REPO / "workflows").glob("*.app.json"))
OPEN = "([file, name]) => window.app.loadGraphData(file, true, true, name)"


@pytest.mark.parametrize("path", APPS, ids=lambda path: path.stem)
def test_an_app_opens_with_its_inputs_in_order(path, any_editor):
    app = json.loads(path.read_text(encoding="utf-8"))
    page = any_editor.page
    page.evaluate(OPEN, [app, path.stem])
    page.wait_for_function("count => window.app.graph.nodes.length === count", arg=len(app["nodes"]))
    panel = page.get_by_test_id("linear-widgets")
    if any_editor.frontend is None:
        assert panel.count() == 0
        return
    panel.wait_for()
    told = panel.get_by_test_id("builder-widget-label").all_inner_texts()
    assert told == [name for _, name in app["extra"]["linearData"]["inputs"]]
    assert page.get_by_test_id("linear-run-button").count() == 1
