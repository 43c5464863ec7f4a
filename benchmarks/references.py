"""What Image Prompt costs: references side by side, with regions, each by itself, with a weight over the steps, and watched."""

from typing import Any, NamedTuple

import torch
from calls import hold, medians
from counts import compiled, operations, syncs
from measure import LAYERS, Bench

from support import lab

MIDDLE = {"sd15": 1, "sdxl": 10}  # cross-attentions of the middle block, which the published method includes
CURVE = "0:1, 1:0.2"
SIGMAS = (3.0, 2.5, 2.0, 1.5, 1.0)
KINDS: dict[str, dict[str, Any]] = {
    "1 reference": {"count": 1},
    "4 references, each its own weight": {"count": 4},
    "16 references, each its own weight": {"count": 16},
    "16 references, each its own weight and region": {"count": 16, "regions": True},
    "4 references, each by itself": {"count": 4, "join": "each by itself"},
    "1 reference with a curve over the steps": {"count": 1, "weight_over_steps": CURVE},
    "1 reference, watched": {"count": 1, "watched": True},
    "16 references, each its own weight, watched": {"count": 16, "watched": True},
}
MOST = 8  # operations per layer, side by side and not watched


class Cost(NamedTuple):
    """Of one of KINDS. operations: for each layer; syncs: in a model call; held: bytes."""

    kind: str
    ratio: float
    operations: float
    syncs: int
    held: int

    @property
    def target(self) -> tuple[str, bool | None]:
        how = KINDS[self.kind]
        return ("", None) if how.get("watched") or "join" in how else (f"at most {MOST}", self.operations <= MOST)


def prompted(bench: Bench, count: int, regions: bool = False, join: str = "side by side", watched: bool = False, **inputs: Any) -> Any:
    chain = None
    for number in range(count):
        region = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(number)) if regions else None
        given = dict(image=lab.images(1, 96, 96, f"{number}."), weight=1 - number / 32, role="everything", fit="center crop", tiles=2)
        chain = lab.call(bench.pack["ImagePromptReference"], **given, region=region, more=chain)[0]
    given = dict(model=bench.unet, ipadapter=bench.adapter, reference=chain, weight=0.8, clip_vision=bench.encoder)
    with torch.inference_mode():
        model = lab.call(bench.pack["ImagePrompt"], **given, join=join, method="as published", **inputs)[0]
    return lab.call(bench.pack["WatchImagePrompt"], model=model)[0] if watched else model


def costs(bench: Bench) -> list[Cost]:
    models = [prompted(bench, **kind) for kind in KINDS.values()]
    layers, found = LAYERS[bench.arch] + MIDDLE[bench.arch], []

    def body(calls: list) -> None:
        ratios = [ratio for _, ratio in medians(calls, max(bench.repetitions // 2, 3))]
        counted = [(operations(call).total(), syncs(call)) for call in calls]
        (plain, waits), *rest = counted
        for kind, model, ratio, (count, wait) in zip(KINDS, models, ratios[1:], rest, strict=True):
            found.append(Cost(kind, ratio, (count - plain) / layers, wait - waits, bench.held(model)))

    hold([bench.unet, *models], bench.arch, bench.size, body)
    return found


def curve_graphs(bench: Bench) -> tuple[int, list[int]]:
    """(graph breaks that a curve adds to a compiled UNet, graphs made new at each of SIGMAS)."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    plain = bench.unet.clone()
    set_torch_compile_wrapper(plain, backend="eager")
    model = prompted(bench, 1, weight_over_steps=CURVE)
    set_torch_compile_wrapper(model, backend="eager")
    found = []
    for one, sigmas in ((plain, SIGMAS[:1]), (model, SIGMAS)):
        torch._dynamo.reset()
        for sigma in sigmas:
            hold([one], bench.arch, bench.size, lambda calls: found.append(compiled(calls[0])), sigma)
    torch._dynamo.reset()
    (breaks, _), *steps = found
    return sum(broken for broken, _ in steps[:1]) - breaks, [graphs for _, graphs in steps]
