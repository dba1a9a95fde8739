"""How the figures look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

WIDTH = 7.6  # inches
# Okabe and Ito's colours, safe for the colour-blind, those that stand out on white first: the settings.
SETTING_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A800")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Paul Tol's muted scheme, also safe: the terms, so that no term wears the colour of a setting.
TERM_COLOURS = ("#332288", "#88CCEE", "#117733", "#DDCC77", "#882255", "#44AA99", "#CC6677", "#999933")
TEACHER_COLOUR = "#555555"
COLOUR_MAP = "cividis"
RULES: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.07,
    "svg.fonttype": "none",  # text stays text: small files, and it can be searched and read aloud
    "text.parse_math": False,  # a setting may be named "$x$"
    "image.composite_image": False,
}


@contextmanager
def rules() -> Iterator[None]:
    """Figures made and saved in here look alike on every machine, whatever its own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RULES)
        yield


def colour(settings: list[str], setting: str) -> str:
    """The colour of a setting, the same in every figure and in the report."""
    return SETTING_COLOURS[settings.index(setting) % len(SETTING_COLOURS)]


def marker(settings: list[str], setting: str) -> str:
    """The mark of a setting at its evaluations, the same in every figure."""
    return MARKERS[settings.index(setting) % len(MARKERS)]


def label(name: str) -> str:
    """A name as a legend can show it: of bounded length, and not hidden for its leading underscore."""
    short = name if len(name) <= 34 else name[:33] + "\u2026"
    return " " + short if short.startswith("_") else short


def step_axis(axes: Axes, last: float, first: float = 0) -> None:
    """Name and bound the x axis: optimizer steps."""
    axes.set_xlabel("step (optimizer updates)")
    axes.set_xlim(first, max(last, first + 1))  # a run that has ended at its first evaluation
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def value_axis(axes: Axes, low: float, high: float, words: str, log: bool = True) -> None:
    """Name and bound the y axis; logarithmic, and named so, where that is sought and values span a factor of three."""
    log = log and low > 0 and high / low > 3
    axes.set_ylabel(words + (" (log scale)" if log else ""))
    axes.set_yscale("log" if log else "linear")
    if not log:
        margin = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
        return
    axes.set_ylim(low * (low / high) ** 0.04, high * (high / low) ** 0.04)
    plain_log_ticks(axes.yaxis, high / low)


def plain_log_ticks(axis: Axis, span: float) -> None:
    """Ticks such as 0.5, 1, 2 in place of powers of ten; fewer of them for a wide span."""
    subs = (1, 1.5, 2, 3, 5, 7) if span < 15 else (1, 2, 5) if span < 300 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def legend(target: Axes | Figure, handles: list[Any], names: list[str], title: str | None = None) -> None:
    """A legend above what it explains, outside of the data, as wide as its names allow."""
    shown = [label(name) for name in names]
    columns = max(1, min(5, 78 // (max(map(len, shown)) + 6)))
    how = {"ncols": columns, "title": title, "title_fontsize": "small", "alignment": "left"}
    if isinstance(target, Figure):
        target.legend(handles, shown, loc="outside upper left", **how)
    else:
        target.legend(handles, shown, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.3, **how)
