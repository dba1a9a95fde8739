"""A figure the points of which say their values under the pointer, and how it reaches the disk: same numbers, same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from limbeck.lab.data.curves import Curve, spread
from limbeck.lab.figures import style
from limbeck.lab.numbers import number

DPI = 110  # of the .png files
POINT = 72  # per inch: the unit of an .svg file
RADIUS = 5  # of what a pointer hits, in points; a page shows a point as one pixel or more
MOST = 48  # points of one line that say their values: a pointer finds one everywhere along a line


class Chart(Figure):
    """A figure that remembers what its points say. Those of the .svg file say it without a script."""

    def __init__(self, height: float) -> None:
        """height: in inches."""
        super().__init__(figsize=(style.WIDTH, height))
        self.said: list[tuple[Axes, np.ndarray, list[str]]] = []

    def say(self, axes: Axes, x: np.ndarray, y: np.ndarray, tip: Callable[[int], str], most: int = MOST) -> None:
        """Let the points x, y `[n]` of a line, or `most` of them, say `tip` of their place in it; nan says nothing."""
        known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        places = known[spread(len(known), most)]
        self.said.append((axes, np.column_stack([x, y])[places], [tip(place) for place in places.tolist()]))

    def say_curve(self, axes: Axes, curve: Curve, tip: Callable[[int, str], str]) -> None:
        """Let a curve say `tip` of the step (or layer, or bin) and of the value with its range."""
        self.say(axes, curve.steps, curve.mean, lambda place: tip(int(curve.steps[place]), told(curve, place)))


def told(curve: Curve, place: int) -> str:
    """The mean at one place of a curve, and in brackets the range over the seeds where they differ as written."""
    mean, low, high = (number(float(part[place])) for part in (curve.mean, curve.low, curve.high))
    return mean if low == high else f"{mean} ({low}..{high})"


def save(chart: Chart, folder: Path, name: str) -> list[Path]:
    """Write NAME.svg and NAME.png, each whole or not at all, without dates, with ids drawn from NAME."""
    matplotlib.rcParams["svg.hashsalt"] = name
    nothing: dict[str, dict[str, Any]] = {
        "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
        "png": {"Software": None},
    }
    paths = []
    for kind, metadata in nothing.items():
        path = folder / f"{name}.{kind}"
        with _replacing(path) as unfinished:
            chart.savefig(unfinished, format=kind, dpi=DPI, metadata=metadata)
            if kind == "svg":
                head, end, tail = unfinished.read_text(encoding="utf-8").rpartition("</svg>")
                unfinished.write_text(head + _targets(chart) + end + tail, encoding="utf-8")
        paths.append(path)
    return paths


def _targets(chart: Chart) -> str:
    """Unseen circles with a `<title>`, which browsers show under the pointer; above all else that was just drawn."""
    width, height = chart.get_size_inches() * POINT
    circles = []
    for axes, points, texts in chart.said:
        for (x, y), text in zip(axes.transData.transform(points) * POINT / chart.dpi, texts, strict=True):
            if 0 <= x <= width and 0 <= y <= height:  # a log scale has no place for 0
                circle = (
                    f'<circle cx="{x:.1f}" cy="{height - y:.1f}" r="{RADIUS}"><title>{escape(text)}</title></circle>'
                )
                circles.append(circle)
    return f'<g fill="none" pointer-events="all">\n{chr(10).join(circles)}\n</g>\n' if circles else ""


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` once it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
