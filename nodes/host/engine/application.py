"""One adapter applied with one set of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ....ipadapter_core.adapter.attention import KV
from ....ipadapter_core.adapter.layers import STREAMS, Layer, Weight
from .kv_patcher import KVPatcher
from .layout_cache import LayoutCache
from .timed import Norms, Timed
from .windows import Window


@dataclass(frozen=True, eq=False)
class Shown:
    """One reference on one side. weights: t -> weight, those missing are off; region [n, H, W]: where it acts, None everywhere."""

    weights: Mapping[int, float]
    region: Tensor | None


@dataclass(frozen=True, eq=False)
class Joined:
    """References in a row of tokens. negative, positive: those of each side, in the row's order.

    apart: each attends by itself and what they give is summed, instead of one attention over all tokens.
    """

    negative: tuple[Shown, ...]
    positive: tuple[Shown, ...]
    apart: bool

    def side(self, negative: bool) -> tuple[Shown, ...]:
        return self.negative if negative else self.positive

    def regions(self) -> Iterator[Tensor]:
        return (shown.region for shown in (*self.negative, *self.positive) if shown.region is not None)


@dataclass(frozen=True, eq=False)
class Application:
    """One adapter applied with one set of tokens. Immutable: copies of a model share it.

    kv: one row for each set of tokens; patchers: by which ComfyUI loads them, and what makes them while sampling. negative, positive:
    the row of each latent on that side; the last one goes on. tokens: those of one picture; several may stand side by side in a row.
    weights: t -> weight. window: None for all of the sampling. mask [n, H, W]; cubic: how it is brought to the grid of a layer. joined:
    where the pictures of a row have weights and regions of their own, instead of one mask and weight. timed: of an adapter whose K and V
    change with the timestep; `kv` is empty then, and `at` gives the application of a timestep. outside: on a transformer's block, whether
    it is added to what comes out of the block, instead of to the attention in it.
    For people to see: the adapter's name, and `away`, the t where the picture is on the negative side.
    """

    kv: KV
    patchers: tuple[KVPatcher | Any, ...]
    negative: tuple[int, ...]
    positive: tuple[int, ...]
    tokens: int
    layers: Mapping[int, Layer]
    weights: Mapping[int, Weight]
    scaling: str
    window: Window | None
    mask: Tensor | None
    cubic: bool = False
    joined: Joined | None = None
    name: str = ""
    away: frozenset[int] = frozenset()
    timed: Timed | None = None
    outside: bool = False
    layouts: LayoutCache = field(default_factory=LayoutCache, repr=False)

    def __deepcopy__(self, memo: dict) -> Application:
        return self

    def at(self, timestep: float, norms: Norms) -> Application:
        """With the K and V of the timestep, for a model with these norms."""
        assert self.timed is not None
        return self.timed.current(timestep, norms, lambda kv: replace(self, kv=kv, layouts=self.layouts.beside()))

    @property
    def on_blocks(self) -> bool:
        """Whether it stands on a transformer's blocks, whose queries come with their heads in front."""
        return all(layer.name in STREAMS for layer in self.layers.values())

    @property
    def per_latent(self) -> bool:
        """Whether it matters which latents a call holds."""
        several = len(self.negative) > 1 or len(self.positive) > 1 or any(mask.shape[0] > 1 for mask in self.masks)
        return several or any(isinstance(weight, tuple) for weight in self.weights.values())

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """All that say where it acts."""
        own = () if self.mask is None else (self.mask,)
        return own if self.joined is None else (*own, *self.joined.regions())
