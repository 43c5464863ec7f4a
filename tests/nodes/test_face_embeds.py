"""The nodes that make, combine, save and load faces, with the real insightface on its sample photo (models: support/onnx_faces.py)."""

import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from support import lab, onnx_faces
from support.onnx_faces import T1


@pytest.fixture(scope="module")
def nodes(pack):
    from ipadapter_pack.nodes import faces

    return faces.NODE_CLASS_MAPPINGS


@pytest.fixture(scope="module")
def insightface(pack, comfy, tmp_path_factory):
    import folder_paths
    from ipadapter_pack.nodes.host.faces.recogniser import load_insightface

    folder = tmp_path_factory.mktemp("models")
    onnx_faces.write_models(folder / "models" / "antelopev2", "antelopev2")
    before = folder_paths.folder_names_and_paths.copy()
    folder_paths.folder_names_and_paths["insightface"] = ([str(folder)], {".onnx"})
    yield load_insightface("CPU", "antelopev2")
    folder_paths.folder_names_and_paths.clear()
    folder_paths.folder_names_and_paths.update(before)


@pytest.fixture(scope="module")
def photo():
    """[1, 886, 1280, 3]"""
    from insightface.data import get_image

    return torch.from_numpy(np.flip(np.array(get_image("t1")), -1).copy()).float()[None] / 255


@pytest.fixture(scope="module")
def all_faces(nodes, insightface, photo):
    return lab.call(nodes["IPAdapterFaceEmbeds"], insightface=insightface, image=photo, faces="all, left to right")


def test_takes_the_faces_asked_for_and_shows_them(nodes, insightface, photo, all_faces):
    embeds, crops, preview = all_faces
    assert embeds.embedding.shape == (3, 512) and crops.shape == (3, 256, 256, 3) and preview.shape == photo.shape
    largest = lab.call(nodes["IPAdapterFaceEmbeds"], insightface=insightface, image=photo, faces="largest")
    first = lab.call(nodes["IPAdapterFaceEmbeds"], insightface=insightface, image=photo, faces="first")
    assert torch.equal(largest[0].embedding, embeds.embedding[1:2]) and torch.equal(first[0].embedding, embeds.embedding[:1])
    changed = (preview - photo).abs().amax(-1)[0] > 0.02  # more than 8 bits' rounding
    for spot in T1:
        for x, y in spot.points:
            assert changed[int(y), int(x)]
    assert not changed[500:].any()


def test_several_pictures_give_their_faces_in_order(nodes, insightface, photo):
    pair = torch.cat([photo, photo.flip(-1)])
    both = lab.call(nodes["IPAdapterFaceEmbeds"], insightface=insightface, image=pair, faces="largest")
    for n in range(2):
        one = lab.call(nodes["IPAdapterFaceEmbeds"], insightface=insightface, image=pair[n : n + 1], faces="largest")
        assert torch.equal(both[0].embedding[n], one[0].embedding[0]) and torch.equal(both[1][n], one[1][0])


def test_a_picture_without_a_face_is_named(nodes, insightface, photo):
    with pytest.raises(ValueError, match="No face found in picture 2 of 2"):
        lab.call(nodes["IPAdapterFaceEmbeds"], insightface=insightface, image=torch.cat([photo, photo * 0]), faces="largest")


def test_crops_are_framed_as_insightface_frames_them_for_each_size(pack, insightface, photo, all_faces):
    from ipadapter_pack.nodes.host.faces.recogniser import choose, detect

    for size, most in ((256, 0.0), (224, 1 / 255), (336, 0.03)):  # 224: OpenCV's rounding at most; 336: enlarged, not sampled anew
        found = choose(detect(photo[0], insightface, crop_size=size), "all, left to right")
        want = torch.stack([face.crop for face in found])
        assert (all_faces[0].crop(size) - want).abs().mean() <= most


def test_combine(nodes, all_faces):
    from ipadapter_pack.ipadapter_core.pictures.face_embeds import average, join

    faces = all_faces[0]
    (joined, crops) = lab.call(nodes["IPAdapterCombineFaceEmbeds"], face_embeds_1=faces, method="concat", face_embeds_3=faces)
    assert torch.equal(joined.embedding, join([faces, faces]).embedding) and crops.shape[0] == 6
    (one, crop) = lab.call(nodes["IPAdapterCombineFaceEmbeds"], face_embeds_1=faces, method="average")
    assert torch.equal(one.embedding, average(faces).embedding) and crop.shape == (1, 256, 256, 3)


def test_saved_and_loaded_without_insightface(nodes, comfy, all_faces, monkeypatch):
    for expected in ("people/two_00001.faces.safetensors", "people/two_00002.faces.safetensors"):
        saved = nodes["IPAdapterSaveFaceEmbeds"]().save(all_faces[0], "people/two")
        assert saved["ui"]["text"] == [expected]
    shutil.copytree(comfy / "output" / "people", comfy / "input" / "people", dirs_exist_ok=True)
    for name in [name for name in sys.modules if name.split(".")[0] in ("insightface", "onnxruntime", "cv2")]:
        monkeypatch.setitem(sys.modules, name, None)
    load = nodes["IPAdapterLoadFaceEmbeds"]
    assert "people/two_00001.faces.safetensors" in load.INPUT_TYPES()["required"]["face_embeds"][0]
    loaded, crops = lab.call(load, face_embeds="people/two_00001.faces.safetensors")
    assert torch.equal(loaded.embedding, all_faces[0].embedding) and torch.equal(crops, all_faces[1])
    assert load.IS_CHANGED("people/two_00001.faces.safetensors") > 0 == load.IS_CHANGED("none.faces.safetensors")


def test_files_that_hold_no_faces(nodes, comfy):
    load = nodes["IPAdapterLoadFaceEmbeds"]
    with pytest.raises(ValueError, match="no file none"):
        lab.call(load, face_embeds="none.faces.safetensors")
    path = comfy / "input" / "bad.faces.safetensors"
    save_file({"embeds": torch.zeros(1, 512)}, path)
    with pytest.raises(ValueError, match="holds no face embeddings"):
        lab.call(load, face_embeds=path.name)
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="holds no face embeddings"):
        lab.call(load, face_embeds=path.name)
    save_file({"embedding": torch.full((1, 512), float("nan")), "crops": torch.zeros(1, 256, 256, 3, dtype=torch.uint8)}, path)
    with pytest.raises(ValueError, match="not numbers"):
        lab.call(load, face_embeds=path.name)


def test_every_input_and_output_is_explained(nodes):
    for cls in nodes.values():
        inputs = cls.INPUT_TYPES()
        for spec in (inputs["required"] | inputs.get("optional", {})).values():
            assert spec[1]["tooltip"].endswith(".")
        assert cls.DESCRIPTION and len(getattr(cls, "OUTPUT_TOOLTIPS", ())) == len(cls.RETURN_TYPES)
