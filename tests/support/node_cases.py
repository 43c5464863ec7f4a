"""The calls of helper nodes whose outputs are golden, and the digest in which they are kept."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from support import lab, synth
from support.world import apply, load_adapter

SCHEDULE = dict(weights="1.0, 0.2", timing="linear", frames=5, start_frame=0, end_frame=9999, add_starting_frames=0, add_ending_frames=0)
SCHEDULE["method"] = "full batch"


def node_cases() -> dict[str, Callable[..., Any]]:
    """name -> fn(world, pack) returning the outputs (tensors, numbers, lists of numbers or strings) of a helper node."""
    found = {f"prep/{name}": partial(_prep, **kw) for name, kw in _prep_arguments().items()}
    for kind in ("fade", "dissolve", "gaussian"):
        found[f"noise/{kind}"] = partial(_call, "IPAdapterNoise", type=kind, strength=0.6, blur=0, image_optional=lab.images(1, 200, 240))
        found[f"noise/{kind}/blank_blurred"] = partial(_call, "IPAdapterNoise", type=kind, strength=1.0, blur=6)
    found["encoder/base"] = partial(_encode, family="base", weight=0.7)
    found["encoder/plus"] = partial(_encode, family="plus")
    found["encoder/plus_masked"] = partial(_encode, family="plus", mask_size=(120, 160))
    found["encoder/kolors"] = partial(_encode, family="kolors_plus", arch="sdxl", image=lab.images(1, 200, 180))
    three = {f"embed{i}": synth.noise(f"e{i}", (1, 5, 16)) for i in (1, 2, 3)}
    for method in ("concat", "add", "subtract", "average", "norm average", "max", "min"):
        found[f"combine_embeds/{method}"] = partial(_call, "IPAdapterCombineEmbeds", method=method, **three)
    for name, kw in _schedules().items():
        found[f"weights/{name}"] = partial(_weights, schedule=kw)
        if "image" in kw:
            found[f"weights_from_strategy/{name}"] = partial(_from_strategy, schedule=kw)
            found[f"prompt_schedule/{name}"] = partial(_prompts, schedule=kw)
    found["combine_weights"] = partial(_call, "IPAdapterCombineWeights", weights_1=[0.1, 0.2], weights_2=0.5)
    for h, w in ((100, 180), (120, 110), (90, 400), (300, 60)):
        found[f"tiles/{h}x{w}"] = partial(_tiles, image=lab.images(1, h, w), sharpening=0.0)
    found["tiles/masked_sharpened"] = partial(_tiles, image=lab.images(1, 120, 110), sharpening=0.5, masked=True)
    found["face_image/sd15"] = partial(_face_image, arch="sd15", image=lab.images(2))
    found["face_image/sdxl"] = partial(_face_image, arch="sdxl", image=lab.images(1))
    return found


def _prep_arguments() -> dict[str, dict[str, Any]]:
    found = {}
    for position in ("top", "bottom", "left", "right", "center", "pad"):
        for h, w in ((96, 150), (140, 90)):
            found[f"{position}/{h}x{w}"] = {"image": lab.images(2, h, w), "crop_position": position}
    for filter_name in ("BICUBIC", "HAMMING", "BILINEAR", "BOX", "NEAREST"):
        found[filter_name] = {"interpolation": filter_name}
    found["sharpening"] = {"sharpening": 0.4}
    return found


def _schedules() -> dict[str, dict[str, Any]]:
    four = {"image": lab.images(4, 8, 8)}
    return {
        "custom": {"timing": "custom", "weights": "0.1, 0.5\n0.9,\n 0.3"},
        "linear": {},
        "ease_in_out": {"timing": "ease_in_out"},
        "ease_in": {"timing": "ease_in"},
        "ease_out": {"timing": "ease_out"},
        "ranged": {"frames": 12, "start_frame": 3, "end_frame": 8},
        "empty": {"weights": ""},
        "full_batch": four,
        "shift": {"method": "shift batches", **four},
        "alternate_even": {"method": "alternate batches", **four},
        "alternate_odd": {"method": "alternate batches", "image": lab.images(5, 8, 8)},
        "padded": {"method": "shift batches", "add_starting_frames": 2, "add_ending_frames": 3, **four},
        "padded_full": {"add_starting_frames": 1, "add_ending_frames": 2, **four},
    }


def _call(node, w, pack, **kw):
    return lab.call(pack[node], **kw)


def _prep(w, pack, **kw):
    defaults = dict(image=lab.images(1, 300, 260), interpolation="LANCZOS", crop_position="center", sharpening=0.0)
    return lab.call(pack["PrepImageForClipVision"], **{**defaults, **kw})


def _encode(w, pack, family, arch="sd15", mask_size=None, **kw):
    args = dict(ipadapter=load_adapter(w, pack, family, arch), clip_vision=w.encoder(family), image=lab.images(2), weight=1.0)
    if mask_size:
        args["mask"] = w.mask(h=mask_size[0], w=mask_size[1])
    return lab.call(pack["IPAdapterEncoder"], **{**args, **kw})


def _weights(w, pack, schedule, first=0, last=5):
    return lab.call(pack["IPAdapterWeights"], **{**SCHEDULE, **schedule})[first:last]


def _strategy(w, pack, schedule):
    return _weights(w, pack, schedule, 5, 6)[0]


def _from_strategy(w, pack, schedule):
    strategy = _strategy(w, pack, schedule)
    return lab.call(pack["IPAdapterWeightsFromStrategy"], weights_strategy=strategy, image=schedule["image"])[:5]


def _prompts(w, pack, schedule):
    node = pack["IPAdapterPromptScheduleFromWeightsStrategy"]
    return lab.call(node, weights_strategy=_strategy(w, pack, schedule), prompt="a cat\n\na dog\n")[:1]


def _tiles(w, pack, masked=False, **kw):
    mask = {"attn_mask": w.mask()} if masked else {}
    return apply(w, pack, "base", "sd15", "IPAdapterTiled", **kw, **mask)[1:3]


def _face_image(w, pack, arch, image):
    return apply(w, pack, "faceid_plusv2", arch, "IPAdapterFaceID", image=image)[1:2]


def digest(t: torch.Tensor, most: int = 2048) -> torch.Tensor:
    """A tensor as at most `most` of its values, evenly strided over the flat tensor, after its shape."""
    flat = t.detach().float().flatten()
    step = max(1, -(-flat.numel() // most)) | 1
    return torch.cat([torch.tensor(t.shape, dtype=torch.float32), flat[::step]])


def digests(outputs) -> dict[str, torch.Tensor | str]:
    """A node's outputs as {index: digest of the tensor, or the string}."""
    found = {}
    for i, value in enumerate(outputs):
        if value is not None:
            found[str(i)] = value if isinstance(value, str) else digest(torch.as_tensor(value, dtype=torch.float32))
    return found


def node_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference, relative to the largest value; 1.0 where shapes differ."""
    return 1.0 if got.shape != want.shape else ((got - want).abs().max() / want.abs().max().clamp(min=1e-9)).item()
