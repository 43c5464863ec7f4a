"""Faces with the real insightface on its own sample photo; its trained models are replaced by ONNX stand-ins (support/onnx_faces.py)."""

import logging
import math
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

from support import lab, onnx_faces
from support.onnx_faces import T1

NAMES = tuple(onnx_faces.FILES)


@pytest.fixture(scope="session")
def faces(pack):
    from ipadapter_pack.nodes.host.faces import recogniser

    return recogniser


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory):
    """Both model packages, each in a folder of its name."""
    root = tmp_path_factory.mktemp("insightface")
    for name in NAMES:
        onnx_faces.write_models(root / name, name)
    return root


@pytest.fixture
def models(comfy, monkeypatch, tmp_path):
    """An empty models/insightface of ComfyUI."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    return tmp_path / "insightface"


@pytest.fixture(scope="session")
def analyser(faces, comfy, stand_ins):
    target = comfy / "models" / "insightface" / "models" / "buffalo_l"
    shutil.copytree(stand_ins / "buffalo_l", target)
    return faces.load_insightface("CPU", "buffalo_l")


@pytest.fixture
def look(faces, models, tmp_path):
    """look(**how to write the models) -> an analyser with detectors of its own."""

    def load(**how):
        onnx_faces.write_models(models / "models" / "buffalo_l", "buffalo_l", **how)
        return faces.load_insightface("CPU", "buffalo_l")

    return load


@pytest.fixture(scope="session")
def photo() -> torch.Tensor:
    """insightface's sample photo as ComfyUI would load it: [886, 1280, 3] RGB in 0..1."""
    from insightface.data import get_image

    return torch.from_numpy(get_image("t1")[..., ::-1].copy()).float() / 255


def similarity(kps: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift [2, 3] nearest to kps -> target in least squares, by solving for them directly."""
    rows = [[x, -y, 1, 0] for x, y in kps] + [[y, x, 0, 1] for x, y in kps]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), target.T.ravel(), rcond=None)[0]
    return np.array([[a, -b, tx], [b, a, ty]])


ARCFACE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


def test_finds_the_faces_where_they_are(faces, analyser, photo):
    found = faces.detect(photo, analyser)
    assert [face.score for face in found] == pytest.approx([spot.score for spot in T1])
    for face, spot in zip(found, T1, strict=True):  # 0.01 of a pixel: float32 through distances in strides and back
        assert torch.allclose(face.bbox, torch.tensor(spot.box).float(), atol=0.01)
        assert torch.allclose(face.kps, torch.tensor(spot.points).float(), atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_embedding_is_the_networks_own_on_the_aligned_face(faces, models, stand_ins, photo, name):
    """The same ONNX file run directly on a crop that OpenCV warps with a transform found by least squares."""
    shutil.copytree(stand_ins / name, models / "models" / name)
    face = faces.detect(photo, faces.load_insightface("CPU", name))[1]
    bgr = (photo.numpy() * 255).astype(np.uint8)[..., ::-1]
    crop = cv2.warpAffine(np.ascontiguousarray(bgr), similarity(face.kps.numpy(), ARCFACE), (112, 112))
    blob = (crop[..., ::-1].astype(np.float32).transpose(2, 0, 1)[None] - 127.5) / 127.5
    session = onnxruntime.InferenceSession(stand_ins / name / onnx_faces.FILES[name][1], providers=["CPUExecutionProvider"])
    want = torch.from_numpy(np.asarray(session.run(None, {session.get_inputs()[0].name: blob})[0])[0])
    # the two transforms differ in the last bits of a float32, which moves single pixels of the crop by 1 of 255
    assert (face.embedding - want).norm() / want.norm() < 1e-3
    assert torch.allclose(face.normed, face.embedding / face.embedding.norm(), atol=1e-6)
    assert face.normed.norm().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("size", [224, 256, 336])
def test_crop_is_aligned_and_in_the_pictures_colours(faces, analyser, photo, size):
    face = faces.detect(photo, analyser, crop_size=size)[0]
    margin = 0 if size % 112 == 0 else size / 16  # at multiples of 128 insightface leaves room on both sides
    target = ARCFACE * ((size - 2 * margin) / 112) + [margin, 0] if margin else ARCFACE * (size / 112)
    rgb = np.ascontiguousarray((photo.numpy() * 255).astype(np.uint8))
    want = cv2.warpAffine(rgb, similarity(face.kps.numpy(), target), (size, size))
    assert face.crop.shape == (size, size, 3)
    if margin == 0:
        assert (face.crop * 255 - torch.from_numpy(want)).abs().mean() < 0.1


def test_first_largest_and_all(faces, analyser, photo):
    found = faces.detect(photo, analyser)
    assert faces.choose(found, "first") == found[:1]
    assert faces.choose(found, "largest") == found[1:2]
    assert faces.choose(found[::-1], "all, left to right") == found


@pytest.mark.parametrize("largest_input", [640, 576, 512, 448, 384, 320])
def test_looks_at_smaller_sizes_until_there_is_a_face(faces, look, photo, largest_input):
    analyser = look(largest_input=largest_input)
    before = analyser.det_model.input_size, list(analyser.det_model.input_sizes)
    found = faces.detect(photo, analyser)
    assert len(found) == 3
    for face, spot in zip(found, T1, strict=True):  # the detector works on whole pixels: one of 320 is 4 of 1280
        assert torch.allclose(face.bbox, torch.tensor(spot.box).float(), atol=4)
    assert (analyser.det_model.input_size, list(analyser.det_model.input_sizes)) == before


def test_no_face_names_the_picture_and_what_to_try(faces, look, photo):
    analyser = look(largest_input=256)
    with pytest.raises(ValueError, match=r"No face found in picture 2 of 3 \(1280 x 886 pixels\)\. Try "):
        faces.detect(photo, analyser, 2, 3)
    with pytest.raises(ValueError, match="No face found in the picture"):
        faces.detect(torch.zeros(64, 64, 3), analyser)


def test_rgba_and_grey_pictures(faces, analyser, photo):
    plain = faces.detect(photo, analyser)
    with_alpha = faces.detect(torch.cat([photo, torch.rand(886, 1280, 1)], dim=-1), analyser)
    assert all(torch.equal(a.embedding, b.embedding) for a, b in zip(plain, with_alpha, strict=True))
    grey = photo.mean(-1, keepdim=True)
    want = faces.detect(grey.expand(-1, -1, 3), analyser)
    for picture in (grey, grey[..., 0]):
        assert all(torch.equal(a.embedding, b.embedding) for a, b in zip(want, faces.detect(picture, analyser), strict=True))


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 2000), (2000, 1), (40, 40)])
def test_pictures_of_odd_sizes(faces, look, size):
    height, width = size
    points = tuple((width * x, height * y) for x, y in ((0.3, 0.4), (0.7, 0.4), (0.5, 0.5), (0.35, 0.7), (0.65, 0.7)))
    spot = onnx_faces.Spot((0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height), points, 0.9)
    found = faces.detect(torch.full((height, width, 3), 0.7), look(spots=(spot,), picture=size))
    assert len(found) == 1 and found[0].embedding.isfinite().all() and found[0].crop.shape == (224, 224, 3)


def test_same_as_the_established_stand_in(faces):
    """The stand-in of the golden cases has the least an analyser can have: det_model.input_size and get(picture)."""
    from support.world import FaceStub

    face = faces.detect(lab.images(1)[0], FaceStub())[0]
    assert math.isclose(face.normed.norm().item(), 1, abs_tol=1e-6) and face.score == 0.9


@pytest.mark.parametrize(
    "place", ["models/antelopev2", "models/antelopev2/antelopev2", "antelopev2", "antelopev2/antelopev2"], ids=lambda p: p.replace("/", "-")
)
def test_models_are_found_where_people_unpack_them(faces, models, stand_ins, place):
    shutil.copytree(stand_ins / "antelopev2", models / place)
    assert Path(faces.find_models("antelopev2")) == models / place


def test_models_in_a_folder_of_extra_model_paths(faces, models, stand_ins, monkeypatch):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "insightface", ([str(stand_ins)], set()))
    assert Path(faces.find_models("buffalo_l")) == stand_ins / "buffalo_l"


def test_missing_models_are_named_and_nothing_is_downloaded(faces, models, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = models / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    (folder / "genderage.onnx").touch()
    with pytest.raises(ValueError) as error:
        faces.load_insightface("CPU", "buffalo_l")
    text = str(error.value)
    for part in ("det_10g.onnx and w600k_r50.onnx", str(folder), "there is: genderage.onnx", "buffalo_l.zip", "https://", "non-commercial"):
        assert part in text
    assert "insightface is installed" in text


def test_a_damaged_model_is_an_error_that_says_so(faces, models, stand_ins):
    folder = models / "models" / "buffalo_l"
    shutil.copytree(stand_ins / "buffalo_l", folder)
    embedder = folder / "w600k_r50.onnx"
    embedder.write_bytes(embedder.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot read the models in"):
        faces.load_insightface("CPU", "buffalo_l")


@pytest.mark.parametrize(
    ("offered", "choice", "want"),
    [
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "CUDA", "CUDAExecutionProvider"),
        (["MIGraphXExecutionProvider", "CPUExecutionProvider"], "ROCM", "MIGraphXExecutionProvider"),
        (["DmlExecutionProvider", "CPUExecutionProvider"], "DirectML", "DmlExecutionProvider"),
        (["OpenVINOExecutionProvider", "CPUExecutionProvider"], "OpenVINO", "OpenVINOExecutionProvider"),
        (["CoreMLExecutionProvider", "CPUExecutionProvider"], "CoreML", "CoreMLExecutionProvider"),
    ],
)
def test_provider_that_onnxruntime_offers_is_taken(faces, monkeypatch, caplog, offered, choice, want):
    """What onnxruntime offers depends on its build and on the machine, so its answer is given here."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    assert faces.choose_providers(choice) == [want, "CPUExecutionProvider"]
    assert not caplog.records


def test_provider_that_is_not_offered_falls_back_to_the_cpu(faces, caplog):
    assert "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
    with caplog.at_level(logging.WARNING):
        assert faces.choose_providers("CUDA") == ["CPUExecutionProvider"]
    assert "not CUDA" in caplog.text and "onnxruntime-gpu" in caplog.text
    caplog.clear()
    assert faces.choose_providers("CPU") == ["CPUExecutionProvider"]
    assert not caplog.records


def test_an_installation_without_insightface_says_how_to_get_it(faces, monkeypatch):
    monkeypatch.setitem(sys.modules, "insightface", None)  # an import of it raises ModuleNotFoundError
    with pytest.raises(ValueError) as error:
        faces.load_insightface("CPU", "buffalo_l")
    for part in ("insightface is not installed", f'"{sys.executable}" -m pip install', "saved face embeddings"):
        assert part in str(error.value)


def test_insightface_is_imported_only_when_used(faces, comfy_root):
    """In a fresh Python: the module is imported, insightface, cv2 and onnxruntime are not."""
    repo = Path(faces.__file__).parents[3]
    code = f"""
import sys, types
sys.path[:0] = [{str(comfy_root)!r}]
sys.argv = ["main.py", "--cpu"]
for name, path in (("pack", {str(repo)!r}), ("pack.nodes", {str(repo / "nodes")!r}), ("pack.nodes.host", {str(repo / "nodes" / "host")!r})):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [path]
import pack.nodes.host.faces.recogniser
assert not {{"insightface", "onnxruntime", "cv2"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_insightface_that_cannot_be_imported_says_why(faces, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "insightface"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"insightface is installed but cannot be imported \(.*cv2"):
        faces.load_insightface("CPU", "buffalo_l")
