"""Measures the claims of claims.py with n pictures each, for world/models/proof.json and world/README.md: `python3 dev.py proof`."""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import claims, measures_beside, proof, proof_table
from support.world_models import MODELS


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py proof", description="Measure in the tiny world what image prompts do.")
    parser.add_argument("--count", type=int, default=200, help="pictures of each measure")
    parser.add_argument("--only", default="", help="the measures whose name this regular expression finds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=MODELS / "proof.json", help="where the figures go")
    parser.add_argument("--comfyui", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as base:
        for folder in ("models", "input", "output", "custom_nodes", "temp", "user"):
            (Path(base) / folder).mkdir()
        world = proof.start(args.comfyui.resolve(), Path(base))
        figures = json.loads(args.out.read_text()) if args.out.exists() else {}
        for name, measure in claims.every().items():
            if not re.search(args.only, name):
                continue
            if name.endswith(claims.ON_FINE_TUNED) and not measures_beside.FINE_TUNED.exists():
                print(f"{name}: left out, for {measures_beside.FINE_TUNED} is missing, which `python3 dev.py world` makes")
                continue
            started = time.monotonic()
            shares = measure(world, args.count)
            figures[name] = {one: [share.right, share.n] for one, share in shares.items()}
            print(f"{name}  ({time.monotonic() - started:.0f} s)")
            for one, share in shares.items():
                print(f"    {one}: {share}", flush=True)
            args.out.write_text(json.dumps(figures, indent=1) + "\n")
    if args.out == MODELS / "proof.json":
        proof_table.write(figures)


if __name__ == "__main__":
    main()
