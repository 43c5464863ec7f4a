"""K and V that depend on the timestep: made once for each, and kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....ipadapter_core.adapter.attention import KV
from ..cache import ByteCache, number_of

_KEPT: ByteCache[KV] = ByteCache(2 << 30)  # one step of SD3.5 Large is 47 MB in bf16: a schedule of 40 steps
_AT_ONCE = 2  # timesteps that stay laid out on each device, since cond and uncond may run apart


@dataclass(eq=False)
class Timed:
    """What an application needs of an adapter whose tokens change with the timestep.

    make(timestep, device) gives K and V in the model's dtype. norms: block -> weights [d], in fp32, of the adapter's RMS norms of the
    picture's own queries and keys. owner, key: what K and V are kept by, the adapter and what it makes them of.
    """

    make: Callable[[float, torch.device], KV]
    norms: dict[int, tuple[Tensor, Tensor]]
    owner: Any
    key: tuple
    made: int = 0
    _current: OrderedDict[tuple, Any] = field(default_factory=OrderedDict)
    _placed: dict[tuple, tuple[Any, tuple[Tensor, ...]]] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.RLock)

    def kv(self, timestep: float, device: torch.device) -> KV:
        """Made once for each timestep while it is remembered; in system memory."""

        def make() -> KV:
            self.made += 1
            kv = self.make(timestep, device)
            return KV(kv.rows.cpu(), kv.slots)

        return _KEPT.get_or_make((number_of(self.owner), self.key, timestep), make, lambda kv: kv.rows.nbytes)

    def current(self, timestep: float, device: torch.device, make: Callable[[KV], Any]) -> Any:
        """What make(kv) gives, kept for the last timesteps of each device."""
        with self._lock:
            key = timestep, device
            if key not in self._current:
                self._current[key] = make(self.kv(timestep, device))
            self._current.move_to_end(key)
            while len([one for one in self._current if one[1] == device]) > _AT_ONCE:
                self._current.pop(next(one for one in self._current if one[1] == device))
            return self._current[key]

    def settle(self, blocks: Any, device: torch.device, dtype: torch.dtype) -> None:
        """For a call of the model with these joint_blocks: what turns its own norms of queries and keys into the adapter's."""
        for number, norms in self.norms.items():
            own = blocks[number].x_block.attn.ln_q, blocks[number].x_block.attn.ln_k
            state = tuple((number_of(norm.weight), None if norm.weight.is_inference() else norm.weight._version) for norm in own)
            if self._placed.get((number, device, dtype), (None, ()))[0] != state:
                both = tuple((theirs.to(device) / _weight(norm, theirs, device)).to(dtype) for norm, theirs in zip(own, norms, strict=True))
                self._placed[number, device, dtype] = state, both

    def norms_on(self, number: int, like: Tensor) -> tuple[Tensor, ...]:
        """What the block's q and k [..., d] are multiplied with."""
        return self._placed[number, like.device, like.dtype][1]


def _weight(norm: Any, like: Tensor, device: torch.device) -> Tensor:
    """The weight of an RMS norm, by calling it: quantised and offloaded ones are read by themselves alone."""
    return norm(torch.ones(1, like.shape[0], device=device))[0] * (1 + norm.eps) ** 0.5
