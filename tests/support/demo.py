"""The main job, shown: a real server runs workflows/*.json with and without the adapter. Started by `python3 dev.py demo`.

By default on the tiny world's trained models (see world/README.md), whose pictures say by themselves whether it works: a contact sheet
of the first example, and some others as they are. With --models on real ones.
"""

import argparse
import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import sheet
from support.convert import without_adapters
from support.rig import CACHE, REPO, Rig, adapter_nodes, example
from support.thumbnails import prompt_of, put_references, shown
from support.world_models import scenes_module, world_models

OTHERS = "03", "10", "12", "33"  # of one reference


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py demo", description="Run workflows on a real ComfyUI, with and without the adapter.")
    parser.add_argument("workflows", nargs="*", type=Path, help="workflow files (default: the first and others; with --models two)")
    parser.add_argument("--models", type=Path, help="a models folder with real models; without it the tiny world's are used")
    parser.add_argument("--out", type=Path, default=REPO / "demo", help="folder of the pictures")
    parser.add_argument("--comfyui", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    models = args.models and args.models.resolve()
    print("starting ComfyUI with the pack ...", flush=True)
    base = CACHE / ("demo-real" if models else "demo")
    with Rig(args.comfyui.resolve(), base, models or world_models(base), real=models is not None) as rig:
        print(f"ComfyUI runs at {rig.server.url}, its log is {rig.server.log}")
        if models:
            for workflow in args.workflows or [example("01"), example("02")]:
                show(rig, workflow, args.out)
        else:
            for workflow in args.workflows or [example("01")]:
                show_world(rig, workflow, args.out)
            for number, workflow in enumerate([] if args.workflows else map(example, OTHERS)):
                show_as_it_is(rig, workflow, number)


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


def show_world(rig: Rig, workflow: Path, out: Path) -> None:
    """Run one workflow on the tiny world for some references, print what was asked and what came out, and draw the contact sheet."""
    scenes = scenes_module()
    prompt = sheet.in_the_world(sheet.with_loaders(rig.prompt(workflow)), rig.info)
    print(f"\n{workflow.name}: the prompt says '{scenes.NEUTRAL}', the reference says the rest", flush=True)
    rows = []
    for name, scene, picture in sheet.references(scenes):
        picture.save(rig.base / "input" / name)
        row: dict[str, Any] = {"reference": picture}
        for title, version in sheet.versions(prompt, name, adapter_nodes()).items():
            row[title] = Image.open(io.BytesIO(rig.server.run(version, 600)[0])).convert("RGB")
        rows.append(row)
        print(f"  asked for: {scenes.caption(scene)}")
        for title in ("without", "weight 1"):
            print(f"    {title:9} {sheet.told(row[title])}", flush=True)
    path = out / f"{workflow.stem}_sheet.png"
    sheet.draw(rows).save(path)
    print(f"  {path}")


def show_as_it_is(rig: Rig, workflow: Path, number: int) -> None:
    """Run one workflow of one reference, the one with this number, with its own settings, and print what was asked and what came out."""
    scenes, raw = scenes_module(), prompt_of(rig, workflow)
    put_references(rig, raw, number)
    prompt = sheet.in_the_world(raw, rig.info)
    print(f"\n{workflow.name}\n  asked for: {scenes.caption([*sheet.references(scenes)][number][1])}")
    for title, version in {"without": without_adapters(prompt, adapter_nodes()), "with": prompt}.items():
        print(f"    {title:9} {sheet.told(shown(rig, version)[0])}", flush=True)


def progress(kind: str, started: float, line: str) -> None:
    if sys.stdout.isatty():
        print(f"\r  {kind:7} adapter: {time.monotonic() - started:6.1f} s  {line.strip()[:70]:70}", end="", flush=True)


if __name__ == "__main__":
    main()
