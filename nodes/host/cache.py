"""Values kept by what they were made from, with a bound on the bytes they hold. They lie in system memory, whatever ComfyUI's flags say."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

T = TypeVar("T")

_numbers: MutableMapping[Any, int] = WeakIdKeyDictionary()
_next_number = itertools.count()
_caches: weakref.WeakSet[ByteCache] = weakref.WeakSet()


class ByteCache(Generic[T]):
    """Least recently used values go first once all together hold more than `limit` bytes.

    A key that is a tuple begins with number_of() the object that the value belongs to: the value goes when that object goes.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.held = 0
        self._entries: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._gone: deque[int] = deque()
        _caches.add(self)

    def get(self, key: Hashable) -> T | None:
        with self._locked():
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Hashable, value: T, size: int) -> None:
        with self._locked():
            self._remove(key)
            if size > self.limit:
                return
            self._entries[key] = value, size
            self.held += size
            while self.held > self.limit:
                self._remove(next(iter(self._entries)))

    def get_or_make(self, key: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        value = self.get(key)
        if value is None:
            value = make()
            self.put(key, value, size(value))
        return value

    def clear(self) -> None:
        with self._locked():
            self._entries.clear()
            self.held = 0

    def forget(self, number: int) -> None:
        """Drop what belongs to the object of that number. The garbage collector may call it in the middle of any other method."""
        self._gone.append(number)
        self._drop_gone()

    def _remove(self, key: Hashable) -> None:
        if key in self._entries:
            self.held -= self._entries.pop(key)[1]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            yield
        self._drop_gone()

    def _drop_gone(self) -> None:
        while self._gone and self._lock.acquire(blocking=False):  # who holds the lock comes here after
            try:
                gone = {self._gone.popleft() for _ in range(len(self._gone))}
                for key in [key for key in self._entries if isinstance(key, tuple) and key[0] in gone]:
                    self._remove(key)
            finally:
                self._lock.release()


def empty_caches() -> int:
    """Forget everything that is kept; returns how many bytes that were."""
    held = sum(cache.held for cache in _caches)
    for cache in _caches:
        cache.clear()
    return held


def number_of(owner: Any) -> int | None:
    """The object's own number, never given to another; None for one that cannot be weakly referenced: nothing tells when it goes."""
    try:
        number = _numbers.get(owner)
    except TypeError:
        return None
    if number is None:
        number = _numbers[owner] = next(_next_number)
        weakref.finalize(owner, _forget, number).atexit = False
    return number


def _forget(number: int) -> None:
    for cache in _caches:
        cache.forget(number)


def digest(tensor: Tensor) -> bytes:
    """A fingerprint of a tensor's dtype, shape and content."""
    flat = tensor.detach().cpu().contiguous()
    content = hashlib.sha256(f"{flat.dtype}{tuple(flat.shape)}".encode())
    content.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return content.digest()


def digests(batch: Tensor) -> list[bytes]:
    """The fingerprints of the entries of [n, ...], on all cores at once (hashlib lets go of the interpreter) and never all copied."""
    if len(batch) == 1:
        return [digest(batch[0])]
    with ThreadPoolExecutor(min(len(batch), os.cpu_count() or 1)) as pool:
        return list(pool.map(digest, batch))
