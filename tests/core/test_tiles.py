"""Tiles: where they lie, what is in them, and how features of tiles come together, against PIL and sums written out."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.pictures.images import sharpen
from ipadapter_core.pictures.tiles import join_tiled, merge_tile_features, reference_tiles, split_tiles, tile_starts


def picture(h: int, w: int, b: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(h * w).integers(0, 256, (b, h, w, 3), dtype=np.uint8)) / 255.0


def lanczos(image: torch.Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor:
    bytes_in = Image.fromarray((image * 255).round().byte().numpy())
    return torch.from_numpy(np.array(bytes_in.crop(box).resize(size, Image.Resampling.LANCZOS))) / 255.0


@pytest.mark.parametrize(
    ("h", "w", "box", "size", "starts"),
    [  # crop (left, top, right, bottom), size (width, height) after resizing, where tiles start down and across
        (120, 110, (0, 5, 110, 115), (512, 512), ([0, 256], [0, 256])),
        (100, 180, (0, 0, 180, 100), (460, 256), ([0], [0, 204])),
        (180, 100, (0, 0, 100, 180), (256, 460), ([0, 204], [0])),
        (300, 400, (0, 0, 400, 300), (341, 256), ([0], [0, 85])),
        (400, 300, (0, 0, 300, 400), (256, 341), ([0, 85], [0])),
        (49, 100, (0, 0, 100, 49), (522, 256), ([0], [0, 133, 266])),
        (50, 200, (0, 0, 200, 50), (1024, 256), ([0], [0, 256, 512, 768])),
        (1, 1, (0, 0, 1, 1), (512, 512), ([0, 256], [0, 256])),
    ],
)
def test_tiles_of_a_reference(h, w, box, size, starts):
    image = picture(h, w, b=2)
    tiles, masks = reference_tiles(image)
    corners = [(top, left) for top in starts[0] for left in starts[1]]
    assert tiles.shape == (len(corners), 2, 256, 256, 3)
    assert masks.shape == (len(corners), 1, size[1], size[0])
    for b in range(2):
        whole = lanczos(image[b], box, size)
        for tile, (top, left) in zip(tiles, corners, strict=True):
            assert torch.equal(tile[b], whole[top : top + 256, left : left + 256])
    for mask, (top, left) in zip(masks, corners, strict=True):
        inside = mask[0, top : top + 256, left : left + 256]
        assert (inside - 1).abs().max() < 1e-6  # resizing ones
        assert mask.count_nonzero() == inside.numel()


def test_longer_than_four_to_one_keeps_the_middle():
    image = picture(60, 300)
    whole = lanczos(image[0], (0, 0, 300, 60), (1280, 256))[:, 128:1152]
    tiles, masks = reference_tiles(image)
    assert masks.shape == (4, 1, 256, 1024)
    assert torch.equal(torch.cat([tile[0] for tile in tiles], dim=1), whole)


@pytest.mark.parametrize("side", range(256, 1025, 7))
def test_tiles_cover_a_side_and_end_with_it(side):
    starts = tile_starts(side)
    assert len(starts) == math.ceil(side / 256)
    assert starts[0] == 0
    assert 0 <= side - (starts[-1] + 256) <= 1
    gaps = np.diff(starts)
    assert (gaps <= 256).all()
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_masks_are_the_given_mask_inside_their_tile():
    mask = torch.zeros(3, 40, 90)
    mask[0, :, :45] = 1
    mask[1] = 0.25
    tiles, masks = reference_tiles(picture(100, 180), mask)
    assert masks.shape == (2, 3, 256, 460)
    assert torch.equal(tiles, reference_tiles(picture(100, 180))[0])
    left, right = masks[0], masks[1]
    assert not left[:, :, 256:].any()
    assert not right[:, :, :204].any()
    assert torch.equal(left[:, :, 204:256], right[:, :, 204:256])
    assert (left[0, :, :200] - 1).abs().max() < 0.1  # bicubic rings at the edge in the middle
    assert right[0, :, 270:].abs().max() < 0.1
    assert (left[1, :, :256] - 0.25).abs().max() < 1e-6
    assert not masks[:, 2].any()


def test_sharpening_acts_on_the_whole_reference():
    plain, sharp = (reference_tiles(picture(64, 128), sharpening=s)[0][:, 0] for s in (0.0, 0.5))
    assert torch.equal(torch.cat([*sharp], 1), sharpen(torch.cat([*plain], 1)[None], 0.5)[0])


def test_references_with_alpha_and_without_pictures():
    image = picture(20, 20)
    assert torch.equal(reference_tiles(torch.cat([image, image[..., :1]], -1))[0], reference_tiles(image)[0])
    with pytest.raises(IPAdapterError, match="empty"):
        reference_tiles(image[:0])


@pytest.mark.parametrize(("h", "w", "k"), [(12, 12, 3), (10, 10, 4), (8, 12, 2), (5, 5, 5)])
def test_split_tiles_cuts_the_centre_square(h, w, k):
    image = picture(h, w, b=2)
    tiles = split_tiles(image, k)
    short, side = min(h, w), min(h, w) // k
    top, left = (h - short) // 2, (w - short) // 2
    assert tiles.shape == (2 * k * k, side, side, 3)
    for n, tile in enumerate(tiles):
        b, row, column = n // (k * k), n // k % k, n % k
        y, x = top + row * side, left + column * side
        assert torch.equal(tile, image[b, y : y + side, x : x + side])


def test_split_tiles_of_too_small_a_picture():
    with pytest.raises(IPAdapterError, match="too small to be cut into 4 x 4 tiles"):
        split_tiles(picture(3, 30), 4)


def pooled(tiles: np.ndarray, k: int) -> np.ndarray:
    """[k k, r, s] -> [r, s]: tiles on their grid, then the mean of every k x k cells."""
    _, r, s = tiles.shape
    grid = np.block([[tiles[i * k + j] for j in range(k)] for i in range(k)])
    return np.array([[grid[y * k : y * k + k, x * k : x * k + k].mean() for x in range(s)] for y in range(r)])


@pytest.mark.parametrize(("n", "k"), [(4, 2), (5, 3), (16, 2)])
def test_hidden_states_of_tiles_are_pooled_on_their_grid(n, k):
    features = torch.randn(2 * k * k, 1 + n * n, 6, generator=torch.Generator().manual_seed(n))
    got = merge_tile_features(features, k)
    assert got.shape == (2, 1 + n * n, 6)
    for b, part in enumerate(features.double().numpy().reshape(2, k * k, 1 + n * n, 6)):
        for c in range(6):
            want = [part[:, 0, c].mean(), *pooled(part[:, 1:, c].reshape(-1, n, n), k).flatten()]
            assert np.abs(got[b, :, c].numpy() - want).max() < 1e-6


@pytest.mark.parametrize(("values", "rows"), [(1024, 32), (1280, 32), (768, 24)])
@pytest.mark.parametrize("k", [2, 3])
def test_embeds_of_tiles_are_pooled_as_squares(values, rows, k):
    features = torch.randn(2 * k * k, values, generator=torch.Generator().manual_seed(values))
    got = merge_tile_features(features, k)
    assert got.shape == (2, values)
    for b, part in enumerate(features.double().numpy().reshape(2, k * k, rows, -1)):
        assert np.abs(got[b].numpy() - pooled(part, k).flatten()).max() < 1e-6


def test_tokens_that_form_no_square_are_refused():
    with pytest.raises(IPAdapterError, match=r"gives 8 tokens.*enhance_tiles to 1"):
        merge_tile_features(torch.zeros(4, 8, 2), 2)


def test_one_picture_stands_beside_its_tiles_and_several_are_mixed():
    full, tiled = torch.full((1, 2, 3), 2.0), torch.full((1, 2, 3), 5.0)
    assert torch.equal(join_tiled(full, tiled, 0.25), torch.cat([full * 0.25, tiled]))
    mixed = join_tiled(full.expand(2, -1, -1), tiled.expand(2, -1, -1), 0.25)
    assert torch.equal(mixed, torch.full((2, 2, 3), 4.25))
