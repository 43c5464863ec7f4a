"""Values kept by what they were made from, with a bound on the bytes they hold."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class ByteCache(Generic[T]):
    """Least recently used values go first once all together hold more than `limit` bytes."""

    def __init__(self, limit: int):
        self.limit = limit
        self.held = 0
        self._entries: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Hashable, value: T, size: int) -> None:
        self.drop(key)
        if size > self.limit:
            return
        self._entries[key] = value, size
        self.held += size
        while self.held > self.limit:
            _, (_, freed) = self._entries.popitem(last=False)
            self.held -= freed

    def drop(self, key: Hashable) -> None:
        if key in self._entries:
            self.held -= self._entries.pop(key)[1]

    def get_or_make(self, key: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        value = self.get(key)
        if value is None:
            value = make()
            self.put(key, value, size(value))
        return value

    def clear(self) -> None:
        self._entries.clear()
        self.held = 0


def digest(tensor: Tensor) -> bytes:
    """A fingerprint of a tensor's dtype, shape and content."""
    flat = tensor.detach().cpu().contiguous()
    content = hashlib.sha256(f"{flat.dtype}{tuple(flat.shape)}".encode())
    content.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return content.digest()
