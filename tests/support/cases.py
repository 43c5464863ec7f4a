"""The calls whose sampled latents are golden: case name -> (arch, fn(world, pack) -> patched model, arguments of the sampling)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from support import lab
from support.world import FAMILIES, apply, embeds, is_face, regional

Case = tuple[str, Callable[..., Any], dict[str, Any]]

WEIGHT_TYPES = (
    "linear", "ease in", "ease out", "ease in-out", "reverse in-out", "weak input", "weak output", "weak middle", "strong middle",
    "style transfer", "composition", "strong style transfer", "style and composition", "style transfer precise", "composition precise",
)  # fmt: skip
COMBINE = ("concat", "add", "subtract", "average", "norm average")
SCALING = ("V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty")


def patched(w, pack, family, arch, node="IPAdapterAdvanced", **kw):
    return apply(w, pack, family, arch, node, **kw)[0]


def masked(w, pack, arch, node="IPAdapterAdvanced", family="plus", mask=None, **kw):
    return patched(w, pack, family, arch, node, attn_mask=w.mask(**(mask or {})), **kw)


def stacked(w, pack, arch):
    first = patched(w, pack, "plus", arch, weight=0.5)
    return patched(w, pack, "base", arch, model=first, image=lab.images(1, tag="b"), start_at=0.2)


def embeds_masked(w, pack, arch):
    return embeds(w, pack, arch, 0.7, w.mask())


def cases() -> dict[str, Case]:
    every: dict[str, Case] = {}
    for family, (_, archs) in FAMILIES.items():
        for arch in archs:
            node = "IPAdapterFaceID" if is_face(family) else "IPAdapterAdvanced"
            every[f"family/{family}/{arch}"] = (arch, partial(patched, family=family, arch=arch, node=node), {})
    for arch in ("sd15", "sdxl"):
        every.update({f"{name}/{arch}": (arch, fn, sampling) for name, (fn, sampling) in _both_archs(arch).items()})
    styles = dict(image_style=lab.images(1), image_composition=lab.images(1, tag="b"), weight_style=1.1, weight_composition=0.7)
    styled = partial(patched, family="plus", arch="sdxl", node="IPAdapterStyleComposition", combine_embeds="average", **styles)
    every["style_composition/sdxl"] = ("sdxl", partial(styled, expand_style=False), {})
    every["style_composition_expand/sdxl"] = ("sdxl", partial(styled, expand_style=True), {})
    return every


def _both_archs(arch: str) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    found: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}

    def case(name, fn, sampling=None, **kw):
        found[name] = (partial(fn, arch=arch, **kw), sampling or {})

    plus, base = partial(patched, family="plus"), partial(patched, family="base")
    for weight_type in WEIGHT_TYPES:
        case(f"weight_type/{weight_type}", plus, weight_type=weight_type, weight=1.1)
    for scaling in SCALING:
        case(f"scaling/{scaling}", plus, embeds_scaling=scaling, weight=1.3)
        case(f"scaling_images/{scaling}", plus, image=lab.images(3, 80, 80), embeds_scaling=scaling, weight=1.2)
        two = dict(image=lab.images(2, 80, 80), weight=0.9, weight_type="style transfer precise", mask={"n": 2})
        case(f"scaling_images_masked/{scaling}", masked, {"batch": 2, "hw": (8, 12)}, family="base", embeds_scaling=scaling, **two)
    for combine in COMBINE:
        case(f"combine/{combine}", plus, image=lab.images(3, 80, 80), combine_embeds=combine)
    case("negative", plus, image_negative=lab.images(1, 70, 90, "neg"))
    case("negative_base", base, image_negative=lab.images(1, 70, 90, "neg"))
    case("negative_weight", plus, weight=-0.7)
    case("mask", masked, {"hw": (12, 16)})
    case("mask_odd", masked, {"hw": (10, 18), "batch": 2}, mask={"h": 50, "w": 90})
    case("window", plus, {"steps": 6}, start_at=0.3, end_at=0.7)
    case("stack", stacked, {"steps": 4})
    case("images_in_batch", plus, {"batch": 2}, image=lab.images(2))
    case("no_cfg", plus, {"cfg": 1.0})
    case("dpmpp", plus, {"steps": 5, "sampler": "dpmpp_2m", "scheduler": "karras"}, end_at=0.6)
    case("batch", plus, {"batch": 3}, node="IPAdapterBatch", image=lab.images(3))
    case("batch_short", plus, {"batch": 4}, node="IPAdapterBatch", image=lab.images(2), encode_batch_size=1)
    case("batch_masks", masked, {"batch": 3}, node="IPAdapterBatch", image=lab.images(3), mask={"n": 3})
    case("batch_weights", plus, {"batch": 3}, node="IPAdapterBatch", image=lab.images(3), weight=[0.0, 0.5, 1.2])
    tiles = dict(node="IPAdapterClipVisionEnhancer", image=lab.images(1, 96, 96), enhance_tiles=2, enhance_ratio=0.6)
    case("enhancer", plus, **tiles)
    case("enhancer_base", base, **tiles)
    case("precise_style", plus, node="IPAdapterPreciseStyleTransfer", style_boost=1.4)
    case("precise_composition", plus, node="IPAdapterPreciseComposition", composition_boost=0.6)
    case("mad_scientist", plus, node="IPAdapterMS", weight_faceidv2=1.0, layer_weights="0:0.3, 2:1.0, 3:-0.5, 6:1.5, 10:0.2")
    case("tiled", plus, {"hw": (8, 14)}, node="IPAdapterTiled", image=lab.images(1, 100, 180), sharpening=0.0)
    case("tiled_masked", masked, {"hw": (8, 8)}, node="IPAdapterTiled", image=lab.images(1, 120, 110), sharpening=0.3)
    case("embeds", embeds)
    case("embeds_masked", embeds_masked)
    case("regional", regional, {"hw": (8, 8), "steps": 4})
    return found
