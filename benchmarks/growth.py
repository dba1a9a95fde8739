"""How time and memory grow with vocabulary, length, matched layers and batch. They should grow along straight lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks import sides
from benchmarks.race import mib, race
from benchmarks.rows import Row, row
from benchmarks.shapes import QUICK, Shape, Size

SMALL = Shape(Size(4, 256, 4, 1024), Size(2, 128, 4, 512), vocabulary=1000)
DEEP = Shape(Size(12, 128, 4, 512), Size(12, 64, 4, 256), vocabulary=1000)
NARROW = Shape(Size(2, 128, 4, 256), Size(2, 64, 4, 128), length=64, rows=8, chunk=256)
TOKENS = 4096  # of a batch cut into rows of different lengths


def sweeps(device: str, quick: bool) -> dict[str, dict[int, Shape]]:
    """What is varied -> its value -> the shape."""
    small, deep, narrow = (replace(QUICK if quick else shape, device=device) for shape in (SMALL, DEEP, NARROW))
    tokens = QUICK.tokens if quick else TOKENS
    values = {
        "vocabulary": (100, 200) if quick else (8_000, 32_000, 128_000, 256_000),
        "length": (8, 16) if quick else (128, 256, 512, 1024, 2048, 4096),
        "layers": (1, 2) if quick else (1, 3, 6, 12),
        "batch": (2, 4) if quick else (4, 8, 16, 32, 64),
    }
    return {
        "vocabulary": {v: replace(narrow, vocabulary=v) for v in values["vocabulary"]},
        "length": {v: replace(small, length=v, rows=tokens // v) for v in values["length"]},
        "layers": {v: replace(deep, matched=v) for v in values["layers"]},
        "batch": {v: replace(small, rows=v) for v in values["batch"]},
    }


def bend(points: Mapping[int, float]) -> float:
    """How far points lie off a straight line: the largest |y - line| / y, of the line with the least squares of that.

    At 0 the line is not below 0, for nothing costs less than nothing.

    >>> round(bend({1: 3.0, 2: 5.0, 4: 9.0}), 6)
    0.0
    """
    x, y = np.array(list(points), dtype=float), np.array(list(points.values()), dtype=float)
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    if start < 0:
        slope, start = np.sum(x / y) / np.sum((x / y) ** 2), 0.0
    return float(np.max(np.abs(slope * x + start - y) / y))


def sweep(shapes: Mapping[int, Shape], rounds: int) -> dict[str, Any]:
    """Time and peak memory of a step at every point."""
    device = next(iter(shapes.values())).device
    racing = {str(value): partial(sides.limbeck, shape=shape) for value, shape in shapes.items()}
    laps = race(racing, device, rounds, warm=1)
    seconds = {value: laps[str(value)].median for value in shapes}
    peaks = {value: mib(laps[str(value)].peak) for value in shapes}
    return {
        "seconds": seconds,
        "peak_mib": peaks,
        "imports_mib": {value: mib(laps[str(value)].imports) for value in shapes},
        "bend_of_seconds": bend(seconds),
        "bend_of_peak": bend(peaks),
    }


def rows(names: Sequence[str], device: str, rounds: int, quick: bool) -> list[Row]:
    """`growth_vocabulary`; and `growth_length`, which holds matched layers and batch as well. The worst bend counts."""
    every, found = sweeps(device, quick), []
    of = {"growth_vocabulary": ("vocabulary",), "growth_length": ("length", "layers", "batch")}
    for name in names:
        detail = {what: sweep(every[what], rounds) for what in of[name]}
        worst = max(max(it["bend_of_seconds"], it["bend_of_peak"]) for it in detail.values())
        found.append(row(name, device, worst, None, detail))
    return found
