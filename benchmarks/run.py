"""What the adapter costs: python benchmarks/run.py [--full] [--markdown], with COMFYUI_PATH naming a ComfyUI.

With and without the adapter in one run, on random weights: time, operations, host synchronisations and FLOPs of a model call, graph
breaks, bytes held and seconds for applying. Seconds are CPU time. Tiny models (UNets of 32 channels, narrow transformers, fp32) take ten
minutes on an idle core; --full adds the published sizes in bf16: time, FLOPs, bytes and applying (10 GB), for transformers with the
calls of one block of each stream, in fp32.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

import torch  # noqa: E402
from measure import FAMILIES, Bench  # noqa: E402
from measure_blocks import KINDS  # noqa: E402
from report import print_tables, print_transformer  # noqa: E402

from support import lab  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also at the published sizes")
    parser.add_argument("--full-only", action="store_true", help="at the published sizes alone")
    parser.add_argument("--arch", nargs="+", choices=("sd15", "sdxl", *KINDS), default=("sd15", "sdxl", *KINDS))
    parser.add_argument("--family", nargs="+", choices=tuple(FAMILIES), default=("plus",), help="faceid_plus: with the real insightface")
    parser.add_argument("--repetitions", type=int, default=60, help="timed model calls of each kind (SDXL: a third; 15 at full size)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", action="store_true", help="print markdown tables")
    options = parser.parse_args()
    if "COMFYUI_PATH" not in os.environ:
        parser.error("set COMFYUI_PATH to a ComfyUI folder, or run: python3 dev.py bench")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "models" / "ipadapter").mkdir(parents=True)
        (base / "custom_nodes").mkdir()
        lab.boot(Path(os.environ["COMFYUI_PATH"]).resolve(), base)
        lab.load_module("ipadapter_core", REPO / "ipadapter_core")
        pack = lab.load_module("ipadapter_pack", REPO).NODE_CLASS_MAPPINGS
        sizes = [True] if options.full_only else [False, True] if options.full else [False]
        for full in sizes:
            for arch in options.arch:
                if arch in KINDS:
                    print_transformer(KINDS[arch], full, options.repetitions, options.markdown)
                    continue
                for family in options.family:
                    bench = Bench(pack, base / "models", arch, family, full, options.repetitions)
                    print_tables(bench, options.markdown)
                    del bench


if __name__ == "__main__":
    main()
