"""POST /free, by which ComfyUI is told to let go of memory."""

from __future__ import annotations

import logging
import sys
from typing import Any

from .cache import empty_caches

log = logging.getLogger(__name__)


def empty_on_free() -> None:
    """Our caches are emptied when /free is asked for, told by aiohttp's own signal; does nothing where ComfyUI runs without a server."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and not server.app.on_response_prepare.frozen:
        server.app.on_response_prepare.append(_answered)


async def _answered(request: Any, response: Any) -> None:
    if request.method == "POST" and request.path in ("/free", "/api/free") and response.status == 200:
        wanted = await request.json()
        if wanted.get("unload_models") or wanted.get("free_memory"):
            log.info("IP-Adapter let go of %.0f MB of encoded pictures and projected K and V.", empty_caches() / 2**20)
