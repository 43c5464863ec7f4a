"""A training loop that can be stopped and goes on from its last state."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


def rate(step: int, steps: int) -> float:
    """Warm-up in the first twentieth, then half a cosine down to a hundredth."""
    warm = max(1, steps // 20)
    return min(1.0, (step + 1) / warm) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def fit(
    state: Path, model: nn.Module, loss: Callable[[int], Tensor], steps: int, lr: float, decay: float = 0.0, every: int = 250
) -> nn.Module:
    """Trains `model` on loss(step); gives it back, or the running mean of its weights where there is a `decay`.

    `state` is the file that keeps the place.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    mean = deepcopy(model).requires_grad_(False) if decay else model
    first = 0
    if state.exists():
        kept = torch.load(state, weights_only=True)
        model.load_state_dict(kept["model"])
        mean.load_state_dict(kept["mean"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["step"]
    started, losses = time.monotonic(), []
    model.train()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * rate(step, steps)
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(value.detach())
        if decay:
            with torch.no_grad():
                share = min(decay, (step + 1) / (step + 10))
                for kept_value, trained in zip(mean.parameters(), model.parameters(), strict=True):
                    kept_value.lerp_(trained, 1 - share)
        if (step + 1) % every == 0 or step + 1 == steps:
            each = (time.monotonic() - started) / (step + 1 - first)
            log.info("%s: step %d of %d, loss %.4f, %.3f s a step", state.stem, step + 1, steps, torch.stack(losses).mean(), each)
            losses = []
            part = state.with_suffix(".part")
            kept = {"model": model.state_dict(), "mean": mean.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(kept, part)
            part.replace(state)
    return mean.eval()
