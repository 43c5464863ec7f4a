"""Likeness as a node gives it: features of the real encoder, embeddings of a recogniser."""

import math

import pytest
import torch
import torch.nn.functional as F

from support import lab
from support.world import FaceStub


@pytest.fixture(scope="module")
def encoder(comfy):
    return lab.clip_vision(hidden=64, proj=1024, heads=4)


def compare(pack, image, reference, compare="pictures", **kw):
    node = pack["ImagePromptLikeness"]()
    return node.compare(image, reference, compare, **kw)["result"]


class SomeFaces(FaceStub):
    """Finds no face in dark pictures."""

    def get(self, img, max_num=0):
        return super().get(img, max_num) if img.mean() > 20 else []


def test_cosines_of_the_encoders_features(pack, encoder):
    pictures, references = lab.images(3, tag="result"), lab.images(2, tag="reference")
    likeness, text, plot = compare(pack, pictures, references, clip_vision=encoder)
    a, b = (encoder.encode_image(images)["image_embeds"].detach().float() for images in (pictures, references))
    want = torch.stack([F.cosine_similarity(a[i : i + 1], b) for i in range(3)])
    assert likeness == pytest.approx(float(want.mean()), abs=1e-6)
    rows = [[float(value) for value in line.split(" | ")[1:]] for line in text.splitlines()[1:-1]]
    assert (torch.tensor(rows) - want).abs().max() < 6e-5, "four digits"
    assert plot.shape[0] == 1 and want.std() > 1e-3


def test_a_picture_is_like_itself(pack, encoder):
    assert compare(pack, lab.images(1), lab.images(1), clip_vision=encoder)[0] == pytest.approx(1, abs=1e-6)


def test_the_encoder_of_a_pipeline_and_one_that_goes_before_it(pack, encoder):
    pipeline = {"clipvision": {"model": encoder}, "ipadapter": {"model": None}, "insightface": {"model": None}}
    other = lab.clip_vision(hidden=32, proj=64, heads=4)
    pictures, references = lab.images(1), lab.images(1, tag="other")
    with_pipeline, with_both, with_other = (
        compare(pack, pictures, references, **kw)[0]
        for kw in ({"ipadapter": pipeline}, {"ipadapter": pipeline, "clip_vision": other}, {"clip_vision": other})
    )
    assert with_both == with_other != with_pipeline


def test_faces_by_their_embeddings(pack, comfy):
    faces = SomeFaces()
    pictures, references = lab.images(2, tag="someone"), lab.images(1, tag="somebody")
    likeness, text, _ = compare(pack, torch.cat([pictures, torch.zeros(1, 96, 128, 3)]), references, "faces", insightface=faces)

    def embedding(picture):
        pixels = (picture * 255).byte().numpy()[..., ::-1]
        return torch.from_numpy(faces.get(pixels)[0]["embedding"])

    want = [float(F.cosine_similarity(embedding(one), embedding(references[0]), dim=0)) for one in pictures]
    assert likeness == pytest.approx(sum(want) / 2, abs=1e-5)
    assert text.splitlines()[3] == "3 | no face" and not math.isnan(likeness)


def test_what_is_missing_is_told(pack, comfy):
    bright, dark = lab.images(1), torch.zeros(1, 96, 128, 3)
    for words, call in {
        "an image encoder is needed": lambda: compare(pack, bright, bright),
        "the face recogniser is needed": lambda: compare(pack, bright, bright, "faces"),
        "No face found in the picture": lambda: compare(pack, bright, dark, "faces", insightface=SomeFaces()),
        "No face found in picture 2 of 2": lambda: compare(pack, dark.expand(2, -1, -1, -1), bright, "faces", insightface=SomeFaces()),
        "no way to compare": lambda: compare(pack, bright, bright, "colours"),
        "The reference input is empty": lambda: compare(pack, bright, bright[:0]),
    }.items():
        with pytest.raises(ValueError, match=words):
            call()
