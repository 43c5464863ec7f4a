"""Damaged and forged adapter files through the real loader node and an apply node: python3 dev.py fuzz --count 10000 --seed 0.

Every file works with finite K and V or is refused in one sentence of ours that names it. No other exception, no code run, no file left
open or mapped, memory bounded by the file's size, no file that takes long. The exit code is 1 if one does otherwise.
"""

import argparse
import faulthandler
import gc
import logging
import os
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from support import forge, headers, lab, mutate, narrow

KINDS: dict[str, mutate.Mutation] = {**mutate.BYTES, **mutate.TENSORS, **headers.HEADERS, **forge.PICKLES, **forge.ZIPS, **forge.OTHERS}
SECONDS = 5.0  # of the processor, that one file may take: a busy machine makes no file slow
# Memory above what there was before: so many times the file, and what the models themselves need (an SDXL base's K and V, Kolors' layers).
TIMES, FREE = 16, 48 << 20
_TO_DO = re.compile(r"Download|Use |Choose|Unpack|Load|Connect|models/|Run|Check")
REPO = Path(__file__).resolve().parents[2]


@dataclass
class Table:
    """What became of the files of each kind, and what should not have."""

    loaded: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)
    sentences: Counter = field(default_factory=Counter)
    peak: int = 0  # bytes above what there was before a file
    slowest: float = 0.0

    def __str__(self) -> str:
        failed = Counter(kind for kind, _ in self.failures)
        rows = [(kind, self.loaded[kind], self.refused[kind], failed[kind]) for kind in KINDS]
        rows.append(("all", self.loaded.total(), self.refused.total(), failed.total()))
        lines = [f"{'kind of mutation':32}{'files':>8}{'loaded':>8}{'refused':>9}{'failures':>10}"]
        lines += [f"{kind:32}{loaded + refused + bad:8}{loaded:8}{refused:9}{bad:10}" for kind, loaded, refused, bad in rows]
        return "\n".join(lines)


class Fuzz:
    """Puts files into `folder` (models/ipadapter) and the nodes to them."""

    def __init__(self, pack: dict[str, type], folder: Path):
        from ipadapter_pack.ipadapter_core.errors import IPAdapterError
        from ipadapter_pack.nodes.host.load.adapter import _KV_CACHE

        self.error, self.projected = IPAdapterError, _KV_CACHE
        self.models = narrow.Models(pack)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for family in narrow.FAMILIES:  # everything that is made once is made before anything is measured
            self._try(family, narrow.content(family, "safetensors"), ".safetensors")

    def run(self, count: int, seed: int, tell: Callable[[Table], None] = lambda table: None, only: str = "") -> Table:
        table = Table()
        kinds = [kind for kind in KINDS if only in kind]
        gc.collect()
        gc.freeze()
        with _in_a_folder_of_its_own():
            for number in range(count):
                self._one(kinds[number % len(kinds)], f"{seed} {number}", table)
                if number % 500 == 499:
                    tell(table)
        gc.unfreeze()
        return table

    def _one(self, kind: str, seed: str, table: Table) -> None:
        rng = random.Random(seed)
        family = rng.choices(list(narrow.FAMILIES), [share for *_, share in narrow.FAMILIES.values()])[0]
        container = rng.choice(("safetensors", "safetensors", "zip", "zip", "legacy"))
        with warnings.catch_warnings():  # of torch's, about kinds of tensors that it no longer likes
            warnings.simplefilter("ignore")
            content = KINDS[kind](rng, mutate.Subject(family, container))
        own = ".safetensors" if container == "safetensors" else ".bin"
        suffix = own if rng.random() < 0.85 else rng.choice((".safetensors", ".bin", ".pt", ".ckpt"))
        faulthandler.dump_traceback_later(20 * SECONDS, exit=True)  # torch can be in a loop that nothing interrupts
        before, started = _reset_peak(), time.process_time()
        try:
            outcome = self._try(family, content, suffix)
            if outcome:
                table.refused[kind] += 1
                table.sentences[outcome.replace("fuzz" + suffix, "X")] += 1
            else:
                table.loaded[kind] += 1
        except Exception:
            table.failures.append((kind, f"seed {seed!r}, {family} {container}{suffix}, {len(content)} bytes\n{traceback.format_exc()}"))
            return
        finally:
            faulthandler.cancel_dump_traceback_later()
        seconds, grown = time.process_time() - started, _peak() - before
        table.slowest, table.peak = max(table.slowest, seconds), max(table.peak, grown)
        for wrong, what in (
            (seconds > SECONDS, f"{seconds:.1f} s"),
            (grown > FREE + TIMES * len(content), f"{grown >> 20} MB above before"),
        ):
            if wrong:
                table.failures.append((kind, f"seed {seed!r}, {family} {container}{suffix}, {len(content)} bytes: {what}"))

    def _try(self, family: str, content: bytes, suffix: str) -> str:
        """ "" for a file that works, else the sentence it is refused with. Raises AssertionError for what a file must not do."""
        path = self.folder / ("fuzz" + suffix)
        path.write_bytes(content)
        handles = _handles()
        try:
            sentence = self._used(family, path.name)
        finally:
            path.unlink()
            self.projected.clear()
        assert not forge.MARKER.exists(), "code was run"
        assert _handles() == handles, f"left open: {_handles() - handles}"
        if str(path) in _maps():
            gc.collect()
            assert str(path) not in _maps(), "left mapped"
        return sentence

    def _used(self, family: str, name: str) -> str:
        try:
            rows = narrow.kv_rows(self.models.apply(self.models.load(name), family))
        except self.error as error:
            return _checked(str(error), name)
        assert rows and all(torch.isfinite(row).all() for row in rows), "K or V is not finite"
        return ""


def _checked(sentence: str, name: str) -> str:
    """A sentence as people should see it: on one line, readable, not too long, naming the file and what to do."""
    assert name in sentence, sentence
    assert sentence.isprintable() and len(sentence) < 600, f"{len(sentence)}: {sentence[:2000]!r}"
    assert sentence.endswith(".") and _TO_DO.search(sentence), sentence
    return sentence


@contextmanager
def _in_a_folder_of_its_own() -> Iterator[None]:
    """Where MARKER would be made."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _handles() -> set[str]:
    """Open files; empty where the system does not list them."""
    if sys.platform != "linux":
        return set()
    return {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()}


def _maps() -> str:
    return Path("/proc/self/maps").read_text() if sys.platform == "linux" else ""


def _status(field_name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field_name))


def _reset_peak() -> int:
    """What the process holds; its peak is counted from here, where the system can."""
    if sys.platform != "linux":
        return 0
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM") if sys.platform == "linux" else 0


def main() -> int:
    import resource  # not on Windows

    parser = argparse.ArgumentParser(prog="dev.py fuzz", description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"))
    parser.add_argument("--count", type=int, default=10_000, help="how many files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds of mutation with this in their name")
    parser.add_argument("--sentences", action="store_true", help="print what was said, and how often")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        for folder in ("models", "input", "output", "custom_nodes", "temp", "user"):
            (Path(base) / folder).mkdir()
        lab.load_module("ipadapter_core", REPO / "ipadapter_core")
        logging.disable(logging.WARNING)
        lab.boot(options.comfyui, Path(base))
        fuzz = Fuzz(dict(lab.load_module("ipadapter_pack", REPO).NODE_CLASS_MAPPINGS), Path(base) / "models" / "ipadapter")
        started = time.perf_counter()
        table = fuzz.run(options.count, options.seed, lambda table: print(".", end="", file=sys.stderr, flush=True), options.only)
    for kind, text in table.failures[:20]:
        print(f"\nFAILURE {kind}: {text}")
    if options.sentences:
        print("\n".join(f"{count:6} {sentence}" for sentence, count in table.sentences.most_common()))
    print(f"\n{table}\n")
    print(
        f"{time.perf_counter() - started:.0f} s, slowest file {table.slowest:.2f} s; at most {table.peak >> 20} MB for a file above "
        f"what there was, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB in all"
    )
    return 1 if table.failures else 0


if __name__ == "__main__":
    sys.exit(main())
