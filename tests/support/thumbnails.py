"""The examples' thumbnails, made by running them on the tiny world: what goes in, what comes out without and with the adapter.

Started by `python3 dev.py thumbnails`. The world has no faces: the pictures of those examples are drawn. It has no Flux and no SD3.5
either: theirs are drawn too, and show what goes in and the model's name, for what comes out was not seen.
"""

import argparse
import io
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import needs, sheet
from support.convert import Prompt, to_prompt, without_adapters
from support.rig import REPO, SAVERS, Rig, adapter_nodes, example, examples
from support.world_models import scenes_module, world_models

CARD, GAP = 480, 12
PICTURES, MASK = REPO / "web" / "pictures", "left half"
DRAWN = re.compile("Face")
BASES = {"flux-ip-adapter": ("Flux.1 dev", "XLabs' adapter"), "instantx-flux": ("Flux.1 dev", "InstantX's adapter"),
         "instantx-sd3.5": ("SD3.5 Large", "InstantX's adapter")}  # fmt: skip
FRAMES = 3


def put(found: Image.Image, pictures: list[Image.Image], title: str, left: int, top: int, width: int, height: int) -> None:
    """A titled row of pictures."""
    pen, font = ImageDraw.Draw(found), ImageFont.load_default(20)
    side = min(height - 30, (width - GAP * (len(pictures) - 1)) // len(pictures))
    pen.text((left + width / 2, top + 12), title, fill="black", font=font, anchor="mm")
    start = left + (width - side * len(pictures) - GAP * (len(pictures) - 1)) // 2
    for i, picture in enumerate(pictures):
        method = Image.Resampling.LANCZOS if picture.width > side else Image.Resampling.NEAREST
        found.paste(picture.resize((side, side), method), (start + i * (side + GAP), top + 28))


def card(references: list[Image.Image], rows: dict[str, list[Image.Image]]) -> Image.Image:
    """A square: the references above, then each titled row of results."""
    found = Image.new("RGB", (CARD, CARD), "white")
    put(found, references, "reference" if len(references) == 1 else "references", GAP, 6, CARD - 2 * GAP, 190)
    wide = any(len(pictures) > 1 for pictures in rows.values())
    for i, (title, pictures) in enumerate(rows.items()):
        if wide:
            put(found, pictures, title, GAP, 200 + 140 * i, CARD - 2 * GAP, 140)
        else:
            put(found, pictures, title, GAP + 234 * i, 206, 222, 262)
    return found


def named(path: Path) -> Image.Image | None:
    """Of an example for Flux or SD3.5: its references and which model it is for; None for any other."""
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    values = [(node["type"], node["widgets_values"][0]) for node in nodes if node["widgets_values"]]
    base = next((base for start, base in BASES.items() if any(str(value).startswith(start) for _, value in values)), None)
    if base is None:
        return None
    names = [value.replace(" ", "_") for kind, value in values if kind == "IPAdapterExamplePicture" and value != MASK]
    found, pictures = Image.new("RGB", (CARD, CARD), "white"), [Image.open(PICTURES / f"{name}.webp").convert("RGB") for name in names]
    put(found, pictures, "reference" if len(pictures) == 1 else "references", GAP, 40, CARD - 2 * GAP, 290 - 40 * (len(pictures) - 1))
    pen = ImageDraw.Draw(found)
    for text, size, top in ((base[0], 60, 376), (base[1], 28, 436)):
        pen.text((CARD / 2, top), text, fill="black", font=ImageFont.load_default(size), anchor="mm")
    return found


def face(turn: float, hair: str, skin: str = "#e8b48c", shirt: str = "#4060c0", background: str = "#dfe8f0") -> Image.Image:
    """A drawn face that looks a little to one side."""
    found = Image.new("RGB", (256, 256), background)
    pen, x = ImageDraw.Draw(found), 128
    pen.ellipse([48, 206, 208, 340], fill=shirt)
    pen.rectangle([108, 180, 148, 222], fill=skin)
    pen.ellipse([x - 66, 34, x + 66, 190], fill=hair)
    pen.ellipse([x - 54, 56, x + 54, 200], fill=skin)
    pen.pieslice([x - 60, 30, x + 60, 150], 180, 360, fill=hair)
    x += round(16 * turn)
    for side in (-22, 22):
        pen.ellipse([x + side - 9, 112, x + side + 9, 126], fill="white")
        pen.ellipse([x + side - 4 + 3 * turn, 114, x + side + 4 + 3 * turn, 124], fill="#30304a")
    pen.line([x, 126, x + 6 * turn, 150, x - 4, 150], fill="#b07850", width=3)
    pen.arc([x - 20, 146, x + 20, 176], 20, 160, fill="#b04040", width=5)
    return found


def drawn(several: bool) -> Image.Image:
    person = dict(hair="#402818")
    after = [face(turn, shirt="#c04040", background=background, **person)
             for turn, background in zip((-1, 0, 1) if several else (-1,), ("#f0e0b0", "#c8e0c8", "#d8c8e8"), strict=False)]  # fmt: skip
    return card([face(0.3, **person)], {"without": [face(-1, "#d0a040", "#c89070", "#c04040", "#f0e0b0")], "with": after})


def frames(pictures: list[bytes]) -> list[Image.Image]:
    """Of a batch or an animation, FRAMES of them."""
    found = []
    for data in pictures:
        picture = Image.open(io.BytesIO(data))
        for i in range(getattr(picture, "n_frames", 1)):
            picture.seek(i)
            found.append(picture.convert("RGB"))
    step = max(1, (len(found) - 1) // (FRAMES - 1))
    return found[::step][:FRAMES]


def shown(rig: Rig, prompt: Prompt) -> list[Image.Image]:
    """What an example ends in: what was sampled, rather than what is only looked at."""
    sampled = {key for key, node in prompt.items() if node["class_type"] == "VAEDecode"}
    ends = {key for key, node in prompt.items() if any(isinstance(v, list) and v[0] in sampled for v in node["inputs"].values())}
    entry = rig.server.wait(rig.server.queue(prompt))
    last = max(ends & set(entry["outputs"]) or set(entry["outputs"]), key=int)
    return frames(rig.server.pictures({"outputs": {last: entry["outputs"][last]}}))


def prompt_of(rig: Rig, path: Path) -> Prompt:
    """An example's prompt with Load Image where its pictures are."""
    return sheet.with_loaders(to_prompt(json.loads(path.read_text(encoding="utf-8")), rig.info))


def put_references(rig: Rig, prompt: Prompt, number: int) -> list[Image.Image]:
    """Has the prompt's Load Image nodes load references, the first of which has this number, and gives these."""
    loaders, references = [node for node in prompt.values() if node["class_type"] == "LoadImage"], [*sheet.references(scenes_module())]
    found = []
    for i, node in enumerate(loaders):
        name, _, picture = references[(number + i) % len(references)]
        picture.save(rig.base / "input" / name)
        node["inputs"]["image"] = name
        found.append(picture)
    return found


def thumbnail(rig: Rig, path: Path, number: int) -> Image.Image:
    """Of the example with this number in the list, which decides what its references show."""
    if drawn_card := named(path):
        return drawn_card
    raw = prompt_of(rig, path)
    if any(DRAWN.search(node["class_type"]) for node in raw.values()):
        return drawn("Animation" in path.stem)
    saved = needs.saved(raw)
    source = prompt_of(rig, example(SAVERS[Path(saved[0]).suffix])) if saved else raw
    references = put_references(rig, source, number)
    for name in saved:
        (rig.base / "output" / name).unlink(missing_ok=True)
    for name in saved:
        rig.save(name, sheet.in_the_world(source, rig.info))
    prompt = sheet.in_the_world(raw, rig.info)
    rows, plain = {"with": shown(rig, prompt)}, without_adapters(prompt, adapter_nodes())
    if any(node["class_type"] == "KSampler" for node in plain.values()):
        rows = {"without": shown(rig, plain)} | rows
    return card(references, {title: found for title, found in rows.items() if found})


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py thumbnails", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="examples (default: all)")
    parser.add_argument("--comfyui", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as base, Rig(args.comfyui.resolve(), Path(base), world_models(Path(base)), real=False) as rig:
        for number, path in enumerate(examples()):
            if not args.names or path.stem in args.names:
                file = path.with_suffix(".jpg")
                thumbnail(rig, path, number).save(file, quality=85, optimize=True)
                if path.with_suffix(".app.json").exists():
                    shutil.copy(file, path.with_suffix(".app.jpg"))
                print(path.stem, flush=True)


if __name__ == "__main__":
    main()
