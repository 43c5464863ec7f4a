"""Every claim that is measured in the tiny world, by its name in the table of world/README.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from support import measure_maps, measures, measures_beside, measures_prompt
from support.measures import Shares
from support.proof import World

Measure = Callable[[World, int], Shares]
FAMILIES = ("standard", "plus")
ON_FINE_TUNED = "on the fine-tuned base"
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
TYPES = (
    "ease in", "ease out", "ease in-out", "reverse in-out", "weak input", "weak output", "weak middle", "strong middle",
    "style transfer", "composition", "strong style transfer", "style and composition", "style transfer precise", "composition precise",
)  # fmt: skip


def of_family(family: str) -> Iterator[tuple[str, Measure]]:
    for weight in WEIGHTS:
        yield f"weight {weight:g}", lambda w, n, x=weight: measures.weighted(w, n, family, x)
    for weight in (0.5, 0.75, 1.0):
        yield f"text names the background, weight {weight:g}", lambda w, n, x=weight: measures.text_and_picture(w, n, family, x)
    yield "two halves by mask", lambda w, n: measures.halves(w, n, family)
    yield "maps", lambda w, n: measure_maps.maps(w, n, family)
    yield "negative picture", lambda w, n: measures.negative(w, n, family)
    yield "start_at 0.3", lambda w, n: measures.weighted(w, n, family, 1.0, start_at=0.3)
    yield "end_at 0.5", lambda w, n: measures.weighted(w, n, family, 1.0, end_at=0.5)
    for combine in ("concat", "average"):
        yield f"two references, {combine}", lambda w, n, c=combine: measures.several(w, n, family, c)
    yield "embeds saved and loaded", lambda w, n: measures.saved_embeds(w, n, family)
    for weight in WEIGHTS[1:]:
        yield f"Image Prompt, weight {weight:g}", lambda w, n, x=weight: measures_prompt.weighted(w, n, family, x)
    yield "Image Prompt as IPAdapter Plus", lambda w, n: measures_prompt.weighted(w, n, family, method="as IPAdapter Plus")
    for weight, start in ((0.5, 0.0), (1.0, 0.4)):
        name = f"Image Prompt, text names the background, weight {weight:g}" + (f" from {start:g} on" if start else "")
        yield name, lambda w, n, x=weight, s=start: measures_prompt.text_and_picture(w, n, family, x, s)
    yield "Image Prompt, two halves by region", lambda w, n: measures_prompt.halves(w, n, family)
    yield "with the LoRA", lambda w, n: measures_beside.with_lora(w, n, family)
    yield ON_FINE_TUNED, lambda w, n: measures_beside.fine_tuned(w, n, family)


def every() -> dict[str, Measure]:
    found: dict[str, Measure] = {
        "text alone": measures.text_alone,
        "text alone, 30 steps": lambda w, n: measures.text_alone(w, n, 30),
        "neutral text, no adapter": measures.without,
    }
    for family in FAMILIES:
        found |= {f"{family}, {name}": measure for name, measure in of_family(family)}
    found["standard and plus at 0.5 each"] = measures_beside.both_adapters
    for name in TYPES:
        found[f"standard, {name}"] = lambda w, n, x=name: measures.weighted(w, n, "standard", 1.0, weight_type=x)
    return found
