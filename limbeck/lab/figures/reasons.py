"""The figures of reasons: heat maps of layers against layers, and lines by layer, confidence, frequency and place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from limbeck import rundir
from limbeck.lab import names
from limbeck.lab.data.curves import Curve, over_seeds
from limbeck.lab.data.reasons import Row, ToldReasons, calibrated, mean, stacked
from limbeck.lab.figures import style
from limbeck.lab.figures.chart import Chart, save
from limbeck.lab.numbers import number

ROWS, COLUMNS = 8, 13  # of a grid the values of which can be read in its cells
TEACHER = "teacher"
Teacher = tuple[np.ndarray, str]  # its values, and the colour of its line


def alignment(why: ToldReasons) -> Chart | None:
    """Linear CKA of the layers of each setting with those of its teacher, one panel for each setting."""
    grids = {setting: grid for setting, rows in why.learners.items() if (grid := mean(rows, "cka")) is not None}
    if not grids:
        return None
    across = min(2, len(grids))
    down = -(-len(grids) // across)
    tallest = max(grid.shape[0] for grid in grids.values())
    chart = Chart(0.3 + down * (0.75 + min(0.27 * tallest, 3.2)))
    panels = list(chart.subplots(down, across, squeeze=False).flat)
    for axes, (setting, grid) in zip(panels, grids.items(), strict=False):
        _grid(axes, grid, across)
        axes.set_title(style.label(setting), loc="left")
    for axes in panels[len(grids) :]:
        axes.remove()
    scale = ScalarMappable(Normalize(0, 1), style.COLOUR_MAP)
    chart.colorbar(scale, ax=panels[: len(grids)], label="linear CKA (0 to 1)", aspect=24 * down, pad=0.02)
    return chart


def rank(why: ToldReasons) -> Chart | None:
    """Effective rank by layer."""
    found = {setting: _curve(stacked(rows, "effective_rank")) for setting, rows in why.learners.items()}
    curves = {setting: curve for setting, curve in found.items() if curve}
    if not curves:
        return None
    chart = Chart(3.7)
    axes = chart.subplots()
    known = {
        it: ranks for it, rows in why.learners.items() if (ranks := mean(rows, "teacher_effective_rank")) is not None
    }
    theirs = {name: (known[it], _teacher_hue(why, name, it)) for name, it in _teachers(why, known).items()}
    handles = _lines(chart, axes, why, curves, theirs, lambda x, said: f"layer {x}, effective rank {said}")
    _values(axes, curves, theirs, "effective rank, directions")
    axes.set_xlabel("layer (0: the embedding)")
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    _legend(chart, axes, handles)
    return chart


def reliability(why: ToldReasons) -> Chart | None:
    """Accuracy against confidence, with the expected calibration error in the legend."""
    mine = {it: found for it, rows in why.learners.items() if (found := calibrated(rows))}
    if not mine:
        return None
    chart = Chart(4.3)
    axes = chart.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", ls=":", lw=1.2)
    handles: dict[str, Line2D] = {}
    theirs = {it: found for it, rows in why.learners.items() if (found := calibrated(rows, "teacher_calibration"))}
    for setting, table in mine.items():
        handles[_with_ece(setting, table)] = _reliable(chart, axes, setting, table, **_look(why, setting))
    for name, setting in _teachers(why, theirs).items():
        look = {"color": _teacher_hue(why, name, setting), "ls": "--", "lw": 1.2, "marker": ".", "ms": 5}
        handles[_with_ece(name, theirs[setting])] = _reliable(chart, axes, name, theirs[setting], **look)
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="confidence (probability of the likeliest)", ylabel="accuracy (share of 1)"
    )
    _legend(chart, axes, handles)
    return chart


def frequency(why: ToldReasons) -> Chart | None:
    """Agreement and logit loss by how often a token stands in the training text."""
    edges = max((it for rows in why.learners.values() for row in rows if (it := _edges(row))), key=len, default=[])
    tips = [
        f"{edge:,} to {after - 1:,} times" if after - 1 > edge else f"{edge:,} times" for edge, after in pairwise(edges)
    ]
    tips += [f"{edge:,} times or more" for edge in edges[-1:]]
    return _by(why, "by_frequency", [_short(edge) for edge in edges], "times in the training text, from", tips)


def place(why: ToldReasons) -> Chart | None:
    """Agreement and logit loss by the place in the block."""
    eighths = [str(eighth) for eighth in range(1, 9)]
    return _by(why, "by_place", eighths, "place in the block, in eighths", [f"eighth {eighth}" for eighth in eighths])


FIGURES: dict[str, Callable[[ToldReasons], Chart | None]] = {
    "reasons-cka": alignment,
    "reasons-rank": rank,
    "reasons-calibration": reliability,
    "reasons-frequency": frequency,
    "reasons-place": place,
}


def draw(why: ToldReasons) -> list[Path]:
    """Write every figure for which there are numbers to figures/NAME.svg and .png; returns the paths written."""
    paths = []
    with style.rules():
        for name, make in FIGURES.items():
            chart = make(why) if why.learners else None
            if chart is not None:
                paths += save(chart, why.run.folder / rundir.FIGURES, name)
    return paths


def _grid(axes: Axes, grid: np.ndarray, across: int) -> None:
    """One panel of cells, values in them where there is room."""
    rows, columns = grid.shape
    axes.pcolormesh(
        np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, grid,
        vmin=0, vmax=1, cmap=style.COLOUR_MAP, rasterized=grid.size > 2000,
    )  # fmt: skip
    if rows <= ROWS and columns <= COLUMNS:
        for (mine, theirs), value in np.ndenumerate(grid):
            text, ink = (
                (f"{value:.2f}", "white" if value < 0.5 else "black") if np.isfinite(value) else ("\u2013", "black")
            )
            small = 6.2 if across > 1 and columns > 8 else 8
            axes.text(theirs, mine, text.removeprefix("0"), ha="center", va="center", color=ink, fontsize=small)
    axes.set(xlabel="teacher layer", ylabel="student layer")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(13, integer=True, min_n_ticks=1))
    axes.grid(False)


def _by(why: ToldReasons, name: str, bins: list[str], label: str, tips: list[str]) -> Chart | None:
    """Two panels, agreement and logit loss, over bins; None where nothing was compared."""
    said = names.of(why.run)
    chart = Chart(3.4)
    shown = {"agreement": "agreement (share of 1)", "logit_loss": f"{said.logit_loss}{said.of_unit}"}
    found = {
        column: {it: curve for it, rows in why.learners.items() if (curve := _curve(stacked(rows, f"{name}.{column}")))}
        for column in shown
    }
    found = {column: curves for column, curves in found.items() if curves}
    if not found:
        return None
    handles: dict[str, Line2D] = {}
    panels = chart.subplots(1, len(found), squeeze=False)[0]
    for axes, (column, curves) in zip(panels, found.items(), strict=True):
        write = shown[column].partition(" (")[0]
        handles |= _lines(chart, axes, why, curves, {}, lambda x, said, it=write: f"{tips[x]}, {it} {said}")
        _values(axes, curves, {}, shown[column])
        axes.set_xticks(range(len(bins)), bins)
        axes.set_xlim(-0.3, len(bins) - 0.7)
        axes.set_xlabel(label)
    _legend(chart, chart, handles)
    return chart


def _curve(values: np.ndarray | None) -> Curve | None:
    """Mean and range over the seeds `[seeds, n]`, at the places that all seeds have."""
    if values is None:
        return None
    known = np.isfinite(values).all(axis=0)
    places = np.arange(values.shape[1])[known]
    return over_seeds([(places, row[known]) for row in values]) if known.any() else None


def _lines(
    chart: Chart,
    axes: Axes,
    why: ToldReasons,
    curves: Mapping[str, Curve],
    teachers: Mapping[str, Teacher],
    tip: Callable[[int, str], str],
) -> dict[str, Line2D]:
    """One line for each setting, with its band, and a dashed one for each teacher."""
    handles = {}
    for setting, curve in curves.items():
        look = _look(why, setting)
        if curve.seeds > 1:
            axes.fill_between(curve.steps, curve.low, curve.high, color=look["color"], alpha=0.18, lw=0)
        handles[setting] = axes.plot(curve.steps, curve.mean, clip_on=False, **look)[0]
        chart.say_curve(axes, curve, lambda x, said, it=setting: f"{it}: {tip(x, said)}")
    for name, (values, hue) in teachers.items():
        x = np.flatnonzero(np.isfinite(values))
        handles[name] = axes.plot(x, values[x], color=hue, ls="--", lw=1.2, marker=".", ms=5, clip_on=False)[0]
        every = np.arange(len(values))
        chart.say(axes, every, values, lambda layer, it=name, y=values: f"{it}: {tip(layer, number(y[layer]))}")
    return handles


def _legend(figure: Figure, target: Axes | Figure, handles: Mapping[str, Line2D]) -> None:
    """A legend above its target; the figure grows with it, so that panels stay as high as with few settings."""
    style.legend(target, list(handles.values()), list(handles))
    legend = target.legends[0] if isinstance(target, Figure) else target.get_legend()
    if legend is not None:
        height = legend.get_window_extent().height / figure.dpi
        figure.set_figheight(figure.get_figheight() + max(0.0, height - 0.3))


def _values(axes: Axes, curves: Mapping[str, Curve], teachers: Mapping[str, Teacher], label: str) -> None:
    theirs = [values[np.isfinite(values)] for values, _ in teachers.values()]
    every = np.concatenate([*(np.append(curve.low, curve.high) for curve in curves.values()), *theirs])
    style.value_axis(axes, float(every.min()), float(every.max()), label)


def _teachers(why: ToldReasons, settings: Iterable[str]) -> dict[str, str]:
    """Name of a teacher -> a setting that it teaches: one where all settings share it, else each one's own."""
    if why.one_teacher:
        return dict(zip([TEACHER], settings, strict=False))
    return {f"teacher of {setting}": setting for setting in settings}


def _teacher_hue(why: ToldReasons, name: str, setting: str) -> str:
    return style.TEACHER_COLOUR if name == TEACHER else style.colour(why.run.settings, setting)


def _reliable(chart: Chart, axes: Axes, name: str, table: Mapping[str, np.ndarray], **look: Any) -> Line2D:
    full = table["count"] > 0
    x, y, counts = table["confidence"][full], table["accuracy"][full], table["count"][full]

    def tip(place: int) -> str:
        said = f"confidence {number(x[place])}, accuracy {number(y[place])}"
        return f"{name}: {said}, {int(counts[place]):,} predictions"

    chart.say(axes, x, y, tip)
    return axes.plot(x, y, clip_on=False, **look)[0]


def _with_ece(name: str, table: Mapping[str, np.ndarray]) -> str:
    short = name if len(name) <= 22 else name[:21] + "\u2026"
    return f"{short}, ECE {float(table['ece']):.3f}"


def _look(why: ToldReasons, setting: str) -> dict[str, Any]:
    every = why.run.settings
    return {"color": style.colour(every, setting), "marker": style.marker(every, setting), "ms": 4}


def _edges(row: Row) -> list[int]:
    return (row.get("by_frequency") or {}).get("from") or []


def _short(edge: int) -> str:
    return f"{edge // 10**6}M" if edge >= 10**6 else f"{edge // 1000}k" if edge >= 1000 else str(edge)
