"""The pictures that come with the pack: they are there, small, drawn by the script beside them, and show what they are for."""

import numpy as np
import pytest
import torch
from PIL import Image

from support import archive, draw_pictures, lab

FOLDER = draw_pictures.FOLDER
FRAMES = {"dawn and night": 2, "four frames": 4}
NAMES = [make.__name__.replace("_", " ") for make in draw_pictures.PICTURES]


@pytest.fixture(scope="module")
def node(pack):
    return pack["IPAdapterExamplePicture"]


def read(node, name):
    return lab.call(node, picture=name)


def test_the_list_is_what_is_there(node):
    assert node.INPUT_TYPES()["required"]["picture"][0] == NAMES
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {f"{name.replace(' ', '_')}{kind}.webp" for name in NAMES for kind in ("", ".mask")}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 500_000
    assert {f"web/pictures/{file}" for file in files} <= archive.names(), "the registry's archive has them"


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_and_where_its_main_thing_is(node, name):
    images, mask = read(node, name)
    assert images.shape[0] == mask.shape[0] == FRAMES.get(name, 1) and images.shape[3] == 3 and images.shape[:3] == mask.shape
    assert images.dtype == mask.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1 and mask.max() == 1 and mask.min() == 0
    assert 0.01 < mask.mean() < 0.6


@pytest.mark.parametrize("make", draw_pictures.PICTURES, ids=lambda make: make.__name__)
def test_it_is_what_the_script_draws(node, make):
    """Up to WebP's loss and what versions of Pillow draw differently: a few levels of 255 on average."""
    images, mask = read(node, make.__name__.replace("_", " "))
    for i, (picture, drawn_mask) in enumerate(draw_pictures.drawn(make)):
        assert np.abs(images[i].numpy() * 255 - np.asarray(picture, dtype=float)).mean() < 4
        assert np.abs(mask[i].numpy() * 255 - np.asarray(drawn_mask, dtype=float)).mean() < 1


def test_the_square_in_the_middle_of_the_lighthouse_is_without_it(node):
    images, mask = read(node, "lighthouse")
    high, wide = images.shape[1:3]
    left = (wide - high) // 2
    assert wide > 2 * high and mask[:, :, :left].sum() > 1000 and mask[:, :, left : left + high].sum() == 0


def test_the_two_styles_differ_in_colour_and_the_layout_has_none(node):
    colourfulness = {name: (read(node, name)[0].max(-1).values - read(node, name)[0].min(-1).values).mean() for name in NAMES}
    assert colourfulness["poster"] > 0.3 and colourfulness["ink drawing"] < 0.1 and colourfulness["layout"] < 0.05


def test_frames_of_an_animation_move(node):
    _, mask = read(node, "four frames")
    middles = [(frame.sum(0) * torch.arange(frame.shape[1])).sum() / frame.sum() for frame in mask]
    assert middles == sorted(middles) and middles[3] - middles[0] > 300
    dawn, night = read(node, "dawn and night")[0]
    assert dawn.mean() > 2 * night.mean()


def test_the_left_half_is_white_at_the_left(node):
    images, mask = read(node, "left half")
    assert (mask[:, :, :230] == 1).all() and (mask[:, :, 290:] == 0).all()
    assert torch.allclose(images[..., 0], mask, atol=0.05), "up to WebP's loss"


def test_files_are_pictures_that_the_editor_shows():
    for path in FOLDER.iterdir():
        with Image.open(path) as picture:
            assert picture.format == "WEBP" and max(picture.size) <= 1200
