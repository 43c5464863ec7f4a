"""Large work at three sizes each: python benchmarks/large.py [CASE ...], with COMFYUI_PATH naming a ComfyUI.

A thousand frames in context windows, many pictures, many references side by side, stacked adapters, a huge mask, a huge reference and a
very long one, through the real nodes and a narrow UNet. Each size runs in a process of its own. Ends with 1 where the largest size takes
more than a straight line through the two smaller ones allows. The slack, 35 % of the line's rise and FLOOR on top, is what the seconds of
an equal run and the C library's way of keeping memory differ by on a shared machine; doing twice the work for each piece of
twice as many rises by 100 % more.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from report import print_table

CASES = {  # case of large_cases.py -> title, sizes as it takes them, and what grows with them
    "frames": ("frames with a picture, weight and mask each", (256, 512, 1024), 1),
    "pictures": ("pictures of 256 x 256, averaged", (128, 256, 512), 1),
    "tiles": ("pictures of 256 x 256 in four tiles each", (64, 128, 256), 1),
    "references": ("references side by side", (16, 32, 64), 1),
    "adapters": ("stacked adapters", (2, 4, 8), 1),
    "mask": ("pixels, the side of a mask", (1024, 2048, 4096), 2),
    "reference": ("pixels, the side of a reference", (1000, 2000, 4000), 2),
    "line": ("pixels, the length of a reference one pixel high", (1000, 2000, 4000), 1),
    "tiled_line": ("pixels, the same cut into tiles", (1000, 2000, 4000), 1),
}
SLACK, FLOOR = 0.35, {"seconds": 0.3, "peak": 32e6}


@dataclass(frozen=True)
class Measured:
    """One size of a case; `amount` is what the work should grow with."""

    amount: int
    seconds: float
    peak: int
    updates: int
    stopped: float | None


def measured(case: str, sizes: tuple[int, ...], power: int) -> list[Measured]:
    command = [sys.executable, str(Path(__file__).with_name("large_cases.py")), case, *map(str, sizes)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{case} failed:\n{ran.stderr[-3000:]}")
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    return [Measured(size**power, **json.loads(line)) for size, line in zip(sizes, lines, strict=True)]


def linear(found: list[Measured], name: str) -> bool:
    """Whether the third lies on or below the line through the first two, slack allowed."""
    (a, b, c), (first, second, third) = (one.amount for one in found), (getattr(one, name) for one in found)
    rise = max(second - first, 0) * (c - b) / (b - a)
    return third <= second + rise * (1 + SLACK) + FLOOR[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], default=list(CASES))
    parser.add_argument("--markdown", action="store_true", help="print markdown tables")
    options = parser.parse_args()
    if "COMFYUI_PATH" not in os.environ:
        parser.error("set COMFYUI_PATH to a ComfyUI folder, or run: python3 dev.py large")
    lines, missed = [], False
    for case in options.cases:
        title, sizes, power = CASES[case]
        found = measured(case, sizes, power)
        met = {name: linear(found, name) for name in FLOOR}
        missed = missed or not all(met.values())
        for size, one in zip(sizes, found, strict=True):
            stopped = "ran to its end" if one.stopped is None else f"{one.stopped:.2f} s"
            line = (f"{size} {title}", f"{one.seconds:.2f} s", f"{one.peak / 1e6:.0f} MB", f"{one.updates}", stopped)
            verdict = "" if size != sizes[-1] else ", ".join(name for name, ok in met.items() if not ok) or "linear or better"
            lines.append((*line, verdict if size != sizes[-1] or all(met.values()) else f"MISSED: {verdict}"))
            print("  " + "  ".join(lines[-1]), file=sys.stderr, flush=True)
    head = ("", "CPU time", "peak above the inputs", "progress updates", "stops after", "growth")
    print_table("Large work, 32 channels, fp32", head, lines, options.markdown)
    sys.exit(missed)


if __name__ == "__main__":
    main()
