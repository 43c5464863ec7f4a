"""The calls that a sampler makes of a model, held open so that those of several models can be measured in turn."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from support import lab, synth

STACK_FRAMES = 128  # of `deeper`, that fill one piece of Python's stack


def hold(models: Sequence[Any], arch: str, size: int, body: Callable[[list[Callable]], None], sigma: float = 3.0) -> None:
    """Start ComfyUI's sampling with each model and give `body` one function for each: its model call with cond and uncond."""
    import comfy.sample
    import comfy.samplers

    noise = synth.noise("noise", (1, 4, size, size), 1.7)
    calls: list[Callable] = []

    def enter(left: Sequence[Any]) -> None:
        if not left:
            body(calls)
            return

        def sampler(model, x, sigmas, extra_args, callback, disable):
            calls.append(lambda: model(x, sigmas[:1], **extra_args))
            enter(left[1:])
            return x

        conds = lab.cond(arch), lab.cond(arch, tag="neg")
        sigmas = torch.tensor([sigma, 0.0])
        ksampler = comfy.samplers.KSAMPLER(sampler)
        comfy.sample.sample_custom(left[0], noise, 4.0, ksampler, sigmas, *conds, torch.zeros_like(noise), disable_pbar=True, seed=1)

    with torch.inference_mode():
        enter(models)


def seconds(call: Callable) -> float:
    """CPU seconds of this process: other programs on the machine hardly change them."""
    start = time.process_time()
    call()
    return time.process_time() - start


def deeper(call: Callable, frames: int) -> float:
    return deeper(call, frames - 1) if frames else seconds(call)


def medians(calls: Sequence[Callable], repetitions: int) -> list[tuple[float, float]]:
    """(seconds, times the first call's seconds) of each call: medians over rounds in which each runs once, in random order.

    Each round runs at another depth of Python's stack: CPython maps and unmaps memory at every call that crosses a border between
    pieces of its stack (16 kB), which makes either side up to a fifth slower wherever its layers happen to cross one.
    """
    chance = random.Random(0)
    for call in calls:
        call()  # warm, whatever ran before
    gc.collect()
    gc.disable()
    rounds = []
    for _ in range(repetitions):
        frames = chance.randrange(STACK_FRAMES)
        took = {i: deeper(calls[i], frames) for i in chance.sample(range(len(calls)), len(calls))}
        rounds.append([took[i] for i in range(len(calls))])
    gc.enable()
    return [(statistics.median(r[i] for r in rounds), statistics.median(r[i] / r[0] for r in rounds)) for i in range(len(calls))]
