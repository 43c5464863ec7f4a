"""Faces by insightface: its models from ComfyUI's folders, and pictures to embeddings and crops.

insightface is optional and imported when first used. Nothing is ever downloaded: its own code would fetch missing models, so the files
are looked for first and it is given the folder.
"""

from __future__ import annotations

import logging
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import folder_paths
import numpy as np
import torch
from torch import Tensor

from ....ipadapter_core.errors import IPAdapterError

log = logging.getLogger(__name__)

_loaded: weakref.WeakValueDictionary[tuple[str, tuple[str, ...]], Any] = weakref.WeakValueDictionary()

# package -> its detector and its embedder; the other files of a package are not used
MODELS = {"buffalo_l": ("det_10g.onnx", "w600k_r50.onnx"), "antelopev2": ("scrfd_10g_bnkps.onnx", "glintr100.onnx")}
PAGE = "https://github.com/deepinsight/insightface/releases/tag/v0.7"
# choice -> onnxruntime's providers for it, the first that it offers is taken
PROVIDERS = {
    "CPU": (),
    "CUDA": ("CUDAExecutionProvider",),
    "ROCM": ("ROCMExecutionProvider", "MIGraphXExecutionProvider"),
    "DirectML": ("DmlExecutionProvider",),
    "OpenVINO": ("OpenVINOExecutionProvider",),
    "CoreML": ("CoreMLExecutionProvider",),
}
_CPU = "CPUExecutionProvider"
_PACKAGES = {"CUDA": "onnxruntime-gpu", "DirectML": "onnxruntime-directml", "OpenVINO": "onnxruntime-openvino"}
DETECTION_SIZES = (640, 576, 512, 448, 384, 320)
CHOICES = ("largest", "first", "all, left to right")


@dataclass(frozen=True)
class Face:
    """A face found in a picture."""

    embedding: Tensor  # [512] as the network gave it
    normed: Tensor  # [512] of length 1
    crop: Tensor  # [s, s, 3] turned upright and scaled so that eyes, nose and mouth lie where they always lie
    bbox: Tensor  # [4] left, top, right, bottom in pixels
    kps: Tensor  # [5, 2] eyes, nose, corners of the mouth in pixels
    score: float

    @property
    def area(self) -> float:
        left, top, right, bottom = self.bbox.tolist()
        return (right - left) * (bottom - top)


def load_insightface(provider: str = "CPU", model_name: str = "buffalo_l") -> Any:
    """A FaceAnalysis of models/insightface/models/<model_name>, ready to detect; loaded once while anything holds it.

    Raises IPAdapterError where insightface is not installed or broken, and where its models are missing or damaged.
    """
    require_insightface()
    from insightface.app import FaceAnalysis

    folder = find_models(model_name)
    providers = choose_providers(provider)
    if loaded := _loaded.get((folder, tuple(providers))):
        return loaded
    try:
        analyser: Any = FaceAnalysis(name=folder, providers=providers, allowed_modules=["detection", "recognition"])
        analyser.prepare(ctx_id=0, det_size=(DETECTION_SIZES[0], DETECTION_SIZES[0]))
    except Exception as error:  # onnxruntime and onnx each raise kinds of their own for a damaged file
        raise IPAdapterError(
            f"insightface cannot read the models in {folder} ({error}). "
            f"The download may have been cut off: get {model_name}.zip again from {PAGE}"
        ) from error
    used = analyser.det_model.session.get_providers()
    if providers[0] not in used:
        log.warning("onnxruntime could not start %s; insightface runs on %s instead.", providers[0], used[0])
    _loaded[folder, tuple(providers)] = analyser
    return analyser


def models_for(base: str) -> str:
    """The package that FaceID adapters for a base were trained with."""
    return "antelopev2" if base == "Kolors" else "buffalo_l"


def find_models(model_name: str) -> str:
    """The folder that holds a package's files, also where it was unpacked one folder too deep or without the inner models folder.

    Raises IPAdapterError that names the missing files, the folder and the page.
    """
    wanted = MODELS[model_name]
    roots = [os.path.join(folder_paths.models_dir, "insightface")]
    if "insightface" in folder_paths.folder_names_and_paths:
        roots += folder_paths.get_folder_paths("insightface")
    places = [os.path.join(root, *path) for root in roots for path in (("models", model_name), (model_name,))]
    places = [place for outer in places for place in (outer, os.path.join(outer, model_name))]
    for place in places:
        if all(os.path.isfile(os.path.join(place, name)) for name in wanted):
            return place
    there = sorted({name for place in places if os.path.isdir(place) for name in os.listdir(place) if name.endswith(".onnx")})
    raise IPAdapterError(
        f"insightface is installed, but its models are missing: {' and '.join(wanted)} should be in {places[0]} "
        f"({'there is: ' + ', '.join(there) if there else 'there is none'}). Get {model_name}.zip from {PAGE} and unpack it there. "
        "The licence of these models allows non-commercial research only."
    )


def choose_providers(provider: str) -> list[str]:
    """onnxruntime's providers for a choice of PROVIDERS, the CPU last; the CPU alone, with a warning, where it does not offer it."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    for name in PROVIDERS[provider]:
        if name in available:
            return [name, _CPU]
    if PROVIDERS[provider]:
        package = f" For {provider} replace the package onnxruntime by {_PACKAGES[provider]}." if provider in _PACKAGES else ""
        log.warning("This onnxruntime offers %s but not %s; insightface runs on the CPU.%s", ", ".join(available), provider, package)
    return [_CPU]


def require_insightface() -> None:
    """Raises IPAdapterError where insightface, or the onnxruntime it needs, is missing or broken."""
    try:
        import insightface  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name in ("insightface", "onnxruntime"):
            raise IPAdapterError(
                f"{error.name} is not installed, and this adapter reads faces with it. Install it for the Python that runs ComfyUI, then "
                f'start ComfyUI again: "{sys.executable}" -m pip install "insightface>=2.1" onnxruntime (no compiler is needed). '
                "Without it: connect saved face embeddings, or take an adapter that needs no faces, such as plus face."
            ) from error
        raise IPAdapterError(_broken(error)) from error
    except ImportError as error:
        raise IPAdapterError(_broken(error)) from error


def _broken(error: ImportError) -> str:
    return (
        f'insightface is installed but cannot be imported ({error}). Repair it with: "{sys.executable}" -m pip install --upgrade '
        '--force-reinstall "insightface>=2.1", then start ComfyUI again.'
    )


def detect(image: Tensor, analyser: Any, number: int = 1, total: int = 1, crop_size: int = 224) -> tuple[Face, ...]:
    """Every face of a picture [h, w, c] (0..1; grey and RGBA too), in the detector's order: the surest first.

    Looks at 640, 576, ... 320 pixels until there is one. `number` of `total` names the picture in the IPAdapterError for none.
    """
    picture = _bgr(image)
    for size in DETECTION_SIZES:
        with _detection_size(analyser.det_model, size):
            found = analyser.get(picture)
        if found:
            return tuple(_face(picture, face, crop_size) for face in found)
    height, width = image.shape[:2]
    where = f"picture {number} of {total}" if total > 1 else "the picture"
    raise IPAdapterError(
        f"No face found in {where} ({width} x {height} pixels). Try a picture in which the whole face is seen from the front, upright and "
        "well lit; add some space around a face that fills the picture, or enlarge a face smaller than about 30 pixels."
    )


def choose(faces: Sequence[Face], choice: str) -> tuple[Face, ...]:
    """The faces that one of CHOICES means."""
    if choice == "first":
        return tuple(faces[:1])
    if choice == "largest":
        return (max(faces, key=lambda face: face.area),)
    return tuple(sorted(faces, key=lambda face: float(face.bbox[0] + face.bbox[2])))


def _face(picture: np.ndarray, face: Any, crop_size: int) -> Face:
    return Face(
        embedding=torch.from_numpy(face.embedding).float(),
        normed=torch.from_numpy(face.normed_embedding).float(),
        crop=_norm_crop(picture, face.kps, crop_size),
        bbox=torch.from_numpy(face.bbox).float(),
        kps=torch.from_numpy(face.kps).float(),
        score=float(face.det_score),
    )


def _norm_crop(picture: np.ndarray, kps: np.ndarray, size: int) -> Tensor:
    from insightface.utils import face_align

    crop = face_align.norm_crop(picture, landmark=kps, image_size=size)
    return torch.from_numpy(np.ascontiguousarray(crop[..., ::-1])).float() / 255


def _bgr(image: Tensor) -> np.ndarray:
    """[h, w, c] in 0..1 -> uint8 [h, w, 3] in OpenCV's order. Very narrow pictures are continued at their edge."""
    if image.ndim == 2:
        image = image.unsqueeze(-1)
    rgb = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(-1, -1, 3)
    picture = rgb.float().mul(255).clamp(0, 255).byte().cpu().numpy()
    height, width = picture.shape[:2]
    least = max(height, width) // 64  # the detector scales the longer side to 320 at least; the shorter must not vanish
    below, beside = max(0, least - height), max(0, least - width)
    return np.ascontiguousarray(np.pad(picture, ((0, below), (0, beside), (0, 0)), mode="edge")[..., ::-1])


@contextmanager
def _detection_size(detector: Any, size: int) -> Iterator[None]:
    """Has the detector look at size x size pixels; others who share it find it as they left it.

    insightface 2 keeps a list of sizes that goes before the single one.
    """
    names = [name for name in ("input_size", "input_sizes") if hasattr(detector, name)]
    before = {name: getattr(detector, name) for name in names}
    detector.input_size = (size, size)
    if "input_sizes" in names:
        detector.input_sizes = [(size, size)]
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(detector, name, value)
