"""The main job, shown: a real server runs workflows/*.json with and without the adapter. Started by `python3 dev.py demo`."""

import argparse
import io
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.convert import without_adapters
from support.rig import CACHE, REPO, Rig, adapter_nodes


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py demo", description="Run workflows on a real ComfyUI, with and without the adapter.")
    parser.add_argument("workflows", nargs="*", type=Path, default=sorted((REPO / "workflows").glob("simple*.json")))
    parser.add_argument("--models", type=Path, help="a models folder with real models; without it small random ones are made")
    parser.add_argument("--out", type=Path, default=REPO / "demo", help="folder of the pictures")
    parser.add_argument("--comfyui", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    models = args.models and args.models.resolve()
    print("starting ComfyUI with the pack ...", flush=True)
    with Rig(args.comfyui.resolve(), CACHE / ("demo-real" if models else "demo"), models) as rig:
        print(f"ComfyUI runs at {rig.server.url}, its log is {rig.server.log}")
        if not models:
            print("no --models given: small random models stand in, so the pictures are only noise that the reference changes")
        for workflow in args.workflows:
            show(rig, workflow, args.out)


def show(rig: Rig, workflow: Path, out: Path) -> None:
    """Run one workflow with and without its adapters, save both pictures and print how far they are apart."""
    print(f"\n{workflow.name}", flush=True)
    prompt = rig.prompt(workflow)
    versions = {"with": prompt, "without": without_adapters(prompt, adapter_nodes())}
    pixels = {}
    for kind, version in versions.items():
        started = time.monotonic()
        progress(kind, started, "queued")
        picture = rig.server.run(version, 3600, lambda line, kind=kind, t=started: progress(kind, t, line))[0]
        path = out / f"{workflow.stem}_{kind}_adapter.png"
        path.write_bytes(picture)
        pixels[kind] = np.asarray(Image.open(io.BytesIO(picture)), dtype=float)
        print(f"\r  {kind:7} adapter: {time.monotonic() - started:6.1f} s  {path}{' ' * 30}", flush=True)
    print(f"  mean difference per pixel: {np.abs(pixels['with'] - pixels['without']).mean():.1f} of 255")


def progress(kind: str, started: float, line: str) -> None:
    if sys.stdout.isatty():
        print(f"\r  {kind:7} adapter: {time.monotonic() - started:6.1f} s  {line.strip()[:70]:70}", end="", flush=True)


if __name__ == "__main__":
    main()
