"""One adapter applied with one set of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...ipadapter_core.attention import KV
from ...ipadapter_core.layers import Layer, Weight
from .kv_patcher import KVPatcher
from .layout_cache import LayoutCache
from .windows import Window


@dataclass(frozen=True, eq=False)
class Application:
    """One adapter applied with one set of tokens. Immutable: copies of a model share it.

    kv: one row for each set of tokens; patcher: by which ComfyUI loads them. negative, positive: the row of each latent on that
    side; the last one goes on. tokens: those of one picture; several may stand side by side in a row. weights: t -> weight.
    window: None for all of the sampling. mask [n, H, W].
    For people to see: the adapter's name, and `away`, the t where the picture is on the negative side.
    """

    kv: KV
    patcher: KVPatcher
    negative: tuple[int, ...]
    positive: tuple[int, ...]
    tokens: int
    layers: Mapping[int, Layer]
    weights: Mapping[int, Weight]
    scaling: str
    window: Window | None
    mask: Tensor | None
    name: str = ""
    away: frozenset[int] = frozenset()
    layouts: LayoutCache = field(default_factory=LayoutCache, repr=False)

    def __deepcopy__(self, memo: dict) -> Application:
        return self

    @property
    def per_latent(self) -> bool:
        """Whether it matters which latents a call holds."""
        several = len(self.negative) > 1 or len(self.positive) > 1 or (self.mask is not None and self.mask.shape[0] > 1)
        return several or any(isinstance(weight, tuple) for weight in self.weights.values())
