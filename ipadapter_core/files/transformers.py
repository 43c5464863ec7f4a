"""Adapters for transformer models, told by the names and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .encoders import HIDDEN, POOLED, PROJECTED, Encoder, needed

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Transformer:
    """A family of adapters for a transformer model.

    marks: what must all be in the keys, line breaks tie them to the ends of a key; unlike: what must not be. blocks: how many blocks of
    the base it acts in. tokens: (tensor, its dimension, tensor whose first dimension that is divided by or ""). feature, width: what it
    takes of the image encoder, and the tensor whose last dimension says how wide.
    """

    family: str
    base: str
    title: str
    marks: tuple[str, ...]
    unlike: str
    blocks: int
    tokens: tuple[str, int, str]
    feature: str
    width: str


TRANSFORMERS = (
    Transformer(
        "sd3-instantx", "SD3.5", "an InstantX SD3.5 adapter",
        ("\nimage_proj.latents\n", "\nimage_proj.time_embedding.linear_1.weight\n", "\nip_adapter.0.norm_ip.linear.weight\n"), "\0",
        38, ("latents", 1, ""), HIDDEN, "proj_in.weight",
    ),
    Transformer(
        "flux-xlabs", "Flux", "an XLabs Flux adapter", ("\nimage_proj.proj.weight\n", "\nip_adapter.0.to_k_ip.bias\n"),
        "\nip_adapter.0.norm_ip_q.", 19, ("proj.weight", 0, "norm.weight"), PROJECTED, "proj.weight",
    ),
    Transformer(
        "flux-instantx", "Flux", "an InstantX Flux adapter", ("\nimage_proj.proj.2.weight\n", "\nip_adapter.0.to_k_ip.weight\n"),
        "\nip_adapter.0.to_k_ip.bias\n", 57, ("proj.2.weight", 0, "norm.weight"), POOLED, "proj.0.weight",
    ),
)  # fmt: skip


def transformer_of(text: str) -> Transformer | None:
    """The family of an adapter with the key names `text`, as kinds.text_of gives them; None where it is for no transformer known here."""
    return next((one for one in TRANSFORMERS if all(mark in text for mark in one.marks) and one.unlike not in text), None)


def blocks_of(shapes: Shapes) -> int:
    """How many blocks an adapter has, 0, 1, 2 ... without a gap; -1 where there is one."""
    numbers = {int(key.split(".")[1]) for key in shapes if key.startswith("ip_adapter.") and key.split(".")[1].isdecimal()}
    return len(numbers) if numbers == set(range(len(numbers))) else -1


def measure(one: Transformer, size: Callable[[str, int], int]) -> tuple[int, Encoder]:
    """(tokens, encoder) of an adapter; size(key, dimension) reads the shapes of its projection."""
    key, dim, divisor = one.tokens
    tokens = size(key, dim) // (size(divisor, 0) if divisor else 1)
    return tokens, needed(one.feature, size(one.width, 1))
