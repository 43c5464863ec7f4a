"""Whether a checkpoint has every tensor that its family's layers need, each in a shape that fits the others."""

from __future__ import annotations

from collections.abc import Mapping

from ..adapter.projection import HEAD
from ..errors import IPAdapterError
from .family import Info

Shapes = Mapping[str, tuple[int, ...]]
MOST_TOKENS = 1024  # of a picture; the most that was published is 729, of an encoder whose every patch is a token


def check_layout(shapes: Shapes, info: Info, name: str = "") -> None:
    """Raises IPAdapterError naming the first tensor that is missing, too many or of a wrong shape. `info` is a supported one."""
    this = name or "This file"
    if info.tokens > MOST_TOKENS:
        raise IPAdapterError(f"{this} makes {info.tokens} tokens of a picture, more than any adapter does: it is damaged. Use another.")
    expected = {f"image_proj.{key}": shape for key, shape in _projection(shapes, info).items()}
    expected |= {f"ip_adapter.{key}": shape for key, shape in _layers(shapes, info).items()}
    for key, shape in expected.items():
        if key not in shapes:
            raise IPAdapterError(f"{this} lacks the tensor {key}: it is damaged or was converted wrongly. Download it again.")
        if 0 in shapes[key]:
            raise IPAdapterError(f"{this} has {key} in the unusable shape {list(shapes[key])}: it is damaged. Download it again.")
        if shapes[key] != shape:
            raise IPAdapterError(
                f"{this} has {key} in the shape {list(shapes[key])}, and {list(shape)} fits its other tensors: "
                "it is damaged or was converted wrongly. Download it again."
            )
    for key in shapes:
        if key.startswith(("image_proj.", "ip_adapter.")) and key not in expected:
            raise IPAdapterError(
                f"{this} has the tensor {key}, which no {info.label} has: this variant is not supported yet. Choose another file."
            )


def _norm(key: str, width: int) -> Shapes:
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}


def _linear(key: str, out: int, features: int, bias: bool = True) -> Shapes:
    return {f"{key}.weight": (out, features), **({f"{key}.bias": (out,)} if bias else {})}


def _get(shapes: Shapes, key: str, dim: int) -> int:
    """A dimension that others have to fit; 0 where there is none, which no other tensor fits."""
    shape = shapes.get(key, ())
    return shape[dim] if dim < len(shape) else 0


def _projection(shapes: Shapes, info: Info) -> dict[str, tuple[int, ...]]:
    context = _get(shapes, "ip_adapter.1.to_k_ip.weight", 1)

    def size(key: str, dim: int) -> int:
        return _get(shapes, f"image_proj.{key}", dim)

    if info.projection == "linear":
        return {**_linear("proj", info.tokens * context, size("proj.weight", 1)), **_norm("norm", context)}
    if info.projection == "mlp":
        hidden = size("proj.0.weight", 0)
        return {**_linear("proj.0", hidden, size("proj.0.weight", 1)), **_linear("proj.2", context, hidden), **_norm("proj.3", context)}
    if info.projection == "resampler":
        tokens, width = size("latents", 1), size("latents", 2)
        return {"latents": (1, tokens, width), **_perceiver(shapes, "", width, size("proj_in.weight", 1), context)}
    if info.projection == "time_resampler":
        tokens, width = size("latents", 1), size("latents", 2)
        expected = {"latents": (1, tokens, width), **_perceiver(shapes, "", width, size("proj_in.weight", 1), context)}
        expected |= _linear("time_embedding.linear_1", width, size("time_embedding.linear_1.weight", 1))
        expected |= _linear("time_embedding.linear_2", width, width)
        for key in [key for key in expected if key.endswith(".1.1.weight")]:
            expected |= _linear(key.replace(".1.1.weight", ".2.1"), 4 * width, width)
        return expected
    width = size("norm.weight", 0) if info.base == "Kolors" else context  # Kolors' tokens pass through the UNet's encoder_hid_proj
    hidden = size("proj.0.weight", 0)
    face = {**_linear("proj.0", hidden, size("proj.0.weight", 1)), **_linear("proj.2", info.tokens * width, hidden), **_norm("norm", width)}
    if info.projection in ("faceid", "pooled"):
        return face
    features = size("perceiver_resampler.proj_in.weight", 1)
    return {**face, **_perceiver(shapes, "perceiver_resampler.", width, features, width)}


def _perceiver(shapes: Shapes, prefix: str, width: int, features: int, out: int) -> dict[str, tuple[int, ...]]:
    start = f"image_proj.{prefix}layers."
    numbers = {key[len(start) :].split(".")[0] for key in shapes if key.startswith(start)}
    depth = next(n for n in range(1, len(numbers) + 2) if str(n) not in numbers)
    inner = _get(shapes, f"{start}0.0.to_q.weight", 0) // HEAD * HEAD
    feedforward = _get(shapes, f"{start}0.1.1.weight", 0)
    expected = {**_linear("proj_in", width, features), **_linear("proj_out", out, width), **_norm("norm_out", out)}
    for i in range(depth):
        expected |= {
            **_norm(f"layers.{i}.0.norm1", width), **_norm(f"layers.{i}.0.norm2", width),
            **_linear(f"layers.{i}.0.to_q", inner, width, bias=False), **_linear(f"layers.{i}.0.to_kv", 2 * inner, width, bias=False),
            **_linear(f"layers.{i}.0.to_out", width, inner, bias=False), **_norm(f"layers.{i}.1.0", width),
            **_linear(f"layers.{i}.1.1", feedforward, width, bias=False), **_linear(f"layers.{i}.1.3", width, feedforward, bias=False),
        }
    return {prefix + key: shape for key, shape in expected.items()}


def _layers(shapes: Shapes, info: Info) -> dict[str, tuple[int, ...]]:
    context = _get(shapes, "ip_adapter.1.to_k_ip.weight", 1)
    keys = [key.split(".") for key in shapes if key.startswith("ip_adapter.")]
    widths = {int(key[1]): _get(shapes, ".".join(key), 0) for key in keys if key[2:] == ["to_k_ip", "weight"]}
    expected: dict[str, tuple[int, ...]] = {}
    biased = info.family == "flux-xlabs"
    for n, width in widths.items():
        expected |= {**_linear(f"{n}.to_k_ip", width, context, biased), **_linear(f"{n}.to_v_ip", width, context, biased)}
        if info.family == "sd3-instantx":
            head = _get(shapes, f"ip_adapter.{n}.norm_q.weight", 0)
            expected |= {f"{n}.{norm}.weight": (head,) for norm in ("norm_q", "norm_k", "norm_ip_k")}
            expected |= _linear(f"{n}.norm_ip.linear", 2 * context, _get(shapes, "image_proj.latents", 2))
    for key in keys:  # FaceID's LoRA: even numbers are self-attention, k and v of odd ones see the context
        if len(key) == 5 and key[1].isdecimal() and key[2] in _LORA and key[3] in ("down", "up") and key[4] == "weight":
            n = int(key[1])
            width = widths.get(n | 1, 0)
            rank = _get(shapes, f"ip_adapter.{n}.{key[2]}.down.weight", 0)
            features = context if n % 2 and key[2] in ("to_k_lora", "to_v_lora") else width
            expected |= {f"{n}.{key[2]}.down.weight": (rank, features), f"{n}.{key[2]}.up.weight": (width, rank)}
    return expected


_LORA = ("to_q_lora", "to_k_lora", "to_v_lora", "to_out_lora")
