"""An application's layouts, kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..cache import ByteCache

LAYOUTS = 64
LAYOUT_BYTES = 256 << 20  # what they may copy of K and V: one for each of many frames is large
GRID_BYTES = 64 << 20  # masks on the grids of the layers


class LayoutKey(NamedTuple):
    """A layout is for one kind of model call on one device, in one dtype."""

    call: Hashable
    device: torch.device
    dtype: torch.dtype


@dataclass(eq=False)
class LayoutCache:
    """The last used layouts of every device, and the mask on each grid; several threads may ask at once. made: layouts made so far."""

    made: int = 0
    _layouts: OrderedDict[LayoutKey, Any] = field(default_factory=OrderedDict)
    _grids: ByteCache[Tensor] = field(default_factory=lambda: ByteCache(GRID_BYTES))
    _lock: Any = field(default_factory=threading.RLock)

    def layout(self, key: LayoutKey, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._layouts:
                self._layouts[key] = make()
                self.made += 1
            self._layouts.move_to_end(key)
            self._forget()
            return self._layouts[key]

    def grid(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        with self._lock:
            return self._grids.get_or_make(key, make, lambda grid: grid.nbytes)

    def beside(self) -> LayoutCache:
        """An empty one that shares the masks on the grids."""
        return LayoutCache(_grids=self._grids)

    def _forget(self) -> None:
        """The least recently used beyond the bounds; two stay for each device, since cond and uncond may run apart."""
        few = 2 * len({key.device for key in self._layouts})
        while len(self._layouts) > few and (len(self._layouts) > LAYOUTS or self.copied > LAYOUT_BYTES):
            self._layouts.popitem(last=False)

    @property
    def copied(self) -> int:
        """Bytes of K and V that the layouts hold beside the application's own."""
        return sum(layout.copied for layout in self._layouts.values())

    def __len__(self) -> int:
        return len(self._layouts)

    def clear(self) -> None:
        with self._lock:
            self._layouts.clear()
            self._grids.clear()
