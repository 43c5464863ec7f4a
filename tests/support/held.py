"""What a value keeps alive, by a walk through containers, attributes, closures and bound methods; and what the process holds."""

import ctypes
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import psutil
import torch


def reachable(value: Any) -> Iterator[Any]:
    """`value` and every object it holds, each once; modules of Python, classes and the globals of functions are left out."""
    seen, todo = {}, [value]
    while todo:
        one = todo.pop()
        if id(one) in seen or one is None or isinstance(one, (str, bytes, int, float, type, types.ModuleType)):
            continue
        seen[id(one)] = one
        yield one
        if isinstance(one, dict):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset)):
            todo += one
        elif isinstance(one, types.MethodType):
            todo += [one.__self__, one.__func__]
        elif isinstance(one, types.FunctionType):
            todo += [cell.cell_contents for cell in one.__closure__ or ()] + list(one.__defaults__ or ())
        else:
            todo.append(getattr(one, "__dict__", None))


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors that `value` holds, memory that several share counted once."""
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in reachable(value) if isinstance(one, torch.Tensor)}
    return sum(storage.nbytes() for storage in storages.values())


MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD, see mallopt(3)


class Peak:
    """The most memory this process has held while the block ran, sampled, in bytes above what it held before.

    glibc keeps freed pieces of up to 32 MB for itself, more or less of them each time (130 to 780 MB in test_sd3, which needs 160), unless
    it is told from which size on a piece goes back to the system.
    """

    def __enter__(self):
        if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
            mallopt(MMAP_THRESHOLD, 1 << 20)
        self.process = psutil.Process()
        self.before = self.bytes = self.process.memory_info().rss
        self.running = True
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while self.running:
            self.bytes = max(self.bytes, self.process.memory_info().rss)
            time.sleep(0.05)

    def __exit__(self, *_):
        self.running = False
        self.thread.join()

    @property
    def grown(self) -> int:
        return self.bytes - self.before
