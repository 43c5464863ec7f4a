"""Counts what one call does: dispatched operations, host synchronisations, FLOPs, graph breaks and graphs of torch.compile."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

aten = torch.ops.aten
READS = (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist)  # they read the memory without an operation
# item, float(), int(), bool() and indexing with a tensor all end in the first of these
SYNCS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default)


class _Operations(TorchDispatchMode):
    """Counts what is dispatched, composite operations as what they are made of (in inference mode they arrive whole)."""

    def __init__(self):
        super().__init__()
        self.found = Counter()
        self.syncs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:
            parts = func.decompose(*args, **(kwargs or {}))
        if parts is not NotImplemented:
            return parts
        self.found[str(func)] += 1
        by_mask = func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.syncs += by_mask or func in SYNCS
        return func(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in READS
        return func(*args, **(kwargs or {}))


def operations(call: Callable) -> Counter:
    """Operation -> how often the call dispatches it."""
    with _Operations() as mode:
        call()
    return mode.found


def syncs(call: Callable) -> int:
    """How often the host waits for a value: item, cpu, tolist, bool, float, int, nonzero, numpy, a mask as an index."""
    with _Reads() as reads, _Operations() as mode:
        call()
    return reads.count + mode.syncs


def _attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)  # torch counts it by itself for the kernels of GPUs only


def flops(call: Callable) -> int:
    mode = FlopCounterMode(display=False, custom_mapping={aten._scaled_dot_product_flash_attention_for_cpu: _attention})
    with mode:
        call()
    return mode.get_total_flops()


def compiled(call: Callable) -> tuple[int, int]:
    """(graph breaks, graphs) that torch.compile makes new for this call of a compiled model."""
    torch._dynamo.utils.counters.clear()
    call()
    counters = torch._dynamo.utils.counters
    return sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]
