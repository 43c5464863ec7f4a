"""The figures of likeness by their definition, and the table."""

import math

import pytest
import torch

from ipadapter_core.look import likeness
from support import synth


def test_cosines_by_their_definition():
    a, b = synth.noise("likeness a", (3, 7), 2.0), synth.noise("likeness b", (2, 7), 0.1)
    got = likeness.cosines(a, b)
    for i in range(3):
        for j in range(2):
            lengths = math.sqrt(float((a[i] ** 2).sum())) * math.sqrt(float((b[j] ** 2).sum()))
            assert float(got[i, j]) == pytest.approx(float((a[i] * b[j]).sum()) / lengths, abs=1e-6)
    torch.testing.assert_close(likeness.cosines(a, -3 * a).diagonal(), -torch.ones(3))


def test_the_table_as_text():
    assert likeness.as_text([[0.5, 1.0], [float("nan")] * 2]) == (
        "picture | reference 1 | reference 2\n1 | 0.5000 | 1.0000\n2 | no face | no face\nmean: 0.7500"
    )


def test_the_plot_shows_each_figure():
    low, high = likeness.as_plot([[0.2]], "a"), likeness.as_plot([[0.9]], "a")
    assert low.shape == high.shape == (1, 260, 800, 3)
    bar = torch.tensor([86, 180, 233]) / 255
    rows = [((plot[0] - bar).abs().amax(-1) < 0.02).any(1).sum() for plot in (low, high)]
    assert rows[1] > rows[0] + 50
