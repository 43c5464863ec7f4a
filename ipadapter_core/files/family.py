"""What an IP-Adapter checkpoint is, from the names and shapes of its tensors: one table, one identify().

Names are those of `checkpoint.read_shapes`: "image_proj.latents", "ip_adapter.1.to_k_ip.weight". Every width and count is read
from the shapes; the file's name and hash are asked only where two published files have the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import IPAdapterError
from .encoders import HIDDEN, PROJECTED, Encoder, needed
from .kinds import kind_of, text_of
from .transformers import Transformer, blocks_of, measure, transformer_of

__all__ = ["TWINS", "Encoder", "Info", "has_twin", "identify", "tokens_of"]

Shapes = Mapping[str, tuple[int, ...]]

ARCFACE = 512  # width of the face embedding of InsightFace's recognition networks


@dataclass(frozen=True)
class Info:
    """What a checkpoint is; `problem` says why an unsupported one is not, `ambiguities` what its shapes leave open."""

    family: str
    base: str
    projection: str
    tokens: int
    encoder: Encoder | None
    face: bool
    lora: bool
    label: str
    supported: bool
    problem: str = ""
    ambiguities: tuple[str, ...] = ()

    @property
    def stretched(self) -> bool:
        """Whether pictures are brought to a square out of shape, as SigLIP's own preprocessing does, instead of cut to one."""
        return self.family in ("flux-instantx", "sd3-instantx")

    @property
    def nothing(self) -> str:
        """What stands on the negative side where there is no picture, as published: "zeros", or the "black" or the "grey" picture."""
        if self.family == "flux-xlabs":
            return "black"
        return "grey" if self.encoder is not None and self.encoder.feature == HIDDEN and self.family != "sd3-instantx" else "zeros"


# Adapters with key names of their own: (family, base, what it is, marks that must all be in the keys).
# Line breaks tie a mark to the ends of a key.
_FOREIGN = (
    ("flux-instantcharacter", "Flux", "an InstantCharacter adapter", ("\nip_adapter.0.to_k_ip.bias\n", "\nip_adapter.0.norm_ip_q.")),
    ("instruct", "IP-Adapter-Instruct", "an IP-Adapter-Instruct file", ("\nimage_proj.new_input_layers.0.",)),
    ("mip", "MIP-Adapter", "a MIP-Adapter file", ("\nip_adapter.1.to_k_ip.weight\n", ".text_to_weight.weight\n")),
    ("csgo", "CSGO", "a CSGO file", ("\ncontent_image_proj.", "\nstyle_image_proj.", "\nip_adapter.")),
    ("anima-siglip2", "Anima", "an Anima adapter (SigLIP2)", ("\nresampler.latents\n", "\nip_cross_attns.0.to_k_ip.weight\n")),
    ("anima-pe-core", "Anima", "an Anima adapter (PE-Core)", ("\nip_centroid\n", "\nto_k_ip.0.weight\n")),
    ("hunyuandit", "HunyuanDiT", "a HunyuanDiT adapter", ("\nip_adapter_clip_len_trans_block.weight\n",)),
    ("hunyuandit", "HunyuanDiT", "a HunyuanDiT adapter", (".attn2.kv_proj_ip_adapter.weight\n",)),
    ("art", "IP-Adapter-Art", "an IP-Adapter-Art file", (".processor.to_k_ip.0.weight\n",)),
    ("other", "another architecture", "an adapter for a transformer model", ("\nip_adapter.0.to_k_ip.weight\n",)),
)

# (context width, number of layers) of the UNets whose key order is known.
_BASES = {(768, 16): "SD1.5", (1024, 16): "SD2.x", (2048, 70): "SDXL"}
_UNREAD_UNETS = {(2048, 40): " (SSD-1B)"}
_READ = "adapters for SD1.5, SDXL, Kolors, Flux (XLabs, InstantX) and SD3.5 Large (InstantX)"
_SUPPORTED_BASES = ("SD1.5", "SDXL", "Kolors")

# The key of image_proj that tells the projection; the first one that is there decides.
_PROJECTIONS = (
    ("perceiver_resampler.proj_in.weight", "faceid_plus"),
    ("latents", "resampler"),
    ("proj.3.weight", "mlp"),
    ("proj.2.weight", "faceid"),
    ("proj.weight", "linear"),
)

# family: (what it is called, projection, needs face embeddings)
_FAMILIES = {
    "standard": ("IP-Adapter", "linear", False),
    "plus": ("IP-Adapter plus", "resampler", False),
    "full-face": ("IP-Adapter full-face", "mlp", False),
    "faceid": ("IP-Adapter FaceID", "faceid", True),
    "portrait": ("IP-Adapter FaceID portrait", "faceid", True),
    "portrait-unnorm": ("IP-Adapter FaceID portrait unnorm", "resampler", True),
    "faceid-plus": ("IP-Adapter FaceID plus v1", "faceid_plus", True),
    "faceid-plus-v2": ("IP-Adapter FaceID plus v2", "faceid_plus", True),
    "kolors-plus": ("IP-Adapter plus", "resampler", False),
    "kolors-faceid-plus": ("IP-Adapter FaceID plus", "faceid_plus", True),
    "flux-xlabs": ("XLabs IP-Adapter", "linear", False),
    "flux-instantx": ("InstantX IP-Adapter", "pooled", False),
    "sd3-instantx": ("InstantX IP-Adapter", "time_resampler", False),
}

# Families that share their shapes with another, and the SHA-256 of the published file of each.
TWINS = {
    "faceid-plus": "252fb53e0d018489d9e7f9b9e2001a52ff700e491894011ada7cfb471e0fadf2",
    "faceid-plus-v2": "26d0d86a1d60d6cc811d3b8862178b461e1eeb651e6fe2b72ba17aa95411e313",
    "portrait-unnorm": "220bb86e205393a3d0411631cb473caddbf35fd371be2905ca9008818170db55",
    "instantid": "02b3618e36d803784166660520098089a81388e61a93ef8002aa79a5b1c546e1",
}


def identify(shapes: Shapes, name: str = "", sha256: str | None = None) -> Info:
    """What the checkpoint with these `shapes` is. `name` (file name, folders included) and the file's `sha256` decide between twins.

    Raises IPAdapterError when it is no adapter (a LoRA, a checkpoint, ...: says what it is and where it belongs) or lacks
    tensors that tell what it is. Source: checkpoints.md's decision tree over the published files.
    """
    text = text_of(shapes)
    if transformer := transformer_of(text):
        return _transformer(transformer, shapes, name)
    for family, base, title, marks in _FOREIGN:
        if all(mark in text for mark in marks):
            return _unsupported(family, base, title, _unread(base))
    if not any(key.startswith(("image_proj.", "ip_adapter.")) for key in shapes):
        raise _wrong_kind(shapes, name)
    return _unet(shapes, name, sha256)


def has_twin(info: Info) -> bool:
    """Whether a published file of another family has the same shapes, so that the file's SHA-256 says more than its name."""
    return info.family in ("portrait-unnorm", "instantid") or (info.base == "SD1.5" and info.family.startswith("faceid-plus"))


def tokens_of(encoder: Encoder) -> int:
    """Tokens that an encoder of this input size gives at a patch of 14 pixels; all but SigLIP have a class token before them."""
    return (encoder.size // 14) ** 2 + (0 if encoder.name.startswith("SigLIP") else 1)


def _transformer(one: Transformer, shapes: Shapes, name: str) -> Info:
    blocks = blocks_of(shapes)
    if blocks != one.blocks:
        given = f"it has {blocks} blocks" if blocks >= 0 else "blocks are missing from it"
        return _unsupported(one.family, one.base, one.title, f"{given} where {one.base} needs {one.blocks}; download it again")
    tokens, encoder = measure(one, lambda key, dim: _size(shapes, f"image_proj.{key}", dim, name))
    label = _label(one.family, one.base, tokens, encoder, False)
    projection = _FAMILIES[one.family][1]
    return Info(one.family, one.base, projection, tokens, encoder, False, False, label, True, "", _unknown(encoder))


def _unet(shapes: Shapes, name: str, sha256: str | None) -> Info:
    layers = sorted(int(key.split(".")[1]) for key in shapes if _is_layer(key))
    if not layers:
        raise IPAdapterError(f"{_this(name)} has an image projection but no to_k_ip layers: it is incomplete. Download it again.")
    context = _size(shapes, f"ip_adapter.{layers[0]}.to_k_ip.weight", 1, name)
    base = _BASES.get((context, len(layers)), "")
    if layers != list(range(1, 2 * len(layers), 2)) or not base:
        known = " (the SDXL refiner)" if context == 1280 else _UNREAD_UNETS.get((context, len(layers)), "")
        return _unsupported("other", f"a UNet with {len(layers)} layers of context width {context}",
                            f"an adapter for a UNet with {len(layers)} cross-attention layers and context width {context}{known}",
                            "SD1.5 has 16 and 768, SDXL 70 and 2048; take an adapter for one of those, and its model")

    def size(key: str, dim: int) -> int:
        return _size(shapes, f"image_proj.{key}", dim, name)

    projection = next((kind for key, kind in _PROJECTIONS if f"image_proj.{key}" in shapes), "")
    if not projection:
        return _unsupported("other", base, f"an adapter for {base}", "its image projection is of a kind that is not known")
    lora = any("_lora." in key for key in shapes)
    family, base, tokens, encoder, ambiguities = _MEASURE[projection](size, base, lora, name.lower(), sha256)
    if family == "instantid":
        reason = "it needs the InstantID nodes and their ControlNet; put it in models/instantid"
        return _unsupported(family, "InstantID", "InstantID's own ip-adapter.bin", reason)
    if base not in _SUPPORTED_BASES:
        return _unsupported(family, base, f"an adapter for {base}", _unread(base))
    face = _FAMILIES[family][2]
    if face and (width := size("proj_in.weight" if family == "portrait-unnorm" else "proj.0.weight", 1)) != ARCFACE:
        return _unsupported("other", base, f"an adapter for {base}", f"it takes an embedding {width} wide, and InsightFace gives {ARCFACE}")
    label = _label(family, base, tokens, encoder, lora)
    return Info(family, base, projection, tokens, encoder, face, lora, label, True, "", ambiguities)


_Measured = tuple[str, str, int, "Encoder | None", tuple[str, ...]]
_Size = Callable[[str, int], int]


def _linear(size: _Size, base: str, lora: bool, name: str, sha256: str | None) -> _Measured:
    encoder = needed(PROJECTED, size("proj.weight", 1))
    return "standard", base, size("proj.weight", 0) // size("norm.weight", 0), encoder, _unknown(encoder)


def _mlp(size: _Size, base: str, lora: bool, name: str, sha256: str | None) -> _Measured:
    encoder = needed(HIDDEN, size("proj.0.weight", 1))
    return "full-face", base, tokens_of(encoder), encoder, _unknown(encoder)


def _faceid(size: _Size, base: str, lora: bool, name: str, sha256: str | None) -> _Measured:
    tokens = size("proj.2.weight", 0) // size("norm.weight", 0)
    return "faceid" if lora or tokens == 4 else "portrait", base, tokens, None, ()


def _faceid_plus(size: _Size, base: str, lora: bool, name: str, sha256: str | None) -> _Measured:
    width = size("perceiver_resampler.proj_in.weight", 0)
    tokens, features = size("proj.2.weight", 0) // size("norm.weight", 0), size("perceiver_resampler.proj_in.weight", 1)
    if base == "SDXL" and width == 4096:
        encoder = needed(HIDDEN, features, "ViT-L-336" if features == 1024 else "")
        return "kolors-faceid-plus", "Kolors", tokens, encoder, _unknown(encoder)
    encoder = needed(HIDDEN, features)
    family, ambiguities = "faceid-plus-v2", _unknown(encoder)
    if base == "SD1.5":  # SDXL has v2 alone
        family = _twin(sha256)
        if not family and "plus" in name:
            family = "faceid-plus-v2" if "v2" in name else "faceid-plus"
        if not family:
            family, ambiguities = "faceid-plus-v2", (
                *ambiguities, "FaceID plus v1 and v2 have the same shapes, and neither hash nor name tells which this is: taken for v2")
    return family, base, tokens, encoder, ambiguities


def _resampler(size: _Size, base: str, lora: bool, name: str, sha256: str | None) -> _Measured:
    features, width, tokens = size("proj_in.weight", 1), size("latents", 2), size("latents", 1)
    if features == ARCFACE:
        family, ambiguities = _twin(sha256), ()
        if not family and "unnorm" not in name:
            family = "instantid" if "instantid" in name.replace("_", "").replace("-", "").replace(" ", "") else ""
            ambiguities = () if family else (
                "FaceID portrait unnorm and InstantID's ip-adapter.bin have the same shapes, and neither hash nor name tells which "
                "this is: taken for portrait unnorm",)
        return family or "portrait-unnorm", base, tokens, None, ambiguities
    if base == "SDXL" and (width, features, size("layers.0.0.to_q.weight", 0)) == (2048, 1024, 768):
        return "kolors-plus", "Kolors", tokens, needed(HIDDEN, features, "ViT-L-336"), ()
    encoder = needed(HIDDEN, features)
    return "plus", base, tokens, encoder, _unknown(encoder)


_MEASURE: dict[str, Callable[[_Size, str, bool, str, str | None], _Measured]] = {
    "linear": _linear, "mlp": _mlp, "faceid": _faceid, "faceid_plus": _faceid_plus, "resampler": _resampler,
}


def _twin(sha256: str | None) -> str:
    """The family of the published file with that hash; "" where there is none."""
    return next((family for family, published in TWINS.items() if published == sha256), "")


def _unknown(encoder: Encoder) -> tuple[str, ...]:
    if encoder.file:
        return ()
    return (f"no published encoder gives {encoder.feature} {encoder.width} wide: connect the one it was trained with",)


def _label(family: str, base: str, tokens: int, encoder: Encoder | None, lora: bool) -> str:
    details = [f"{tokens} tokens", *([encoder.name] if encoder else []), *(["LoRA inside"] if lora else [])]
    return f"{_FAMILIES[family][0]} for {base} ({', '.join(details)})"


def _unsupported(family: str, base: str, title: str, reason: str) -> Info:
    label = title.split(" ", 1)[1] if title.startswith(("a ", "an ")) else title
    return Info(family, base, "", 0, None, False, False, label, False, f"this is {title}: {reason}")


def _unread(base: str) -> str:
    """Why no node reads an adapter, and what to take in its place."""
    if base == "Flux":
        return "no node here reads it; for Flux the adapters by XLabs and InstantX are read"
    if base in ("SD2.x", "HunyuanDiT", "Anima"):
        return f"no node here reads adapters for {base} models; {_READ} are read: take one of those, and its model"
    return f"no node here reads it; {_READ} are read"


def _is_layer(key: str) -> bool:
    parts = key.split(".")
    return len(parts) == 4 and parts[0] == "ip_adapter" and parts[1].isdecimal() and parts[2:] == ["to_k_ip", "weight"]


def _size(shapes: Shapes, key: str, dim: int, name: str) -> int:
    """One dimension of a tensor that has to be there."""
    shape = shapes.get(key)
    if shape is None:
        raise IPAdapterError(f"{_this(name)} lacks the tensor {key}: it is damaged or was converted wrongly. Download it again.")
    if dim >= len(shape) or not shape[dim]:
        raise IPAdapterError(f"{_this(name)} has {key} in the unusable shape {list(shape)}: it is damaged. Download it again.")
    return shape[dim]


def _this(name: str) -> str:
    return name or "This file"


def _wrong_kind(shapes: Shapes, name: str) -> IPAdapterError:
    if found := kind_of(shapes):
        return IPAdapterError(f"{_this(name)} is {found[0]}, not an IP-Adapter. Put it in models/{found[1]}.")
    some = ", ".join(sorted(shapes)[:3]) or "none at all"
    return IPAdapterError(
        f"{_this(name)} is not an IP-Adapter: it has no image_proj and ip_adapter tensors (its tensors: {some}). Choose another file."
    )
