"""Plots as pictures, readable on a dark background: bars, lines and what an encoder sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..pictures.fit import Box, Fitted, fit, per_picture
from ..pictures.preprocess import CLIP_MEAN, SIZE

BACKGROUND, GRID, TEXT, DIM = (24, 26, 31), (62, 66, 76), (226, 228, 233), (150, 155, 166)
COLOURS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0))  # Okabe and Ito: told apart by all
WIDTH, HEIGHT = 800, 260  # of a panel
_FINE = 2  # drawn so many times larger and scaled down, for smooth lines
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 56, 40
_WIDEST = 1024  # of a picture in encoder_view


@dataclass(frozen=True)
class Series:
    name: str
    values: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Values over places: `labels` has one for each place. kind: "bars", "steps" (held from place to place) or "line"."""

    title: str
    labels: Sequence[str]
    series: Sequence[Series]
    kind: str


def plot(panels: Sequence[Panel]) -> Tensor:
    """The panels below each other: [1, HEIGHT len(panels), WIDTH, 3] in 0..1."""
    image = Image.new("RGB", (WIDTH * _FINE, HEIGHT * len(panels) * _FINE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for i, panel in enumerate(panels):
        _panel(draw, panel, i * HEIGHT)
    return _tensor(image.resize((WIDTH, HEIGHT * len(panels)), Image.Resampling.LANCZOS))


def span_of(series: Sequence[Series]) -> tuple[float, float]:
    """The lowest and highest value to show: 0 and 1 at least, so that plots of usual weights can be compared."""
    values = [value for one in series for value in one.values]
    return min(0.0, *values), max(1.0, *values)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy())[None].float() / 255


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _FINE)


def _panel(draw: ImageDraw.ImageDraw, panel: Panel, above: int) -> None:
    low, high = span_of(panel.series)
    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, above + _TOP, above + HEIGHT - _BOTTOM
    count = max(len(panel.labels), 1)
    pitch = (right - left) / count

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    def scaled(*points: float) -> list[float]:
        return [point * _FINE for point in points]

    def text(x: float, y: float, words: str, size: int, colour: tuple[int, int, int], anchor: str) -> None:
        draw.text(scaled(x, y), words, fill=colour, font=_font(size), anchor=anchor)  # type: ignore[arg-type]

    text(left, above + 10, panel.title, 15, TEXT, "la")
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(panel.series))]
    room = (right - left) / len(panel.series)
    for place, (series, colour) in enumerate(zip(panel.series, colours, strict=True)):
        x = left + place * room
        draw.rectangle(scaled(x, above + 36, x + 10, above + 46), fill=colour)
        text(x + 15, above + 41, _shortened(draw, series.name, room - 30), 12, DIM, "lm")
    written: list[float] = []
    for value in (0.0, high, low, 0.5 * high):
        draw.line(scaled(left, y(value), right, y(value)), fill=DIM if value == 0 else GRID, width=_FINE)
        if all(abs(y(value) - other) > 14 for other in written):
            written.append(y(value))
            text(left - 8, y(value), f"{value:.3g}" if abs(value) < 1e4 else f"{value:.0e}", 12, DIM, "rm")
    every = -(-count // max(1, int((right - left) // 45)))
    for i, label in enumerate(panel.labels):
        if i % every == 0:
            text(left + (i + 0.5) * pitch, bottom + 8, label, 11, DIM, "ma")
    for place, (series, colour) in enumerate(zip(panel.series, colours, strict=True)):
        if panel.kind == "bars":
            wide = pitch * 0.8 / len(panel.series)
            for i, value in enumerate(series.values):
                start = left + i * pitch + pitch * 0.1 + place * wide
                draw.rectangle(scaled(start, min(y(value), y(0)), start + wide, max(y(value), y(0))), fill=colour)
            continue
        middles = [(left + (i + 0.5) * pitch, y(value)) for i, value in enumerate(series.values)]
        half = pitch / 2 if panel.kind == "steps" else 0.0
        points = [(x + side, at) for x, at in middles for side in (-half, half)]
        thick = 3 + min(8, 3 * (len(panel.series) - 1 - place))  # of equal curves the first shows at the sides of the later ones
        draw.line([(x * _FINE, at * _FINE) for x, at in points], fill=colour, width=thick * _FINE, joint="curve")
        if panel.kind == "line" and (len(middles) == 1 or pitch > 12):
            for x, at in middles:
                draw.ellipse(scaled(x - 4, at - 4, x + 4, at + 4), fill=colour)


def _shortened(draw: ImageDraw.ImageDraw, name: str, room: float) -> str:
    """A legend's name, cut so that it takes `room` pixels at most."""
    short = name
    while len(short) > 1 and draw.textlength(short, font=_font(12)) > room * _FINE:
        name = name[:-1]
        short = f"{name}..."
    return short


def seen_squares(fitted: Fitted, mean: Sequence[float] = CLIP_MEAN) -> Tensor:
    """The squares [n, s, s, 3] as the encoder sees them: where the mask is black there is its mean colour, which it reads as nothing."""
    if fitted.masks is None:
        return fitted.squares
    weight = fitted.masks.clamp(0, 1)[..., None].to(fitted.squares)
    return fitted.squares * weight + fitted.squares.new_tensor(mean) * (1 - weight)


def encoder_view(image: Tensor, fitted: Fitted, squares: Tensor, height: int = 448) -> Tensor:
    """A picture [h, w, 3] with the boxes of its squares drawn in, what is left out darkened, beside its `squares` [n, s, s, 3].

    Returns [1, height, width, 3]; the width follows the picture's shape.
    """
    lefts, tops, rights, bottoms = zip(*fitted.boxes, strict=True)
    h, w = image.shape[:2]
    x0, y0, x1, y1 = min(*lefts, 0), min(*tops, 0), max(*rights, w), max(*bottoms, h)
    scale = min(height / (y1 - y0), _WIDEST / (x1 - x0))
    whole = _darkened(image, fitted.boxes)
    frame = Image.new("RGB", (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))), BACKGROUND)
    inner = whole.resize((max(1, round(w * scale)), max(1, round(h * scale))), Image.Resampling.LANCZOS)
    frame.paste(inner, (round(-x0 * scale), round(-y0 * scale)))
    draw = ImageDraw.Draw(frame)
    for i, (left, top, right, bottom) in enumerate(fitted.boxes):
        corners = [(left - x0) * scale, (top - y0) * scale, (right - x0) * scale - 1, (bottom - y0) * scale - 1]
        draw.rectangle(corners, outline=COLOURS[i % len(COLOURS)], width=3)
    grid = _grid(squares, height)
    out = Image.new("RGB", (frame.width + 16 + grid.width, height), BACKGROUND)
    out.paste(frame, (0, 0))
    out.paste(grid, (frame.width + 16, 0))
    return _tensor(out)


def seen_view(image: Tensor, how: str, tiles: int, mask: Tensor | None, most: int) -> Tensor:
    """What an encoder of SIZE pixels sees of the first `most` of pictures [b, h, w, 3], by one of FITS and a mask [m, H, W] on them.

    Returns [b, SIZE, width, 3]: of each picture its squares side by side and in rows.
    """
    if mask is not None:
        mask = per_picture(mask, len(image))[:most]
    fitted = fit(image[:most], how, tiles, SIZE, mask)
    return torch.cat([_tensor(_grid(squares, SIZE)) for squares in seen_squares(fitted).split(len(fitted.boxes))])


def _darkened(image: Tensor, boxes: Sequence[Box]) -> Image.Image:
    """The picture with what lies in no box at a third of its brightness."""
    h, w = image.shape[:2]
    light = torch.full((h, w, 1), 1 / 3)
    for left, top, right, bottom in boxes:
        light[max(top, 0) : bottom, max(left, 0) : right] = 1
    return _picture(image.cpu() * light)


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray((image.cpu() * 255).round().byte().numpy())


def _grid(squares: Tensor, height: int) -> Image.Image:
    """Squares [n, s, s, 3] in rows, as near to a square as may be."""
    columns = int(np.ceil(np.sqrt(len(squares))))
    rows = -(-len(squares) // columns)
    side = height // rows
    out = Image.new("RGB", (columns * side, height), BACKGROUND)
    for i, square in enumerate(squares):
        picture = _picture(square).resize((side - 4, side - 4), Image.Resampling.LANCZOS)
        out.paste(picture, (i % columns * side + 2, i // columns * side + 2))
    return out
