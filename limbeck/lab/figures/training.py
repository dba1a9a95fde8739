"""The figures of a run: each a function of a `Run` that returns a chart, or None without numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from limbeck import rundir
from limbeck.lab import names
from limbeck.lab.data.curves import Curve, binned, over_seeds, thin, window_for
from limbeck.lab.data.run import RunData, read
from limbeck.lab.figures import style
from limbeck.lab.figures.capacity import capacity
from limbeck.lab.figures.chart import Chart, save
from limbeck.lab.figures.lines import evaluated, lines
from limbeck.lab.numbers import percent, share

GRADIENT = "gradient norm (L2; loss per unit of weight)"
UPDATE = "relative update |\u0394w| / |w| (dimensionless)"
VAST = 1e100  # what no axis can show: a loss of a term that was weighed by 1e300
COLUMNS = 240  # of a heat map: steps are averaged to at most so many


def multi_loss_terms(run: RunData) -> Chart | None:
    """What each term adds to the loss, and its share, for every setting of more than one term."""
    several = {setting: _contributions(run, setting) for setting in run.settings if len(run.terms(setting)) > 1}
    several = {setting: curves for setting, curves in several.items() if curves}
    if not several:
        return None
    terms = list(dict.fromkeys(term for curves in several.values() for term in curves))
    colours = {term: style.TERM_COLOURS[i % len(style.TERM_COLOURS)] for i, term in enumerate(terms)}
    chart = Chart(0.5 + 2.7 * len(several))
    panels = chart.subplots(len(several), 2, squeeze=False, sharex=True)
    handles = {}
    for (left, right), (setting, curves) in zip(panels, several.items(), strict=True):
        handles |= _amounts(chart, left, curves, colours)
        _shares(chart, right, curves, colours)
        left.set_title(style.label(setting), loc="left")
    for axes in panels[:-1].flat:
        axes.set_xlabel("")
    style.legend(chart, list(handles.values()), list(handles))
    return chart


def metric_train(run: RunData) -> Chart | None:
    """The first metric of a task on training rows."""
    return _metric(run, "train")


def metric_test(run: RunData) -> Chart | None:
    """The first metric of a task on held-out rows."""
    return _metric(run, "test")


def logit_loss_train(run: RunData) -> Chart | None:
    """Logit loss on training text: evaluations of a fixed sample, and the batches themselves, faint."""
    return evaluated(run, "logit_loss", "train", names.of(run).logit_axis, batches=True)


def logit_loss_test(run: RunData) -> Chart | None:
    """Logit loss on held-out text."""
    return evaluated(run, "logit_loss", "test", names.of(run).logit_axis)


def label_loss_train(run: RunData) -> Chart | None:
    """Label loss on training text, for a run without a teacher of all settings."""
    return evaluated(run, "label_loss", "train", names.of(run).label_axis) if _by_labels(run) else None


def label_loss_test(run: RunData) -> Chart | None:
    """Label loss on held-out text, for a run without a teacher of all settings."""
    return evaluated(run, "label_loss", "test", names.of(run).label_axis) if _by_labels(run) else None


def label_accuracy_train(run: RunData) -> Chart | None:
    """Share of the labels that the student names, on training text, for a run without a teacher of all settings."""
    return _label_accuracy(run, "train")


def label_accuracy_test(run: RunData) -> Chart | None:
    """Share of the labels that the student names, on held-out text, for a run without a teacher of all settings."""
    return _label_accuracy(run, "test")


def gradient_norm(run: RunData) -> Chart | None:
    """Norm of the gradient of each setting's own loss, averaged over the layers."""
    window = window_for(run)
    return lines(run, "grad_norm_mean", None, f"{GRADIENT},\nmean over layers", window=window)


def gradient_norm_layers(run: RunData) -> Chart | None:
    """Heat maps step x layer of the gradient norm, one per setting, one colour scale."""
    maps = {setting: _layers(run, setting) for setting in run.settings}
    maps = {setting: found for setting, found in maps.items() if found is not None}
    if not maps:
        return None
    values = np.concatenate([values[np.isfinite(values) & (values > 0)] for values, _ in maps.values()])
    low, high = float(values.min()), float(values.max())
    norm = LogNorm(low, max(high, 1.01 * low))
    layers = max(values.shape[1] for values, _ in maps.values())
    chart = Chart(0.7 + len(maps) * min(0.9 + 0.22 * layers, 3.2))
    panels = chart.subplots(len(maps), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (setting, (values, edges)) in zip(panels, maps.items(), strict=True):
        _heat(axes, values, edges, norm)
        axes.set_title(style.label(setting), loc="left")
    style.step_axis(panels[-1], max(edges[-1] for _, edges in maps.values()), 0.5)
    bar = chart.colorbar(
        ScalarMappable(norm, style.COLOUR_MAP),
        ax=list(panels),
        label=GRADIENT + "\n(log scale)",
        aspect=24,
        pad=0.02,
    )
    style.plain_log_ticks(bar.ax.yaxis, high / low)
    return chart


def logit_gradient_norm(run: RunData) -> Chart | None:
    """Norm of the gradient of the common logit loss, averaged over the layers: comparable."""
    said = names.of(run)
    label = f"gradient norm of the {said.logit_loss}\n(L2; {said.slope}),\nmean over layers"
    return lines(run, "logit_grad_norm_layers", _split_with(run, "logit_grad_norm_layers"), label)


def update_ratio(run: RunData) -> Chart | None:
    """How far an update moves the weights, relative to their size, averaged over the layers."""
    return lines(run, "update_ratio_layers", _split_with(run, "update_ratio_layers"), f"{UPDATE},\nmean over layers")


FIGURES: dict[str, Callable[[RunData], Chart | None]] = {
    "capacity": capacity,
    "metric-test": metric_test,
    "metric-train": metric_train,
    "logit-loss-train": logit_loss_train,
    "logit-loss-test": logit_loss_test,
    "label-loss-train": label_loss_train,
    "label-loss-test": label_loss_test,
    "label-accuracy-train": label_accuracy_train,
    "label-accuracy-test": label_accuracy_test,
    "multi-loss-terms": multi_loss_terms,
    "gradient-norm": gradient_norm,
    "gradient-norm-layers": gradient_norm_layers,
    "logit-gradient-norm": logit_gradient_norm,
    "update-ratio": update_ratio,
}


def draw(folder: str | Path | RunData) -> list[Path]:
    """Write every figure for which the run has numbers to figures/NAME.svg and figures/NAME.png.

    Returns the paths written, in the order of FIGURES. Raises UserError for a folder that is no run.
    """
    run = folder if isinstance(folder, RunData) else read(folder)
    paths = []
    with style.rules():
        for name, make in FIGURES.items():
            chart = make(run)
            if chart is not None:
                paths += save(chart, run.folder / rundir.FIGURES, name)
    return paths


def _metric(run: RunData, split: str) -> Chart | None:
    first = names.of(run).metrics[:1]
    unit = " (share of 1)" if first and first[0].write is share else ""
    return evaluated(run, first[0].key, split, first[0].name + unit) if first else None


def _by_labels(run: RunData) -> bool:
    return not (run.taught and run.shares_teacher)


def _label_accuracy(run: RunData, split: str) -> Chart | None:
    """Of text; rows have the metrics of their task."""
    shown = _by_labels(run) and run.task is None
    return evaluated(run, "label_accuracy", split, "label accuracy (share of 1)") if shown else None


def _split_with(run: RunData, name: str) -> str:
    """The split on which a column was evaluated, the held-out one first."""
    return next((split for split in ("test", "train") if run.has(name, split)), "test")


def _contributions(run: RunData, setting: str) -> dict[str, Curve]:
    """Weight times value of each term, a running mean, over the seeds."""
    found = {}
    for term in run.terms(setting):
        series = []
        for seed in run.seeds(setting):
            steps, values = run.series(f"terms.{term}", setting, seed)
            with np.errstate(over="ignore"):
                weighted = values * run.series(f"weights.{term}", setting, seed)[1]
            series.append((steps, np.where(np.abs(weighted) < VAST, weighted, np.nan)))
        curve = over_seeds(series, window_for(run))
        if curve is not None:
            found[term] = thin(curve)
    return found


def _amounts(chart: Chart, axes: Axes, curves: dict[str, Curve], colours: dict[str, str]) -> dict[str, object]:
    handles = {}
    for term, curve in curves.items():
        mean, low, high = (np.where(part > 0, part, np.nan) for part in (curve.mean, curve.low, curve.high))
        if curve.seeds > 1:
            axes.fill_between(curve.steps, low, high, color=colours[term], alpha=0.2, lw=0)
        handles[term] = axes.plot(curve.steps, mean, color=colours[term])[0]
        chart.say_curve(axes, curve, lambda step, said, term=term: f"{term}: step {step:,}, {said}")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    style.plain_log_ticks(axes.yaxis, high / low)
    axes.set_ylabel("weight \u00d7 value (log scale)")
    style.step_axis(axes, max(curve.steps[-1] for curve in curves.values()))
    return handles


def _shares(chart: Chart, axes: Axes, curves: dict[str, Curve], colours: dict[str, str]) -> None:
    """Stacked shares of the terms, 0 to 100 %, of the means over the seeds."""
    steps = next(iter(curves.values())).steps
    stack = np.abs([np.interp(steps, curve.steps, curve.mean) for curve in curves.values()])
    total = stack.sum(axis=0)
    shares = stack / np.where(total > 0, total, np.nan)
    axes.stackplot(steps, shares, colors=[colours[term] for term in curves], lw=0)
    middles = np.cumsum(shares, axis=0) - shares / 2
    for term, middle, part in zip(curves, middles, shares, strict=True):
        chart.say(
            axes, steps, middle, lambda i, it=term, y=part: f"{it}: step {steps[i]:,}, {percent(y[i])} of the loss"
        )
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("share of the loss")
    style.step_axis(axes, steps[-1])


def _heat(axes: Axes, values: np.ndarray, edges: np.ndarray, norm: LogNorm) -> None:
    """One panel step x layer of values `[n, L]`, with the edges of its columns `[n + 1]`."""
    layers = np.arange(values.shape[1] + 1) + 0.5
    axes.pcolormesh(edges, layers, values.T, norm=norm, cmap=style.COLOUR_MAP, rasterized=True)
    axes.set_ylabel("layer")
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.grid(False)


def _layers(run: RunData, setting: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Gradient norm `[n, L]` (mean over seeds and neighbouring steps) and the edges `[n + 1]` in steps."""
    series = [run.series("grad_norm_layers", setting, seed) for seed in run.seeds(setting)]
    length = min(len(values) for _, values in series)
    if any(values.ndim != 2 for _, values in series) or length == 0:
        return None
    mean = np.mean([values[:length] for _, values in series], axis=0)
    return binned(mean, series[0][0][:length], COLUMNS) if (np.isfinite(mean) & (mean > 0)).any() else None
