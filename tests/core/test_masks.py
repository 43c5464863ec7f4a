"""Masks on token grids: the grid against diffusers' and against whole numbers, the resize and the padding written out."""

from math import isqrt

import pytest
import torch
import torch.nn.functional as F
from diffusers.image_processor import IPAdapterMaskProcessor

from ipadapter_core.adapter.masks import Area, level_size, mask_to_tokens, take, token_grid, token_size

SHAPES = [(64, 64), (8, 8), (7, 13), (13, 7), (12, 16), (10, 18), (9, 5), (8, 64), (64, 8), (1, 64), (128, 96), (33, 65), (3, 5), (1, 1)]
NARROW = [(64, 1), (8, 2), (5, 1), (200, 3), (15, 2)]


def level_sizes(height, width, levels=4):
    sizes = [level_size(height, width, level) for level in range(levels)]
    return {rows * columns: (rows, columns) for rows, columns in sizes}


def levels(shapes):
    return [(*shape, count) for shape in shapes for count in level_sizes(*shape)]


@pytest.mark.parametrize(("height", "width", "count"), levels(SHAPES))
def test_same_grid_as_diffusers(monkeypatch, height, width, count):
    """The size that diffusers resizes a mask of the latent's shape to. It divides by zero where a grid has no whole row."""
    if isqrt(height * count // width) == 0:
        assert token_grid(count, height, width) == (1, count)
        return
    sizes = []
    resize = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, size, mode: sizes.append(size) or resize(x, size=size, mode=mode))
    with pytest.warns(UserWarning) if count != torch.Size(token_grid(count, height, width)).numel() else torch.no_grad():
        IPAdapterMaskProcessor.downsample(torch.ones(1, height, width), 1, count, 1)
    assert sizes == [token_grid(count, height, width)]


def test_grid_in_whole_numbers():
    """int(x) is the integer root of height count / width; no rounding of floats turns a 7 into a 6, and no grid is empty."""
    for height in range(1, 100):
        for width in range(1, 100):
            for count in level_sizes(height, width):
                rows = max(1, isqrt(height * count // width))
                rows = min(rows + (count % rows != 0), count)
                assert token_grid(count, height, width) == (rows, count // rows)
                assert 1 <= rows * (count // rows) <= count


@pytest.mark.parametrize("shape", [(64, 64), (16, 24), (64, 8), (8, 64), (128, 96), (104, 152)])
def test_the_grid_is_the_levels_own_where_all_halve_evenly(shape):
    for count, size in level_sizes(*shape).items():
        assert token_grid(count, *shape) == size


def bilinear(mask, rows, columns):
    """[H, W] -> [rows, columns], written out: every cell's centre read between the four nearest pixels, without antialiasing."""
    height, width = mask.shape
    out = torch.zeros(rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            y, x = max((i + 0.5) * height / rows - 0.5, 0), max((j + 0.5) * width / columns - 0.5, 0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = mask[top, left] * (1 - x + left) + mask[top, right] * (x - left)
            lower = mask[bottom, left] * (1 - x + left) + mask[bottom, right] * (x - left)
            out[i, j] = upper * (1 - y + top) + lower * (y - top)
    return out


@pytest.mark.parametrize("mask_shape", [(1, 1), (7, 13), (50, 90), (3, 2), (64, 64)])
@pytest.mark.parametrize(("height", "width", "count"), levels([(7, 13), (12, 16), (64, 1), (8, 2), (16, 5)]))
def test_resized_and_padded(mask_shape, height, width, count):
    """Masks of any size, each by itself: resized, flattened row by row, zeros on both sides where cells are missing."""
    masks = torch.rand(3, *mask_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, columns = token_grid(count, height, width)
    got = mask_to_tokens(masks, count, (rows, columns))
    assert got.shape == (3, count, 1)
    before = (count - rows * columns) // 2
    for i, mask in enumerate(masks):
        want = torch.zeros(count, dtype=torch.float64)
        want[before : before + rows * columns] = bilinear(mask, rows, columns).flatten()
        assert torch.allclose(got[i, :, 0], want, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("height", "width", "count", "zeros_before", "zeros_after"),
    [(24, 9, 6, 0, 1), (16, 5, 8, 1, 1), (18, 5, 10, 1, 2), (21, 5, 12, 2, 2), (14, 3, 14, 2, 3)],
)
def test_padding_is_in_the_middle_the_smaller_half_first(height, width, count, zeros_before, zeros_after):
    got = mask_to_tokens(torch.ones(1, 4, 4), count, token_grid(count, height, width)).flatten().tolist()
    want = [0] * zeros_before + [1] * (count - zeros_before - zeros_after) + [0] * zeros_after
    assert got == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES + NARROW)
def test_a_full_mask_is_full_in_every_cell_of_the_grid(shape):
    for count in level_sizes(*shape):
        rows, columns = token_grid(count, *shape)
        got = mask_to_tokens(torch.full((1, 20, 30), 0.3), count, (rows, columns))
        assert got.shape == (1, count, 1)
        assert int((got - 0.3).abs().lt(1e-7).sum()) == rows * columns


@pytest.mark.parametrize(
    ("height", "width", "levels", "want"),
    [
        (64, 96, 4, {6144: (64, 96), 1536: (32, 48), 384: (16, 24), 96: (8, 12)}),
        (7, 13, 4, {91: (7, 13), 28: (4, 7), 8: (2, 4), 2: (1, 2)}),
        (9, 5, 3, {45: (9, 5), 15: (5, 3), 6: (3, 2)}),
        (1, 1, 4, {1: (1, 1)}),
    ],
)
def test_levels_halve_and_round_up(height, width, levels, want):
    """As strided convolutions of 3 with a padding of 1 do; tests/nodes/test_whole_unet.py holds them against real UNets."""
    assert level_sizes(height, width, levels) == want
    found = torch.zeros(1, 1, height, width)
    for size in list(want.values())[1:]:
        found = F.conv2d(found, torch.zeros(1, 1, 3, 3), stride=2, padding=1)
        assert found.shape[-2:] == size


@pytest.mark.parametrize("shape", [(65, 64), (97, 96), (129, 128), (64, 65), (66, 64), (113, 112), (7, 13), (64, 1)])
def test_a_levels_own_size_wins_over_the_guess(shape):
    """520 x 512 pixels and the like: the grid that the count alone suggests is transposed there."""
    for count, size in level_sizes(*shape).items():
        assert token_size(count, *shape) == size
    assert token_grid(33 * 32, 65, 64) == (32, 33) != level_size(65, 64, 1)
    assert token_size(7, *shape) == token_grid(7, *shape)


def test_how_many_sizes_the_guess_gets_wrong():
    """The reason why it is not asked: 512 to 1536 pixels in steps of 8."""
    sizes = [(height, width) for height in range(64, 193) for width in range(64, 193)]
    wrong = sum(any(token_grid(count, *size) != grid for count, grid in level_sizes(*size).items()) for size in sizes)
    assert 0.03 < wrong / len(sizes)


@pytest.mark.parametrize("scale", [8, 1])
@pytest.mark.parametrize(("y", "x", "height", "width"), [(0, 0, 16, 24), (4, 8, 8, 16), (0, 16, 16, 8), (12, 0, 4, 4)])
def test_an_area_is_cut_out_of_the_mask(scale, y, x, height, width):
    """A crop of the mask where the area's edges are edges of pixels, at the area's own size and halved."""
    mask = torch.rand(2, 16 * scale, 24 * scale, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    crop = mask[:, y * scale : (y + height) * scale, x * scale : (x + width) * scale]
    for grid in ((height, width), (height // 2, width // 2)):
        want = F.interpolate(crop[:, None], size=grid, mode="bilinear").flatten(1)
        got = mask_to_tokens(mask, grid[0] * grid[1], grid, Area(y, x, height, width, (16, 24)))
        assert torch.allclose(got[..., 0], want, rtol=0, atol=1e-12)


def test_an_area_of_a_small_mask_looks_across_its_edge():
    """Where the mask is coarser than the latent, the area has what the whole mask has there, brought to the latent's size."""
    mask = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)
    whole = F.interpolate(mask[:, None], size=(8, 8), mode="bilinear")[0, 0]
    got = mask_to_tokens(mask, 12, (3, 4), Area(2, 3, 3, 4, (8, 8)))
    assert torch.allclose(got.view(3, 4), whole[2:5, 3:7], rtol=0, atol=1e-12)


def test_take_repeats_the_last_row():
    values = torch.arange(6.0).view(3, 2)
    assert take(values, (0, 2, 5, 3)).tolist() == [[0, 1], [4, 5], [4, 5], [4, 5]]
    assert take(values, (1,)).tolist() == [[2, 3]]
