"""Test-only node pack: faults on demand in a running server, and what its memory holds.

POST /faults {"place", "kind", "after"} arms one fault for the next time that a module of that place is about to run, `after` such
modules later: "oom" raises torch.OutOfMemoryError, "hold" waits there until somebody asks for an interrupt. GET /faults tells
whether it is "armed", "holding" or "fired". POST /forget empties the pack's caches. GET /memory measures.
"""

import ctypes
import gc
import sys
import time

import comfy.model_management
import psutil
import torch
from aiohttp import web
from server import PromptServer  # type: ignore[attr-defined]  (ComfyUI's, not tests/server)
from torch.nn.modules.module import register_module_forward_pre_hook

HELD_SECONDS = 30
NODE_CLASS_MAPPINGS = {}


def is_encoding(module: torch.nn.Module) -> bool:
    return type(module).__name__.startswith("CLIPVision")


def is_projecting(module: torch.nn.Module) -> bool:
    """Of the pack's own projections, whatever name ComfyUI has given the pack's package."""
    return type(module).__module__.endswith("ipadapter_core.adapter.projection")


def is_sampling(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "BasicTransformerBlock"


PLACES = {"encoding": is_encoding, "projecting": is_projecting, "sampling": is_sampling}


class Fault:
    """Stands in front of every module's forward from when it is armed until it fires, and nowhere else."""

    def __init__(self, place: str, kind: str, after: int):
        self.here, self.place, self.kind, self.left, self.state = PLACES[place], place, kind, after, "armed"
        self.handle = register_module_forward_pre_hook(self.before)

    def before(self, module: torch.nn.Module, _: tuple) -> None:
        if not self.here(module):
            return
        if self.left > 0:
            self.left -= 1
            return
        self.disarm()
        if self.kind == "oom":
            self.state = "fired"
            raise torch.OutOfMemoryError(f"out of memory in {self.place}, as the test asked for")
        self.state = "holding"
        deadline = time.monotonic() + HELD_SECONDS
        while not comfy.model_management.processing_interrupted() and time.monotonic() < deadline:
            time.sleep(0.005)
        self.state = "fired"

    def disarm(self) -> None:
        self.handle.remove()


def tensor_bytes() -> int:
    """Bytes of all tensors that Python knows of, memory that several share counted once."""
    found = {}
    for one in gc.get_objects():
        if isinstance(one, torch.Tensor) and one.device.type == "cpu":
            storage = one.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def trim() -> None:
    """Give memory that is free but kept by the C library back to the system, where the library can."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)


routes = PromptServer.instance.routes
armed: list[Fault] = []  # the last one


@routes.post("/faults")
async def arm(request: web.Request) -> web.Response:
    for fault in armed:
        fault.disarm()
    armed[:] = [Fault(**await request.json())]
    return web.json_response({})


@routes.get("/faults")
async def told(_: web.Request) -> web.Response:
    return web.json_response({"state": armed[0].state if armed else None})


@routes.post("/forget")
async def forget(_: web.Request) -> web.Response:
    caches = [one for one in gc.get_objects() if type(one).__name__ == "ByteCache"]
    for cache in caches:
        cache.clear()
    return web.json_response({"caches": len(caches)})


@routes.get("/memory")
async def memory(_: web.Request) -> web.Response:
    """Bytes: resident as they are, resident once garbage is collected and free memory given back, of those the process's own, and those
    of tensors; count of objects."""
    process = psutil.Process()
    raw = process.memory_info().rss
    gc.collect()
    trim()
    now = process.memory_info()
    kept = {"resident": now.rss, "own": now.rss - getattr(now, "shared", 0), "tensors": tensor_bytes(), "objects": len(gc.get_objects())}
    return web.json_response({"raw": raw, **kept})
