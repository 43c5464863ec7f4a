"""Draws the pictures of IPAdapter Example Picture into web/pictures: python3 tests/support/draw_pictures.py

All are of our own making. NAME.webp is a picture, or several as the frames of an animation; NAME.mask.webp says where its main thing is.
"""

import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

FOLDER = Path(__file__).resolve().parents[2] / "web" / "pictures"
SCALE = 2  # pictures are drawn larger and averaged down
Point = tuple[float, float]
Colour = tuple[int, int, int]
Drawn = tuple[Image.Image, Image.Image]  # a picture and its mask


class Canvas:
    """A picture and the mask of its main thing, drawn in the coordinates of the finished picture."""

    def __init__(self, width: int, height: int, top: Colour, bottom: Colour):
        self.size = width, height
        share = np.linspace(0, 1, height * SCALE)[:, None, None]
        rows = np.asarray(top) * (1 - share) + np.asarray(bottom) * share
        self.image = Image.fromarray(np.broadcast_to(rows, (height * SCALE, width * SCALE, 3)).round().astype(np.uint8).copy())
        self.mask = Image.new("L", self.image.size)

    def shape(self, draw: Callable[[ImageDraw.ImageDraw, int], None], colour: Colour, main: bool = False, blur: float = 0,
              opacity: float = 1) -> None:  # fmt: skip
        """What `draw` fills, with this colour; as part of the main thing if `main`."""
        filled = Image.new("L", self.image.size)
        draw(ImageDraw.Draw(filled), round(255 * opacity))
        touched = filled.getbbox()
        if not touched:
            return
        edge, (width, height) = math.ceil(3 * blur * SCALE), filled.size
        left, top, right, bottom = touched
        box = max(0, left - edge), max(0, top - edge), min(width, right + edge), min(height, bottom + edge)
        part = filled.crop(box).filter(ImageFilter.GaussianBlur(blur * SCALE))
        self.image.paste(colour, box, part)
        if main:
            self.mask.paste(ImageChops.lighter(self.mask.crop(box), part), box)

    def polygon(self, points: list[Point], colour: Colour, **how) -> None:
        self.shape(lambda pen, fill: pen.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=fill), colour, **how)

    def ellipse(self, x: float, y: float, across: float, down: float, colour: Colour, **how) -> None:
        """Around a middle, with these half axes."""
        box = [(x - across) * SCALE, (y - down) * SCALE, (x + across) * SCALE, (y + down) * SCALE]
        self.shape(lambda pen, fill: pen.ellipse(box, fill=fill), colour, **how)

    def line(self, points: list[Point], width: float, colour: Colour, **how) -> None:
        path = [(x * SCALE, y * SCALE) for x, y in points]

        def draw(pen, fill):
            pen.line(path, fill=fill, width=max(1, round(width * SCALE)), joint="curve")
            for x, y in path:
                radius = width * SCALE / 2
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)

        self.shape(draw, colour, **how)

    def done(self) -> Drawn:
        return self.image.resize(self.size, Image.Resampling.BOX), self.mask.resize(self.size, Image.Resampling.BOX)


def curve(*points: Point, steps: int = 24) -> list[Point]:
    """A Bezier curve of any degree."""
    n = len(points) - 1
    weights = [[math.comb(n, k) * t**k * (1 - t) ** (n - k) for k in range(n + 1)] for t in np.linspace(0, 1, steps + 1)]
    return [(sum(w * x for w, (x, _) in zip(row, points, strict=True)), sum(w * y for w, (_, y) in zip(row, points, strict=True)))
            for row in weights]  # fmt: skip


def harbour(canvas: Canvas, sun: Colour, sea: Colour, land: Colour, light: Colour, lit: float) -> None:
    """A sun or moon over the sea, hills, and a boat, which is the main thing."""
    width, height = canvas.size
    horizon = 0.6 * height
    canvas.ellipse(0.3 * width, horizon - 90, 90, 90, sun, blur=30, opacity=0.5)
    canvas.ellipse(0.3 * width, horizon - 90, 46, 46, sun)
    canvas.polygon([*curve((0.5 * width, horizon), (0.7 * width, 0.2 * height), (0.85 * width, 0.55 * height), (width, 0.3 * height)),
                    (width, horizon)], land, opacity=0.75)  # fmt: skip
    canvas.polygon([(0, horizon), (width, horizon), (width, height), (0, height)], sea)
    rng = random.Random(5)
    for i in range(60):
        y = horizon + 4 + (height - horizon) * (i / 60) ** 1.4
        x = 0.3 * width + rng.uniform(-1, 1) * (30 + (y - horizon) * 0.5)
        canvas.line([(x - 10 - 0.1 * (y - horizon), y), (x + 10 + 0.1 * (y - horizon), y)], 1.6, light, opacity=lit * rng.uniform(0.4, 1))
    x, y = 0.64 * width, 0.79 * height
    canvas.polygon([(x - 6, y - 20), (x - 6, y - 168), (x - 92, y - 20)], (236, 226, 206), main=True)
    canvas.polygon([(x + 4, y - 20), (x + 4, y - 182), (x + 84, y - 20)], (206, 78, 58), main=True)
    canvas.polygon([(x - 104, y - 10), (x + 104, y - 10), (x + 74, y + 26), (x - 78, y + 26)], (70, 46, 40), main=True)
    canvas.line([(x - 1, y - 10), (x - 1, y - 190)], 4, (60, 44, 38), main=True)
    canvas.polygon([(x - 78, y + 30), (x + 74, y + 30), (x + 40, y + 54), (x - 50, y + 54)], (40, 34, 40), blur=4, opacity=0.4)


def lighthouse() -> Drawn:
    """A wide coast, its lighthouse at the left side: the square in the middle is without it."""
    canvas = Canvas(1120, 480, (54, 96, 158), (250, 196, 130))
    width, height = canvas.size
    canvas.ellipse(720, 250, 150, 150, (255, 226, 160), blur=50, opacity=0.7)
    canvas.ellipse(720, 250, 50, 50, (255, 240, 200))
    for x, y, long in ((430, 110, 150), (900, 80, 190), (980, 150, 120), (560, 60, 90)):
        for i in range(5):
            canvas.ellipse(x + (i - 2) * long / 5, y - (2 - abs(i - 2)) * 9, long / 5, 16, (255, 238, 220), blur=6, opacity=0.7)
    canvas.polygon([(0, 300), (width, 300), (width, height), (0, height)], (28, 84, 112))
    rng = random.Random(1)
    for i in range(160):
        y = 304 + 170 * (i / 160) ** 1.5
        x, long = rng.uniform(0, width), rng.uniform(14, 40) * (0.4 + (y - 300) / 130)
        near = max(0.0, 1 - abs(x - 720) / (90 + (y - 300)))
        canvas.line([(x - long, y), (x + long, y)], 2, (120, 170, 186) if near < 0.2 else (255, 222, 164), opacity=0.35 + 0.5 * near)
    canvas.polygon([(0, height), (0, 318), *curve((0, 318), (90, 270), (220, 280), (330, 380), (380, height))], (44, 58, 46))
    canvas.polygon([*curve((0, 330), (110, 290), (210, 310), (300, 390), (350, height)), (0, height)], (60, 82, 56))
    canvas.polygon([(214, 300), (276, 300), (276, 340), (214, 340)], (226, 214, 196), main=True)
    canvas.polygon([(206, 302), (245, 272), (284, 302)], (128, 52, 44), main=True)
    canvas.polygon([(112, 322), (132, 122), (188, 122), (208, 322)], (244, 240, 230), main=True)
    canvas.polygon([(160, 322), (164, 122), (188, 122), (208, 322)], (206, 204, 204), main=True, opacity=0.8)
    for y in (150, 216, 282):
        x = (y - 122) / 10
        canvas.polygon([(132 - x, y), (188 + x, y), (191 + x, y + 32), (129 - x, y + 32)], (192, 52, 46), main=True)
    canvas.polygon([(120, 114), (200, 114), (200, 124), (120, 124)], (70, 66, 70), main=True)
    canvas.polygon([(138, 78), (182, 78), (182, 114), (138, 114)], (255, 236, 160), main=True)
    canvas.polygon([(130, 80), (160, 48), (190, 80)], (128, 36, 36), main=True)
    canvas.polygon([(182, 88), (560, 20), (560, 150), (182, 102)], (255, 246, 200), blur=10, opacity=0.3)
    for x, y in ((800, 190), (836, 214), (770, 222)):
        canvas.line(curve((x - 16, y - 4), (x - 8, y - 12), (x, y)), 2.4, (40, 44, 60))
        canvas.line(curve((x, y), (x + 8, y - 12), (x + 16, y - 4)), 2.4, (40, 44, 60))
    return canvas.done()


def poster() -> Drawn:
    """A style: flat areas of few strong colours."""
    orange, red, teal, navy, cream = (244, 150, 52), (214, 64, 52), (28, 128, 126), (22, 44, 74), (252, 232, 194)
    canvas = Canvas(640, 640, cream, cream)
    for i in range(24):
        angle, next_angle = (math.tau * (i + part) / 24 for part in (0, 0.5))
        canvas.polygon([(320, 300), *((320 + 700 * math.cos(a), 300 + 700 * math.sin(a)) for a in (angle, next_angle))], (248, 206, 132))
    canvas.ellipse(320, 300, 150, 150, orange, main=True)
    canvas.ellipse(320, 300, 112, 112, red, main=True)
    canvas.polygon([(0, 470), (130, 300), (230, 420), (330, 330), (470, 470), (560, 380), (640, 450), (640, 640), (0, 640)], teal)
    canvas.polygon([(130, 300), (172, 350), (136, 372), (118, 346), (94, 350)], cream)
    canvas.polygon([(330, 330), (368, 368), (336, 386), (306, 358)], cream)
    canvas.polygon([*curve((0, 520), (180, 430), (420, 620), (640, 500)), (640, 640), (0, 640)], navy)
    for x, high in ((70, 120), (118, 90), (540, 130), (590, 100), (496, 84)):
        for part in range(3):
            y, half = 560 - high * part / 4, 30 - 7 * part
            canvas.polygon([(x - half, y), (x, y - high / 2), (x + half, y)], (10, 84, 84))
    canvas.polygon([(260, 640), (312, 530), (330, 530), (380, 640)], orange)
    return canvas.done()


def ink_drawing() -> Drawn:
    """A style: strokes of black ink on paper."""
    rng, ink, paper = random.Random(3), (26, 24, 28), (243, 237, 224)
    canvas = Canvas(640, 640, paper, (232, 224, 206))

    def stroke(points: list[Point], width: float, **how) -> None:
        canvas.line([(x + rng.uniform(-1.2, 1.2), y + rng.uniform(-1.2, 1.2)) for x, y in points], width, ink, **how)

    def hatched(left: float, right: float, top: Callable[[float], float], bottom: Callable[[float], float], step: float) -> None:
        x = left
        while x < right:
            high = bottom(x) - top(x)
            stroke([(x, top(x) + rng.uniform(0, 6)), (x - 0.3 * high * rng.uniform(0.5, 1), top(x) + high * rng.uniform(0.4, 1))], 1.3)
            x += step * rng.uniform(0.6, 1.4)

    ridge = curve((0, 380), (110, 330), (170, 170), (240, 330), (330, 300), (420, 180), (500, 330), (640, 350))
    stroke(ridge, 3)
    xs, ys = zip(*ridge, strict=True)
    hatched(150, 640, lambda x: float(np.interp(x, xs, ys)) + 4, lambda x: float(np.interp(x, xs, ys)) + 90, 7)
    for y in range(420, 640, 16):
        left = rng.uniform(0, 120)
        while left < 640:
            long = rng.uniform(30, 120)
            stroke(curve((left, y), (left + long / 2, y - 5), (left + long, y)), rng.uniform(1, 2.4), opacity=0.8)
            left += long + rng.uniform(10, 90)

    def branch(x: float, y: float, angle: float, long: float, width: float) -> None:
        end = x + long * math.cos(angle), y - long * math.sin(angle)
        bend = (x + end[0]) / 2 + rng.uniform(-8, 8), (y + end[1]) / 2 + rng.uniform(-8, 8)
        canvas.line(curve((x, y), bend, end, steps=8), width, ink, main=True)
        if long > 16:
            for turn in (-0.5, 0.06, 0.55):
                branch(*end, angle + turn + rng.uniform(-0.2, 0.2), long * rng.uniform(0.62, 0.78), max(1.2, width * 0.62))
        else:
            for _ in range(4):
                canvas.ellipse(end[0] + rng.uniform(-12, 12), end[1] + rng.uniform(-12, 12), 3.4, 2.2, ink, main=True)

    branch(180, 600, 1.45, 120, 17)
    canvas.polygon([*curve((60, 640), (170, 570), (320, 640)), (60, 640)], ink)
    for x in range(70, 320, 9):
        stroke([(x, 630), (x + rng.uniform(-8, 8), 596 + rng.uniform(-8, 16))], 1.6)
    for _ in range(26):
        x, y, radius = rng.uniform(0, 640), rng.uniform(0, 640), rng.uniform(0.6, 2.2)
        canvas.ellipse(x, y, radius, radius, ink, opacity=0.7)
    return canvas.done()


def layout() -> Drawn:
    """A layout that is easy to see again: something large low at the right, something small high at the left, a path between them."""
    canvas = Canvas(640, 640, (214, 218, 222), (176, 180, 184))
    canvas.polygon([(0, 400), (640, 330), (640, 640), (0, 640)], (122, 128, 130))
    canvas.polygon([*curve((60, 640), (200, 540), (120, 440), (170, 384)), *curve((190, 382), (170, 440), (330, 540), (250, 640))],
                   (196, 196, 190))  # fmt: skip
    canvas.ellipse(150, 140, 62, 62, (244, 244, 240))
    canvas.ellipse(480, 556, 170, 30, (70, 74, 78), blur=14, opacity=0.7)
    canvas.polygon([(320, 550), (480, 190), (640, 550)], (78, 84, 90), main=True)
    canvas.polygon([(480, 190), (640, 550), (506, 550)], (52, 56, 62), main=True)
    for x, y, size in ((60, 440, 30), (110, 420, 22), (290, 404, 20)):
        canvas.ellipse(x, y, size, size * 1.3, (96, 104, 104))
    return canvas.done()


def face() -> Drawn:
    """A person's face, shaded; of nobody."""
    skin, shade, hair = (226, 172, 140), (176, 112, 88), (58, 38, 30)
    canvas = Canvas(512, 640, (120, 142, 150), (74, 92, 104))
    canvas.ellipse(130, 180, 220, 260, (158, 176, 176), blur=80, opacity=0.6)
    canvas.ellipse(256, 300, 156, 196, hair, blur=3, main=True)
    canvas.ellipse(256, 210, 150, 130, hair, blur=3, main=True)
    canvas.polygon([(60, 640), *curve((60, 640), (80, 500), (210, 520), (256, 500), (302, 520), (432, 500), (452, 640))], (54, 76, 112),
                   main=True)  # fmt: skip
    canvas.polygon([(206, 420), (306, 420), (322, 520), (256, 566), (190, 520)], skin, blur=2, main=True)
    canvas.ellipse(256, 452, 76, 46, shade, blur=14, opacity=0.75)
    for side in (-1, 1):
        canvas.ellipse(256 + side * 122, 310, 18, 36, (206, 148, 118), blur=2, main=True)
    outline = curve((136, 250), (134, 380), (196, 474), (256, 478), (316, 474), (378, 380), (376, 250), steps=60)
    canvas.polygon([*outline, *curve((376, 250), (370, 96), (142, 96), (136, 250), steps=60)], skin, blur=2, main=True)
    canvas.ellipse(340, 330, 46, 120, shade, blur=28, opacity=0.45)
    canvas.ellipse(168, 330, 22, 100, shade, blur=20, opacity=0.3)
    canvas.ellipse(226, 200, 70, 40, (244, 202, 172), blur=22, opacity=0.8)
    canvas.ellipse(256, 452, 40, 14, (240, 190, 158), blur=10, opacity=0.6)
    for side in (-1, 1):
        x = 256 + side * 56
        canvas.ellipse(x + side * 4, 360, 34, 24, (222, 136, 116), blur=18, opacity=0.5)
        canvas.ellipse(x, 280, 40, 24, shade, blur=10, opacity=0.6)
        canvas.line(curve((x - side * 32, 250), (x - side * 6, 232), (x + side * 38, 248)), 9, (66, 42, 32), blur=1.5)
        eye = [
            *curve((x - 30, 286), (x - 8, 262), (x + 12, 266), (x + 30, 284)),
            *curve((x + 30, 284), (x + 6, 304), (x - 14, 302), (x - 30, 286)),
        ]
        canvas.polygon(eye, (244, 238, 232), blur=0.8)
        canvas.ellipse(x, 281, 13, 14, (84, 62, 44))
        canvas.ellipse(x, 281, 6.5, 7, (16, 12, 12))
        canvas.ellipse(x - 4, 276, 3.2, 3.2, (255, 255, 255))
        canvas.line(curve((x - 31, 287), (x - 8, 260), (x + 12, 264), (x + 32, 284)), 5, (44, 28, 24), blur=0.8)
        canvas.line(curve((x - 24, 293), (x, 306), (x + 26, 290)), 1.6, (150, 96, 80), blur=0.8)
        canvas.line(curve((x - 28, 268), (x, 248), (x + 30, 268)), 2, (150, 98, 78), blur=1.2, opacity=0.8)
    canvas.polygon(
        [*curve((246, 262), (240, 320), (226, 356), (236, 366)), *curve((276, 366), (288, 356), (272, 320), (266, 262))],
        shade,
        blur=9,
        opacity=0.3,
    )
    canvas.ellipse(252, 326, 8, 44, (248, 208, 180), blur=6, opacity=0.7)
    canvas.ellipse(256, 356, 16, 13, (240, 192, 162), blur=5, opacity=0.8)
    for side in (-1, 1):
        canvas.ellipse(256 + side * 13, 371, 7, 3.6, (104, 56, 46), blur=1.6)
        canvas.line(curve((256 + side * 24, 352), (256 + side * 34, 362), (256 + side * 24, 374)), 2.4, (172, 110, 88), blur=1.4)
    canvas.ellipse(256, 384, 26, 7, shade, blur=5, opacity=0.5)
    upper = [
        *curve((202, 402), (236, 398), (250, 392), (256, 399), (262, 392), (276, 398), (310, 402)),
        *curve((310, 402), (256, 422), (202, 402)),
    ]
    lower = [*curve((202, 402), (256, 422), (310, 402)), *curve((310, 402), (288, 444), (224, 444), (202, 402))]
    canvas.polygon(upper, (168, 80, 76), blur=1)
    canvas.polygon(lower, (196, 104, 96), blur=1)
    canvas.line(curve((202, 402), (238, 416), (256, 411), (274, 416), (310, 402)), 2.4, (110, 44, 44), blur=0.8)
    canvas.ellipse(256, 424, 22, 4, (226, 150, 138), blur=3, opacity=0.8)
    canvas.polygon(
        [*curve((128, 300), (120, 140), (200, 96), (300, 110)), *curve((300, 110), (220, 140), (170, 180), (128, 300))],
        hair,
        blur=2,
        main=True,
    )
    canvas.polygon(
        [*curve((384, 300), (396, 140), (330, 90), (270, 104)), *curve((270, 104), (330, 140), (366, 200), (384, 300))],
        hair,
        blur=2,
        main=True,
    )
    rng = random.Random(2)
    for _ in range(70):
        side, x = rng.choice((-1, 1)), rng.uniform(0, 130)
        start, end = (256 + side * x * 0.3, 104 + x * 0.16), (256 + side * (128 + rng.uniform(0, 18)), 250 + rng.uniform(-40, 140))
        canvas.line(curve(start, (256 + side * (90 + x * 0.5), 110), end), 1.2, (104, 72, 52), opacity=0.5, blur=0.6)
    return canvas.done()


def dawn_and_night() -> list[Drawn]:
    """One harbour twice: two pictures for animations."""
    dawn = Canvas(512, 512, (120, 160, 210), (255, 206, 150))
    harbour(dawn, (255, 244, 210), (70, 120, 146), (96, 104, 130), (255, 226, 178), 0.9)
    night = Canvas(512, 512, (10, 14, 40), (44, 54, 104))
    harbour(night, (234, 238, 250), (14, 26, 54), (14, 18, 40), (190, 204, 240), 0.8)
    for i in range(60):
        rng = random.Random(i)
        x, y, radius = rng.uniform(0, 512), rng.uniform(0, 250), rng.uniform(0.6, 1.8)
        night.ellipse(x, y, radius, radius, (255, 255, 240))
    return [dawn.done(), night.done()]


def four_frames() -> list[Drawn]:
    """A dancer who crosses a stage: four pictures for animations."""
    found = []
    for i, (lift, turn) in enumerate(((0, -0.5), (34, 0.1), (50, 0.6), (6, 1.0))):
        canvas = Canvas(512, 512, (62, 34, 62), (30, 18, 40))
        canvas.polygon([(0, 400), (512, 400), (512, 512), (0, 512)], (96, 62, 52))
        x, y, dress = 90 + 110 * i, 360 - lift, (226, 74, 92)
        canvas.polygon([(x - 20, 0), (x + 20, 0), (x + 130, 440), (x - 130, 440)], (255, 226, 170), blur=14, opacity=0.28)
        canvas.ellipse(x, 438, 80, 12, (30, 18, 24), blur=6, opacity=0.7)
        for leg in (-1, 1):
            canvas.line(
                [(x, y - 20), (x + leg * (16 + 26 * abs(turn)), y + 66 - (26 if leg * turn > 0.2 else 0))], 10, (232, 190, 160), main=True
            )
        canvas.polygon([(x - 10, y - 110), (x + 10, y - 110), (x + 66 + 10 * turn, y - 4), (x - 66 + 10 * turn, y - 4)], dress, main=True)
        for arm in (-1, 1):
            canvas.line(
                curve((x, y - 104), (x + arm * 50, y - 120), (x + arm * 64, y - 160 + 50 * turn * arm)), 8, (232, 190, 160), main=True
            )
        canvas.ellipse(x, y - 136, 20, 24, (232, 190, 160), main=True)
        canvas.ellipse(x - 4, y - 146, 21, 18, (48, 30, 28), main=True)
        found.append(canvas.done())
    return found


def left_half() -> Drawn:
    """A mask: the left half, with a soft edge."""
    ramp = np.clip((512 * 0.5 + 16 - np.arange(512)) / 32, 0, 1) * 255
    mask = Image.fromarray(np.broadcast_to(ramp.round().astype(np.uint8), (512, 512)).copy())
    return mask.convert("RGB"), mask


PICTURES: tuple[Callable[[], Drawn | list[Drawn]], ...] = (
    lighthouse, poster, ink_drawing, layout, face, dawn_and_night, four_frames, left_half,
)  # fmt: skip


def drawn(make: Callable[[], Drawn | list[Drawn]]) -> list[Drawn]:
    """The frames of a picture."""
    made = make()
    return made if isinstance(made, list) else [made]


def save(frames: list[Image.Image], path: Path, **how) -> None:
    moving = {"save_all": True, "append_images": frames[1:], "duration": 500, "loop": 0} if len(frames) > 1 else {}
    frames[0].save(path, method=6, **how, **moving)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for make in PICTURES:
        pictures, masks = zip(*drawn(make), strict=True)
        save([*pictures], FOLDER / f"{make.__name__}.webp", quality=88)
        save([mask.convert("RGB") for mask in masks], FOLDER / f"{make.__name__}.mask.webp", lossless=True)


if __name__ == "__main__":
    main()
