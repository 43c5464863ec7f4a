"""K and V that depend on the timestep: made once for each, and kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....ipadapter_core.adapter.attention import KV
from ..cache import ByteCache, number_of
from .kv_patcher import KVPatcher, empty_patcher

_KEPT: ByteCache[KV] = ByteCache(3 << 29)
_AT_ONCE = 2  # timesteps that stay laid out on each device, since cond and uncond may run apart


class Norms(NamedTuple):
    """What turns the model's own RMS norms of queries and keys into the adapter's, on the picture's keys alone:

    q' [k', k_ip]^T = q [k a b, k_ip a]^T,  a and b [d] the adapter's weights over the model's, of queries and of keys.
    own: block -> a b in the model's dtype; prompt: block -> a; state: of the model's weights, and where these lie. raw: block -> its part
    for the picture, where a weight of the model's is too near 0 to divide by: q and k are then taken under norms without weights.
    """

    own: Mapping[int, Tensor]
    prompt: Mapping[int, Tensor]
    raw: Mapping[int, Any]
    state: tuple
    device: torch.device


@dataclass(eq=False)
class Timed:
    """What an application needs of an adapter whose tokens change with the timestep.

    make(timestep, device) gives K and V in the model's dtype, `size` bytes. norms: block -> weights [d], in fp32, of the adapter's RMS
    norms of the picture's own queries and keys. owner, key: what K and V are kept by, the adapter and what it makes them of.

    K and V of all timesteps are kept in system memory, 1.5 GB for all adapters together: one timestep of SD3.5 Large is 47 MB in bf16
    (38 blocks, 64 tokens, both sides), so that the 28 steps of its usual schedule are made once and those of a longer one anew. On the
    device lie the last two timesteps alone, counted by `patcher` together with what layouts copy of them.
    """

    make: Callable[[float, torch.device], KV]
    norms: dict[int, tuple[Tensor, Tensor]]
    owner: Any
    key: tuple
    size: int
    patcher: KVPatcher = field(default_factory=empty_patcher)
    made: int = 0
    _current: OrderedDict[tuple, Any] = field(default_factory=OrderedDict)
    _placed: dict[tuple, Norms] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.patcher.held.layouts.add(self)

    def kv(self, timestep: float, device: torch.device) -> KV:
        """Made once for each timestep while it is remembered; in system memory."""

        def make() -> KV:
            self.made += 1
            kv = self.make(timestep, device)
            return KV(kv.rows.cpu(), kv.slots)

        return _KEPT.get_or_make((number_of(self.owner), self.key, timestep), make, lambda kv: kv.rows.nbytes)

    def current(self, timestep: float, norms: Norms, make: Callable[[KV], Any]) -> Any:
        """What make(kv) gives of K and V on the norms' device, kept for the last timesteps there."""
        with self._lock:
            key = timestep, norms.device, norms.state
            if key not in self._current:
                self._current[key] = make(self.kv(timestep, norms.device).times(norms.prompt, norms.device))
            self._current.move_to_end(key)
            while len([one for one in self._current if one[1] == norms.device]) > _AT_ONCE:
                self._current.pop(next(one for one in self._current if one[1] == norms.device))
            return self._current[key]

    @property
    def copied(self) -> int:
        """Bytes on the device, of as many timesteps as stay there even before they are made: room is asked for when sampling starts."""
        return max(_AT_ONCE * self.size, sum(one.kv.rows.nbytes + one.layouts.copied for one in list(self._current.values())))

    def clear(self) -> None:
        with self._lock:
            self._current.clear()

    def settle(self, blocks: Any, device: torch.device, dtype: torch.dtype) -> Norms:
        """For a call of the model with these joint_blocks."""
        state = tuple(_state(norm.weight) for number in self.norms for norm in _own(blocks[number]))
        placed = self._placed.get((device, dtype))
        if placed is None or placed.state != state:
            own, prompt, raw = {}, {}, {}
            for number, theirs in self.norms.items():
                a, b = (weight.to(device) for weight in theirs)
                of_q, of_k = (_weight(norm, a, device) for norm in _own(blocks[number]))
                if torch.stack([of_q, of_k]).abs().min() < 2 * torch.finfo(dtype).tiny ** 0.5:  # a b has to be in its range
                    raw[number] = blocks[number].x_block
                else:
                    a, b = a / of_q, b / of_k
                own[number], prompt[number] = (a * b).to(dtype), a
            placed = self._placed[device, dtype] = Norms(own, prompt, raw, state, device)
        return placed

    def settled(self, like: Tensor) -> Norms:
        """For the device and dtype of queries and keys."""
        return self._placed[like.device, like.dtype]


def _own(block: Any) -> tuple[Any, Any]:
    """The model's RMS norms of the picture's queries and keys in a joint block."""
    return block.x_block.attn.ln_q, block.x_block.attn.ln_k


def _state(weight: Any) -> tuple:
    """Another one whenever the weight is another: ComfyUI puts a new parameter in place of one that it patches."""
    return number_of(weight), weight._version if isinstance(weight, Tensor) and not weight.is_inference() else None


def _weight(norm: Any, like: Tensor, device: torch.device) -> Tensor:
    """The weight of an RMS norm, by calling it: quantised and offloaded ones are read by themselves alone."""
    return norm(torch.ones(1, like.shape[0], device=device))[0] * (1 + getattr(norm, "eps", 1e-6)) ** 0.5
