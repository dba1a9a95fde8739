"""Score against size: what students of several sizes reach, one line for each teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from limbeck.lab import names
from limbeck.lab.data.capacity import Ladder, Line, of_run
from limbeck.lab.data.run import RunData
from limbeck.lab.figures import style
from limbeck.lab.figures.chart import Chart
from limbeck.lab.numbers import Spread, amount, number

APART = 1.02  # between the marks of two teachers at one student, as a ratio of sizes


def capacity(run: RunData) -> Chart | None:
    """The score of students against their parameters, on a log scale; beside it, on a scale of their own, the teachers."""
    ladder = of_run(run)
    if ladder is None:
        return None
    chart = Chart(4.2)
    left, right = chart.subplots(1, 2, width_ratios=(3, 2))
    handles = [_students(chart, left, ladder, line) for line in ladder.lines]
    taught = [line for line in ladder.lines if line.size is not None]
    for line in taught:
        _teacher(chart, right, ladder, line)
    label = f"{ladder.measure.name}{', ' * bool(ladder.measure.unit)}{ladder.measure.unit},\n{names.of(run).heldout}"
    _scales(left, "students", list(ladder.scores.values()), label)
    _scales(right, "their teachers", [line.reached for line in taught if line.reached], "")
    style.legend(chart, handles, [line.name for line in ladder.lines])
    return chart


def _scales(axes: Axes, title: str, spreads: list[Spread], label: str) -> None:
    """Sizes on a log scale; the scores of a panel fill its height."""
    ends = [end for each in spreads for end in (each.low, each.high) if math.isfinite(end)]
    if not ends:
        axes.set_visible(False)
        return
    axes.set_title(title, loc="left")
    style.value_axis(axes, min(ends), max(ends), label, log=False)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    style.plain_log_ticks(axes.xaxis, high / low)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value).replace(".00", "")))
    axes.set_xlabel("parameters (log scale)")


def _look(ladder: Ladder, line: Line) -> dict[str, Any]:
    every = [each.name for each in ladder.lines]
    if line.size is None:
        return {"color": style.TEACHER_COLOUR, "marker": "x", "ls": "--"}
    return {"color": style.colour(every, line.name), "marker": style.marker(every, line.name)}


def _students(chart: Chart, axes: Axes, ladder: Ladder, line: Line) -> object:
    """The line of a teacher: marks a little beside the students' sizes, so that bars of one size do not lie on each other."""
    apart = APART ** (ladder.lines.index(line) - (len(ladder.lines) - 1) / 2)
    sizes = sorted(line.settings)
    said = [f"{line.name}: student of {amount(size)}" for size in sizes]
    spreads = [ladder.scores[line.settings[size]] for size in sizes]
    return _marks(chart, axes, np.array(sizes) * apart, spreads, said, _look(ladder, line))


def _teacher(chart: Chart, axes: Axes, ladder: Ladder, line: Line) -> None:
    if line.size is not None and line.reached is not None:
        look = {**_look(ladder, line), "ls": "", "mfc": "white", "ms": 8}
        _marks(chart, axes, np.array([float(line.size)]), [line.reached], [f"{line.name} itself"], look)


def _marks(
    chart: Chart, axes: Axes, x: np.ndarray, spreads: Sequence[Spread], said: Sequence[str], look: dict[str, Any]
) -> object:
    """Marks at `x` with bars from the lowest to the highest seed."""
    y, low, high = (np.array([getattr(it, end) for it in spreads]) for end in ("mean", "low", "high"))
    chart.say(axes, x, y, lambda place: f"{said[place]}, {spreads[place].show(number)}")
    return axes.errorbar(
        x, y, yerr=np.maximum([y - low, high - y], 0), capsize=2.5, elinewidth=1, clip_on=False, **look
    )
