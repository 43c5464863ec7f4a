"""Face embeddings as values: averaging against the arithmetic, crops in the sizes that adapters ask for, the preview."""

import numpy as np
import pytest
import torch

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.pictures.face_embeds import FaceEmbeds, average, draw_faces, join
from support import synth


def some_faces(n: int, tag: str = "face") -> FaceEmbeds:
    return FaceEmbeds(synth.noise(tag, (n, 512), 3.0), synth.noise(tag + " crops", (n, 256, 256, 3)).abs())


def test_average_is_the_mean_direction_at_the_mean_length():
    faces = some_faces(3)
    rows = faces.embedding.double().numpy()
    lengths = np.linalg.norm(rows, axis=1)
    mean = (rows / lengths[:, None]).mean(0)
    mean /= np.linalg.norm(mean)
    one = average(faces)
    assert np.allclose(one.normed[0].numpy(), mean, atol=1e-6)  # float32
    assert one.embedding.norm().item() == pytest.approx(lengths.mean(), rel=1e-6)
    nearest = int((rows @ mean / lengths).argmax())
    assert torch.equal(one.crops, faces.crops[nearest : nearest + 1])


def test_average_of_one_face_is_that_face():
    face = some_faces(1)
    assert torch.allclose(average(face).embedding, face.embedding, rtol=1e-6)
    assert torch.equal(average(face).crops, face.crops)


def test_average_does_not_depend_on_lengths_for_its_direction():
    a = some_faces(2)
    b = FaceEmbeds(a.embedding * torch.tensor([[1.0], [7.0]]), a.crops)
    assert torch.allclose(average(a).normed, average(b).normed, atol=1e-6)


def test_join_keeps_order():
    a, b = some_faces(2), some_faces(1, "other")
    assert torch.equal(join([a, b]).embedding, torch.cat([a.embedding, b.embedding]))
    assert torch.equal(join([b, a]).crops[1:], a.crops)


def test_crops_of_both_alignments():
    faces = some_faces(2)
    assert faces.crop(256) is faces.crops
    assert torch.equal(faces.crop(224), faces.crops[:, :224, 16:240])
    assert faces.crop(336).shape == (2, 336, 336, 3) and faces.crop(128).shape == (2, 128, 128, 3)


def test_no_faces_and_wrong_shapes_are_errors():
    for embedding, crops in (((0, 512), (0, 256, 256, 3)), ((512,), (1, 256, 256, 3)), ((1, 512), (1, 224, 224, 3))):
        with pytest.raises(IPAdapterError, match="not face embeddings"):
            FaceEmbeds(torch.zeros(embedding), torch.zeros(crops))


def test_preview_draws_boxes_and_points_where_they_are():
    picture = torch.full((200, 300, 3), 0.5)
    boxes = torch.tensor([[20.0, 20, 100, 120], [150, 30, 280, 180]])
    inside = torch.tensor([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.8], [0.65, 0.8]])
    points = (boxes[:, None, :2] + inside * (boxes[:, None, 2:] - boxes[:, None, :2])).round()
    drawn = draw_faces(picture, boxes, points, [1])
    other, chosen = torch.tensor([150.0] * 3) / 255, torch.tensor([255.0, 190, 0]) / 255
    for face, colour in ((0, other), (1, chosen)):
        left, top, right, bottom = boxes[face].int().tolist()
        for y, x in ((top, (left + right) // 2), (bottom, right), ((top + bottom) // 2, left), *points[face].int()[:, [1, 0]].tolist()):
            assert torch.allclose(drawn[y, x], colour)
    untouched = drawn[:, 120:145]
    assert drawn.shape == picture.shape and (untouched == untouched[0, 0]).all()
    assert (drawn[30:45, 150:170] == chosen).all(-1).any()  # the number
