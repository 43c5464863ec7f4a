"""What can be in a picture of the world, how it is drawn, and how it is told in words."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

SIDE = 64
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = {
    "red": (214, 40, 40), "green": (36, 150, 60), "blue": (40, 80, 214), "yellow": (240, 210, 40),
    "purple": (140, 50, 170), "cyan": (60, 200, 210), "white": (245, 245, 245), "black": (25, 25, 25),
}  # fmt: skip
POSITIONS = {"left": (20, 32), "right": (44, 32), "top": (32, 20), "bottom": (32, 44), "middle": (32, 32)}
SIZES = {"small": 12.5, "big": 18.0}  # radius in pixels
STYLES = ("plain", "striped", "dotted", "outlined")
NEUTRAL = "a picture"  # a caption that says nothing
_SCALE = 4  # pictures are drawn larger and averaged down


@dataclass(frozen=True)
class Scene:
    """A shape on its background; the style covers the whole picture."""

    shape: str
    colour: str
    size: str
    position: str
    background: str
    style: str


ATTRIBUTES = ("shape", "colour", "size", "position", "background", "style")


def random_scene(rng: random.Random) -> Scene:
    colour, background = rng.sample(list(COLOURS), 2)
    return Scene(rng.choice(SHAPES), colour, rng.choice(list(SIZES)), rng.choice(list(POSITIONS)), background, rng.choice(STYLES))


def caption(scene: Scene, said: frozenset[str] = frozenset(ATTRIBUTES)) -> str:
    """The scene in words; of its attributes only those that are in `said`."""
    parts = []
    words = [getattr(scene, name) for name in ("size", "colour", "shape") if name in said]
    if words or "position" in said:
        words += [] if "shape" in said else ["shape"]
        parts.append("a " + " ".join(words) + (f" on the {scene.position}" if "position" in said else ""))
    parts += [f"{scene.background} background"] if "background" in said else []
    parts += [scene.style] if "style" in said else []
    return ", ".join(parts) or NEUTRAL


def random_said(rng: random.Random) -> frozenset[str]:
    """Which attributes a caption names: all of them in half of the captions, a random part in the others."""
    if rng.random() < 0.5:
        return frozenset(ATTRIBUTES)
    return frozenset(rng.sample(ATTRIBUTES, rng.randrange(len(ATTRIBUTES))))


def _polygon(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    if shape == "square":
        s = 0.88 * r
        return [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)]
    if shape == "triangle":
        return [(x, y - r), (x + 0.95 * r, y + 0.8 * r), (x - 0.95 * r, y + 0.8 * r)]
    if shape == "cross":
        s, t = r, 0.33 * r
        return [(x - t, y - s), (x + t, y - s), (x + t, y - t), (x + s, y - t), (x + s, y + t), (x + t, y + t),
                (x + t, y + s), (x - t, y + s), (x - t, y + t), (x - s, y + t), (x - s, y - t), (x - t, y - t)]  # fmt: skip
    radii = [1.1 * r if i % 2 == 0 else 0.45 * r for i in range(10)]
    return [(x + q * math.sin(math.pi * i / 5), y - q * math.cos(math.pi * i / 5)) for i, q in enumerate(radii)]


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene as a picture of SIDE x SIDE, its place and size shaken a little by `rng`."""
    k = _SCALE
    side = SIDE * k
    picture = Image.new("RGB", (side, side), COLOURS[scene.background])
    pen = ImageDraw.Draw(picture)
    outlined, line = scene.style == "outlined", 3 * k
    edge: dict[str, Any] = dict(outline=(0, 0, 0), width=line) if outlined else {}
    x, y = ((place + rng.uniform(-1, 1)) * k for place in POSITIONS[scene.position])
    r = (SIZES[scene.size] + rng.uniform(-0.5, 0.5)) * k
    fill = COLOURS[scene.colour]
    if scene.shape in ("circle", "ring"):
        pen.ellipse([x - r, y - r, x + r, y + r], fill=fill, **edge)
        if scene.shape == "ring":
            q = 0.5 * r
            pen.ellipse([x - q, y - q, x + q, y + q], fill=COLOURS[scene.background], **edge)
    else:
        corners = _polygon(scene.shape, x, y, r)
        pen.polygon(corners, fill=fill)
        if outlined:
            pen.line([*corners, *corners[:2]], fill=(0, 0, 0), width=line, joint="curve")
    if outlined:
        pen.rectangle([0, 0, side - 1, side - 1], outline=(0, 0, 0), width=line)
    picture = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    return _texture(picture, scene.style)


def _texture(picture: Image.Image, style: str) -> Image.Image:
    """Stripes of the latents' 8 pixels, or dots in every second cell of theirs, in half grey over the whole picture."""
    if style not in ("striped", "dotted"):
        return picture
    cover = Image.new("L", (SIDE * _SCALE, SIDE * _SCALE))
    pen = ImageDraw.Draw(cover)
    for y in range(0, SIDE, 16):
        if style == "striped":
            pen.rectangle([0, y * _SCALE, SIDE * _SCALE, (y + 8) * _SCALE - 1], fill=100)
        else:
            for x in range(0, SIDE, 16):
                pen.ellipse([part * _SCALE for part in (x + 1, y + 1, x + 7, y + 7)], fill=170)
    return Image.composite(Image.new("RGB", picture.size, (128, 128, 128)), picture, cover.resize(picture.size, Image.Resampling.BOX))


def scene_and_picture(seed: str) -> tuple[Scene, Image.Image]:
    """The scene and the picture of a name: the same for the same name on every machine."""
    rng = random.Random(seed)
    scene = random_scene(rng)
    return scene, draw(scene, rng)
