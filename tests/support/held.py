"""What a value keeps alive, by a walk through containers, attributes, closures and bound methods; and what the process holds."""

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


class Peak:
    """The most memory this process has held while the block ran, sampled, in bytes above what it held before."""

    def __enter__(self):
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
