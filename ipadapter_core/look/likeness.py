"""How alike pictures and references are: the cosine of their features (CLIP-I in the IP-Adapter paper, arXiv 2308.06721, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .plot import Panel, Series, plot

Table = Sequence[Sequence[float]]  # a row for each picture, a figure for each reference; NaN where there is none


def cosines(pictures: Tensor, references: Tensor) -> Tensor:
    """Features [n, d] and [m, d] -> cosines [n, m]: 1 for the same direction, 0 for nothing in common."""
    return F.normalize(pictures.float(), dim=-1) @ F.normalize(references.float(), dim=-1).T


def mean(table: Table) -> float:
    """Of all figures that are there."""
    known = [value for row in table for value in row if not math.isnan(value)]
    return sum(known) / len(known)


def as_text(table: Table) -> str:
    """Lines with a figure for each reference, and the mean of all."""
    names = [f"reference {i}" for i in range(1, 1 + len(table[0]))]
    lines = [" | ".join(["picture", *names])]
    for number, row in enumerate(table, 1):
        lines.append(" | ".join([str(number), *("no face" if math.isnan(value) else f"{value:.4f}" for value in row)]))
    return "\n".join([*lines, f"mean: {mean(table):.4f}"])


def as_plot(table: Table, title: str) -> Tensor:
    """Bars for each picture, one for each reference: [1, h, w, 3] in 0..1."""
    columns = [[0.0 if math.isnan(value) else value for value in column] for column in zip(*table, strict=True)]
    series = [Series(f"reference {number}", values) for number, values in enumerate(columns, 1)]
    return plot([Panel(title, [str(number) for number in range(1, 1 + len(table))], series, "bars")])
