"""The figures of world/models/proof.json as the tables of world/README.md."""

from __future__ import annotations

from collections.abc import Mapping

from support.measures import ALL
from support.proof import Share
from support.world_models import REPO

README = REPO / "world" / "README.md"
MARKS = "<!-- figures: written by `python3 dev.py proof` -->\n", "<!-- end of figures -->\n"
Figures = Mapping[str, Mapping[str, list[int]]]


def cell(share: Share) -> str:
    low, high = share.interval
    return f"{100 * share.value:.0f} ({100 * low:.0f}-{100 * high:.0f})"


def tables(figures: Figures) -> str:
    """Measures of all attributes as rows of one table, the others as rows of a second."""
    shares = {name: {one: Share(*share) for one, share in found.items()} for name, found in figures.items()}
    lines = [f"| right in % (95 % interval) | n | {' | '.join(ALL)} |", f"|{'---|' * (len(ALL) + 2)}"]
    for name, found in shares.items():
        if set(ALL) <= set(found):
            lines.append(f"| {name} | {found[ALL[0]].n} | {' | '.join(cell(found[one]) for one in ALL)} |")
    lines += ["", "| right in % (95 % interval) | n | |", "|---|---|---|"]
    for name, found in shares.items():
        rest = {one: share for one, share in found.items() if one not in ALL or not set(ALL) <= set(found)}
        lines += [f"| {name}: {one} | {share.n} | {cell(share)} |" for one, share in rest.items()]
    return "\n".join(lines) + "\n"


def write(figures: Figures) -> None:
    """Between the marks of world/README.md."""
    before, rest = README.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    README.write_text(before + MARKS[0] + tables(figures) + MARKS[1] + after, encoding="utf-8")
