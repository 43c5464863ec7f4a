"""The figures of the maps by their equations, and how maps are placed, scaled and drawn."""

import pytest
import torch
import torch.nn.functional as F

from ipadapter_core.adapter.masks import Area
from ipadapter_core.look import attention_maps as m
from support import synth

EXACT = dict(rtol=1e-5, atol=1e-6)  # float32 sums in another order


def tensors(rows, batch, count, heads, tokens, dim):
    q = synth.noise("map q", (batch, count, heads * dim), 1.5)
    return q, *(synth.noise(f"map {part}", (rows, heads, tokens, dim), 1.5) for part in "kv")


def by_hand(q, k, v, pictures):
    """Row by row, head by head, position by position."""
    rows, heads, tokens, dim = k.shape
    each = tokens // pictures
    probabilities, lengths = torch.zeros(*q.shape[:2], tokens), torch.zeros(*q.shape[:2], pictures)
    for b in range(len(q)):
        row = b // (len(q) // rows)
        for n in range(q.shape[1]):
            added = torch.zeros(pictures, heads, dim)
            for h in range(heads):
                p = torch.softmax(k[row, h] @ q[b, n, h * dim : (h + 1) * dim] / dim**0.5, 0)
                probabilities[b, n] += p / heads
                for i in range(pictures):
                    part = slice(i * each, (i + 1) * each)
                    added[i, h] = p[part] @ v[row, h, part]
            lengths[b, n] = added.flatten(1).norm(dim=1)
    return probabilities, lengths


@pytest.mark.parametrize("at_once", [m._AT_ONCE, 1, 300])
@pytest.mark.parametrize(("rows", "pictures"), [(1, 1), (2, 3), (4, 2)])
def test_probabilities_and_lengths(rows, pictures, at_once, monkeypatch):
    monkeypatch.setattr(m, "_AT_ONCE", at_once)
    given = tensors(rows, 4, 6, 2, 6, 5)
    for got, want in zip(m.attention_parts(*given, pictures), by_hand(*given, pictures), strict=True):
        torch.testing.assert_close(got, want, **EXACT)


def test_half_precision_is_computed_in_float32():
    given = [part.half() for part in tensors(1, 1, 4, 2, 3, 5)]
    got, _ = m.attention_parts(*given)
    torch.testing.assert_close(got, by_hand(*(part.float() for part in given), 1)[0], **EXACT)


def test_influence_is_half_where_as_much_is_added_as_the_text_gives():
    text = torch.tensor([[[3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]])
    got = m.influence(torch.tensor([[[5.0], [0.0], [2.0], [0.0]]]), text)
    assert got[0, :, 0].tolist() == [0.5, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(("size", "want"), [((8, 12), (8, 12)), ((128, 96), (64, 48)), ((1000, 3), (64, 1)), ((64, 64), (64, 64))])
def test_size_of_maps(size, want):
    assert m.map_size(*size) == want


def test_tokens_lie_on_the_map_row_by_row():
    values = torch.arange(12.0).view(1, 12, 1)
    assert torch.equal(m.to_map(values, (3, 4), (3, 4))[0, 0], torch.arange(12.0).view(3, 4))
    assert torch.equal(m.to_map(values, (2, 4), (2, 4))[0, 0], torch.arange(8.0).view(2, 4)), "tokens beyond the grid are left out"
    halves = torch.arange(16.0).view(1, 16, 1)
    assert m.to_map(halves, (4, 4), (2, 2))[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]], "the mean of four"
    grown = m.to_map(values, (3, 4), (6, 8))
    torch.testing.assert_close(grown, F.interpolate(torch.arange(12.0).view(1, 1, 3, 4), (6, 8), mode="bilinear"))


def test_cells_of_an_area():
    assert m.cells_of(None, (4, 4)) == (slice(None), slice(None))
    assert m.cells_of(Area(8, 0, 8, 16, (16, 16)), (16, 16)) == (slice(8, 16), slice(0, 16))
    assert m.cells_of(Area(100, 0, 100, 50, (200, 100)), (64, 32)) == (slice(32, 64), slice(0, 16))
    assert m.cells_of(Area(199, 99, 1, 1, (200, 100)), (4, 2)) == (slice(3, 4), slice(1, 2)), "one cell at least"


def test_scales():
    maps = torch.tensor([[[0.1, 0.3]], [[0.2, 0.6]]])
    torch.testing.assert_close(m.scaled(maps, "each map"), torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]]))
    torch.testing.assert_close(m.scaled(maps, "all maps alike"), maps / 0.6)
    assert torch.equal(m.scaled(maps, "as measured"), maps)
    assert torch.equal(m.scaled(torch.ones(1, 2, 2), "each map"), torch.ones(1, 2, 2)), "what is the same everywhere is not stretched"
    assert torch.equal(m.scaled(torch.zeros(1, 2, 2), "all maps alike"), torch.zeros(1, 2, 2))


def test_more_is_brighter():
    colours = m.heat(torch.linspace(0, 1, 101).view(1, 1, 101))[0, 0]
    grey = colours @ torch.tensor([0.299, 0.587, 0.114])
    assert (grey.diff() > 0).all() and colours.min() >= 0 and colours.max() <= 1
    assert torch.equal(m.heat(torch.tensor([[[-1.0, 2.0]]])), m.heat(torch.tensor([[[0.0, 1.0]]])))


def test_views():
    picture, maps = synth.noise("view", (1, 2, 3, 3)).abs().clamp(0, 1), torch.tensor([[[0.0, 0.5, 1.0]] * 2])
    over = m.shown(maps, picture, "overlay")
    assert torch.equal(over[:, :, 0], picture[:, :, 0])
    torch.testing.assert_close(over[:, :, 2], 0.2 * picture[:, :, 2] + 0.8 * m.heat(maps)[:, :, 2])
    beside = m.shown(maps, picture, "side by side")
    assert torch.equal(beside, torch.cat([picture, m.heat(maps)], 2))
    assert torch.equal(m.shown(maps, picture, "map alone"), m.heat(maps))


def test_figures():
    assert m.figures([torch.tensor([[0.0, 0.5]])], ["1: plus"]) == "1: plus: mean 0.250, highest 0.500"
