"""Line charts: one line for each setting, the mean over its seeds, and a band from the lowest to the highest."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.lines import Line2D

from limbeck.lab import names
from limbeck.lab.data.curves import Curve, across_seeds, thin
from limbeck.lab.data.run import RunData
from limbeck.lab.figures import style
from limbeck.lab.figures.chart import Chart
from limbeck.lab.numbers import number

SPLITS = ("train", "test")
LEVEL = 24  # points of a level line that say its value


def evaluated(run: RunData, name: str, split: str, label: str, batches: bool = False) -> Chart | None:
    """Evaluations of a split; the y axis is the same for both splits, so that the figures compare.

    The value of the teacher, where there is one of this column, is a dashed line.
    """
    said = names.of(run)
    label += ",\n" + {"train": said.train, "test": said.heldout}[split]
    theirs = {each: _of_teacher(run, name, each) for each in SPLITS}
    figure = lines(run, name, split, label, batches=batches, levels=theirs[split])
    if figure is None:
        return None
    both = [curve for each in SPLITS for curve in _lines_of(run, name, each).values()]
    levels = [level for found in theirs.values() for level in found.values()]
    style.value_axis(figure.axes[0], *_range(both, levels), label, log=not name.startswith("metrics."))
    return figure


def lines(
    run: RunData,
    name: str,
    split: str | None,
    label: str,
    window: int = 1,
    batches: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Chart | None:
    """One line per setting: mean over the seeds, a band from the lowest to the highest seed.

    window > 1 draws running means and the raw values, faint. batches: the training batches too, faint.
    levels: setting -> the value of its teacher.
    """
    curves = _lines_of(run, name, split, window)
    if not curves:
        return None
    chart = Chart(3.7)
    axes = chart.subplots()
    raw = _lines_of(run, name, None) if window > 1 or batches else {}
    for setting, curve in raw.items():
        hue = style.colour(run.settings, setting)
        axes.plot(curve.steps, curve.mean, color=hue, alpha=0.28, lw=0.7, rasterized=len(curve.steps) > 2000)
    handles = {setting: _line(chart, run, setting, curve, marks=split is not None) for setting, curve in curves.items()}
    shown = [*curves.values(), *([] if batches else raw.values())]
    style.value_axis(axes, *_range(shown), label)
    style.step_axis(axes, max(curve.steps[-1] for curve in shown))
    teachers = _levels(chart, run, levels or {})
    seeds = max(curve.seeds for curve in curves.values())
    title = f"mean and range of {seeds} seeds" if seeds > 1 else None
    style.legend(axes, [*handles.values(), *teachers.values()], [*handles, *teachers], title)
    return chart


def _lines_of(run: RunData, name: str, split: str | None, window: int = 1) -> dict[str, Curve]:
    curves = {setting: across_seeds(run, name, setting, split, window) for setting in run.settings}
    return {setting: curve for setting, curve in curves.items() if curve is not None}


def _line(chart: Chart, run: RunData, setting: str, curve: Curve, marks: bool) -> Line2D:
    (axes,) = chart.axes
    hue, shape = style.colour(run.settings, setting), style.marker(run.settings, setting)
    curve = curve if marks else thin(curve)
    if curve.seeds > 1:
        axes.fill_between(curve.steps, curve.low, curve.high, color=hue, alpha=0.18, lw=0)
    chart.say_curve(axes, curve, lambda step, said: f"{setting}: step {step:,}, {said}")
    size = 4 if marks and len(curve.steps) <= 40 else 0
    return axes.plot(curve.steps, curve.mean, color=hue, marker=shape, ms=size, clip_on=False)[0]


def _of_teacher(run: RunData, name: str, split: str) -> dict[str, float]:
    """Setting -> what its teacher reaches at the last evaluation, the mean over the seeds."""
    found = {}
    for setting in run.settings:
        series = [run.series(f"teacher_{name}", setting, seed, split)[1] for seed in run.seeds(setting)]
        last = [float(values[-1]) for values in series if len(values)]
        if last and all(map(math.isfinite, last)):
            found[setting] = float(np.mean(last))
    return found


def _levels(chart: Chart, run: RunData, levels: Mapping[str, float]) -> dict[str, Line2D]:
    """One dashed line for the teacher; one in each setting's colour where every setting has its own."""
    if not levels:
        return {}
    if len(set(levels.values())) == 1:
        return {"teacher": _level(chart, "teacher", next(iter(levels.values())), style.TEACHER_COLOUR)}
    for setting, level in levels.items():
        _level(chart, f"teacher of {setting}", level, style.colour(run.settings, setting))
    return {"teacher of the setting": Line2D([], [], color=style.TEACHER_COLOUR, ls="--", lw=1.2)}


def _level(chart: Chart, name: str, level: float, hue: str) -> Line2D:
    (axes,) = chart.axes
    places = np.linspace(*axes.get_xlim(), LEVEL)
    chart.say(axes, places, np.full(LEVEL, level), lambda _: f"{name}: {number(level)}")
    return axes.axhline(level, color=hue, ls="--", lw=1.2)


def _range(curves: list[Curve], levels: list[float] | None = None) -> tuple[float, float]:
    lows = [*(float(np.nanmin(curve.low)) for curve in curves), *(levels or [])]
    highs = [*(float(np.nanmax(curve.high)) for curve in curves), *(levels or [])]
    return min(lows), max(highs)
