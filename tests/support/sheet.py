"""The demo's contact sheet: for each reference what comes out without the adapter, with it, under a mask, as a style."""

import random
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from support.convert import Prompt, inputs_of, without_adapters
from support.world_models import PUBLISHED, reader, scenes_module

SHOWN = (  # shape, colour, background, size, position, style
    "star red blue big middle plain",
    "ring yellow black big left plain",
    "square white green big right striped",
    "triangle cyan purple big middle dotted",
    "cross black white big top plain",
    "circle green yellow small bottom outlined",
)
SIDE, SCALE = 64, 2
PLUS = re.compile("Enhancer|LoadEmbeds|SaveEmbeds")
FRAMES = {"dawn and night": 2, "four frames": 4}  # pictures that are several
UNIFIED = ("IPAdapterUnifiedLoader", "ImagePromptLoader")
FILES = {  # checkpoints, clip_vision, standard, plus -> the published name
    file.split("_")[-1].removesuffix(".safetensors") if "ipadapter" in file else file.split("/")[0]: Path(name).name
    for name, file in PUBLISHED.items()
}


def references(scenes: Any) -> Iterator[tuple[str, Any, Image.Image]]:
    """File name, scene and picture of each reference."""
    for i, words in enumerate(SHOWN):
        shape, colour, background, size, position, style = words.split()
        scene = scenes.Scene(shape, colour, size, position, background, style)
        yield f"world_{i}.png", scene, scenes.draw(scene, random.Random(f"demo {i}"))


def with_loaders(prompt: Prompt) -> Prompt:
    """The prompt with Load Image in place of the pack's own pictures, which the world does not know; masks stay."""
    prompt = deepcopy(prompt)
    for key, node in [*prompt.items()]:
        if node["class_type"] == "IPAdapterExamplePicture" and node["inputs"]["picture"] != "left half":
            last, count = [key, 0], FRAMES.get(node["inputs"]["picture"], 1)
            prompt[key] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
            for i in range(1, count):
                prompt[f"{key} frame {i}"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
                joined = {"image1": last, "image2": [f"{key} frame {i}", 0]}
                last = [f"{key} frames {i}", 0]
                prompt[last[0]] = {"class_type": "ImageBatch", "inputs": joined}
            for other, user in prompt.items():
                if count > 1 and not other.startswith(f"{key} frame"):
                    user["inputs"] = {name: last if value == [key, 0] else value for name, value in user["inputs"].items()}
    return prompt


def in_the_world(prompt: Prompt, info: dict[str, Any]) -> Prompt:
    """A workflow's prompt at the world's size and in its words: neutral text, no negative text, files by their published names.

    The loader of presets knows the published files, which are wider: its place is taken by the loaders that take any file. The adapter is
    standard, which has learned more of the world than plus, unless an example has finer or saved encodings, which are those of plus.
    info: the server's /object_info.
    """
    prompt = deepcopy(prompt)
    unified = {key: node["inputs"] for key, node in prompt.items() if node["class_type"].startswith(UNIFIED)}
    adapter = FILES["plus" if any(PLUS.search(node["class_type"]) for node in prompt.values()) else "standard"]
    loaders: Prompt = {"encoder": {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": FILES["clip_vision"]}}}
    loaders |= {f"adapter {key}": {"class_type": "IPAdapterModelLoader", "inputs": {"ipadapter_file": adapter}} for key in unified}
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"].startswith("EmptyLatentImage"):
            inputs.update(width=SIDE, height=SIDE)
        if node["class_type"] == "KSampler":
            inputs.update(steps=20, cfg=4.0, sampler_name="ddim", scheduler="normal", seed=3)
        if node["class_type"] == "CLIPTextEncode":
            inputs["text"] = scenes_module().NEUTRAL
        if node["class_type"] == "IPAdapter":
            node["class_type"] = "IPAdapterAdvanced"
            inputs.update(weight_type="linear", combine_embeds="concat", embeds_scaling="V only")
        if "clip_vision" in inputs_of(info[node["class_type"]]):
            inputs["clip_vision"] = ["encoder", 0]
        for name, value in inputs.items():
            if name in ("ckpt_name", "clip_name"):
                inputs[name] = FILES["checkpoints" if name == "ckpt_name" else "clip_vision"]
            if name == "ipadapter_file":
                inputs[name] = adapter
            if isinstance(value, list) and value[0] in unified and value[1] == 1:
                inputs[name] = [f"adapter {value[0]}", 0]
            while isinstance(inputs[name], list) and inputs[name][0] in unified:
                inputs[name] = unified[inputs[name][0]]["model"]
    for node in [*prompt.values()]:
        if node["class_type"] == "KSampler":
            negative = prompt.get(node["inputs"]["negative"][0])
            if negative and negative["class_type"] == "CLIPTextEncode":
                negative["inputs"]["text"] = ""
    return {key: node for key, node in prompt.items() if key not in unified} | loaders


def versions(prompt: Prompt, picture: str, adapters: set[str]) -> dict[str, Prompt]:
    """The prompts of a reference's row; in the masked one the adapter acts on the left half alone."""
    prompt = deepcopy(prompt)
    for node in prompt.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = picture
    found = {"without": without_adapters(prompt, adapters)}
    for title, changes in {"weight 0.5": {"weight": 0.5}, "weight 1": {"weight": 1.0}, "left half": {"weight": 1.0},
                           "style": {"weight": 1.0, "weight_type": "style transfer"}}.items():  # fmt: skip
        version = deepcopy(prompt)
        applied = [node for node in version.values() if node["class_type"] == "IPAdapterAdvanced"]
        for node in applied:
            node["inputs"].update(changes)
            if title == "left half":
                whole, left = dict(value=0.0, width=SIDE, height=SIDE), dict(value=1.0, width=SIDE // 2, height=SIDE)
                version |= {"mask": {"class_type": "SolidMask", "inputs": whole}, "half": {"class_type": "SolidMask", "inputs": left}}
                both = dict(destination=["mask", 0], source=["half", 0], x=0, y=0, operation="add")
                version["masks"] = {"class_type": "MaskComposite", "inputs": both}
                node["inputs"]["attn_mask"] = ["masks", 0]
        found[title] = version
    return found


def told(picture: Image.Image) -> str:
    """What the reader sees in a picture."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).movedim(-1, 0)[None]
    found = reader().read(pixels)[0]
    return "a {size} {colour} {shape} on the {position}, {background} background, {style}".format(**found)


def draw(rows: list[dict[str, Image.Image]]) -> Image.Image:
    """A row for each reference, a titled column for each version."""
    cell, gap, head = SIDE * SCALE, 8, 28
    titles = list(rows[0])
    sheet = Image.new("RGB", (len(titles) * (cell + gap) + gap, head + len(rows) * (cell + gap)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for x, title in enumerate(titles):
        pen.text((gap + x * (cell + gap) + cell / 2, head / 2), title, fill="black", font=font, anchor="mm")
        for y, row in enumerate(rows):
            big = row[title].resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(big, (gap + x * (cell + gap), head + y * (cell + gap)))
    return sheet
