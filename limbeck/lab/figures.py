"""The figures of a run: each a function of a `Run` that returns a figure, or None without numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from limbeck.lab import style
from limbeck.lab.curves import Curve, across_seeds, binned, over_seeds, thin, window_for
from limbeck.lab.read import Run, read
from limbeck.rundir import FIGURES as FOLDER

LOGIT_LOSS = "KL(teacher || student), nats per token"
LABEL_LOSS = "cross-entropy with the labels, nats per token"
GRADIENT = "gradient norm (L2; loss per unit of weight)"
UPDATE = "relative update |\u0394w| / |w| (dimensionless)"
COLUMNS = 240  # of a heat map: steps are averaged to at most so many


def multi_loss_terms(run: Run) -> Figure | None:
    """What each term adds to the loss, and its share, for every setting of more than one term."""
    several = {setting: _contributions(run, setting) for setting in run.settings if len(run.terms(setting)) > 1}
    several = {setting: curves for setting, curves in several.items() if curves}
    if not several:
        return None
    terms = list(dict.fromkeys(term for curves in several.values() for term in curves))
    colours = {term: style.TERM_COLOURS[i % len(style.TERM_COLOURS)] for i, term in enumerate(terms)}
    figure = Figure(figsize=(style.WIDTH, 0.5 + 2.7 * len(several)))
    panels = figure.subplots(len(several), 2, squeeze=False, sharex=True)
    handles = {}
    for (left, right), (setting, curves) in zip(panels, several.items(), strict=True):
        handles |= _amounts(left, curves, colours)
        _shares(right, curves, colours)
        left.set_title(style.label(setting), loc="left")
    for axes in panels[:-1].flat:
        axes.set_xlabel("")
    style.legend(figure, list(handles.values()), list(handles))
    return figure


def logit_loss_train(run: Run) -> Figure | None:
    """Logit loss on training text: evaluations of a fixed sample, and the batches themselves, faint."""
    return _evaluated(run, "logit_loss", "train", LOGIT_LOSS, batches=True)


def logit_loss_test(run: Run) -> Figure | None:
    """Logit loss on held-out text."""
    return _evaluated(run, "logit_loss", "test", LOGIT_LOSS)


def label_loss_train(run: Run) -> Figure | None:
    """Label loss on training text, for a run without a teacher."""
    return None if _has_teacher(run) else _evaluated(run, "label_loss", "train", LABEL_LOSS)


def label_loss_test(run: Run) -> Figure | None:
    """Label loss on held-out text, for a run without a teacher."""
    return None if _has_teacher(run) else _evaluated(run, "label_loss", "test", LABEL_LOSS)


def label_accuracy_train(run: Run) -> Figure | None:
    """Share of the labels that the student names, on training text, for a run without a teacher."""
    return None if _has_teacher(run) else _evaluated(run, "label_accuracy", "train", "label accuracy (share of 1)")


def label_accuracy_test(run: Run) -> Figure | None:
    """Share of the labels that the student names, on held-out text, for a run without a teacher."""
    return None if _has_teacher(run) else _evaluated(run, "label_accuracy", "test", "label accuracy (share of 1)")


def gradient_norm(run: Run) -> Figure | None:
    """Norm of the gradient of each setting's own loss, averaged over the layers."""
    window = window_for(run)
    words = f"{GRADIENT},\nmean over layers"
    return _lines(run, "grad_norm_mean", None, words, window=window)


def gradient_norm_layers(run: Run) -> Figure | None:
    """Heat maps step x layer of the gradient norm, one per setting, one colour scale."""
    maps = {setting: _layers(run, setting) for setting in run.settings}
    maps = {setting: found for setting, found in maps.items() if found is not None}
    if not maps:
        return None
    values = np.concatenate([values[np.isfinite(values) & (values > 0)] for values, _ in maps.values()])
    low, high = float(values.min()), float(values.max())
    norm = LogNorm(low, max(high, 1.01 * low))
    layers = max(values.shape[1] for values, _ in maps.values())
    figure = Figure(figsize=(style.WIDTH, 0.7 + len(maps) * min(0.9 + 0.22 * layers, 3.2)))
    panels = figure.subplots(len(maps), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (setting, (values, edges)) in zip(panels, maps.items(), strict=True):
        _heat(axes, values, edges, norm)
        axes.set_title(style.label(setting), loc="left")
    style.step_axis(panels[-1], max(edges[-1] for _, edges in maps.values()), 0.5)
    bar = figure.colorbar(
        ScalarMappable(norm, style.COLOUR_MAP),
        ax=list(panels),
        label=GRADIENT + "\n(log scale)",
        aspect=24,
        pad=0.02,
    )
    style.plain_log_ticks(bar.ax.yaxis, high / low)
    return figure


def logit_gradient_norm(run: Run) -> Figure | None:
    """Norm of the gradient of the common logit loss, averaged over the layers: comparable."""
    words = "gradient norm of the logit loss\n(L2; nats per token and unit of weight),\nmean over layers"
    return _lines(run, "logit_grad_norm_layers", _split_with(run, "logit_grad_norm_layers"), words)


def update_ratio(run: Run) -> Figure | None:
    """How far an update moves the weights, relative to their size, averaged over the layers."""
    return _lines(run, "update_ratio_layers", _split_with(run, "update_ratio_layers"), f"{UPDATE},\nmean over layers")


FIGURES: dict[str, Callable[[Run], Figure | None]] = {
    "multi-loss-terms": multi_loss_terms,
    "logit-loss-train": logit_loss_train,
    "logit-loss-test": logit_loss_test,
    "label-loss-train": label_loss_train,
    "label-loss-test": label_loss_test,
    "label-accuracy-train": label_accuracy_train,
    "label-accuracy-test": label_accuracy_test,
    "gradient-norm": gradient_norm,
    "gradient-norm-layers": gradient_norm_layers,
    "logit-gradient-norm": logit_gradient_norm,
    "update-ratio": update_ratio,
}


def draw(folder: str | Path | Run) -> list[Path]:
    """Write every figure for which the run has numbers to figures/NAME.svg and figures/NAME.png.

    Returns the paths written, in the order of FIGURES. Raises UserError for a folder that is no run.
    """
    run = folder if isinstance(folder, Run) else read(folder)
    paths = []
    with style.rules():
        for name, make in FIGURES.items():
            figure = make(run)
            if figure is not None:
                paths += style.save(figure, run.folder / FOLDER, name)
    return paths


def _has_teacher(run: Run) -> bool:
    return run.yardstick == "logit_loss"


def _split_with(run: Run, name: str) -> str:
    """The split on which a column was evaluated, the held-out one first."""
    return next((split for split in ("test", "train") if run.has(name, split)), "test")


def _evaluated(run: Run, name: str, split: str, words: str, batches: bool = False) -> Figure | None:
    """Evaluations of a split; the y axis is the same for both splits, so that the figures compare."""
    words += ",\n" + {"train": "training text", "test": "held-out text"}[split]
    figure = _lines(run, name, split, words, batches=batches)
    both = [_lines_of(run, name, each) for each in ("train", "test")]
    curves = [curve for found in both for curve in found.values()]
    if figure is not None and curves:
        style.value_axis(figure.axes[0], *_range(curves), words)
    return figure


def _lines_of(run: Run, name: str, split: str | None, window: int = 1) -> dict[str, Curve]:
    curves = {setting: across_seeds(run, name, setting, split, window) for setting in run.settings}
    return {setting: curve for setting, curve in curves.items() if curve is not None}


def _lines(run: Run, name: str, split: str | None, words: str, window: int = 1, batches: bool = False) -> Figure | None:
    """One line per setting: mean over the seeds, a band from the lowest to the highest seed.

    window > 1 draws running means and the raw values, faint. batches: the training batches too, faint.
    """
    curves = _lines_of(run, name, split, window)
    if not curves:
        return None
    figure = Figure(figsize=(style.WIDTH, 3.7))
    axes = figure.subplots()
    raw = _lines_of(run, name, None) if window > 1 or batches else {}
    for setting, curve in raw.items():
        hue = style.colour(run.settings, setting)
        axes.plot(curve.steps, curve.mean, color=hue, alpha=0.28, lw=0.7, rasterized=len(curve.steps) > 2000)
    handles = {setting: _line(axes, run, setting, curve, marks=split is not None) for setting, curve in curves.items()}
    shown = [*curves.values(), *([] if batches else raw.values())]
    style.value_axis(axes, *_range(shown), words)
    style.step_axis(axes, max(curve.steps[-1] for curve in shown))
    seeds = max(curve.seeds for curve in curves.values())
    title = f"mean and range of {seeds} seeds" if seeds > 1 else None
    style.legend(axes, list(handles.values()), list(handles), title)
    return figure


def _line(axes: Axes, run: Run, setting: str, curve: Curve, marks: bool) -> object:
    hue, shape = style.colour(run.settings, setting), style.marker(run.settings, setting)
    curve = curve if marks else thin(curve)
    if curve.seeds > 1:
        axes.fill_between(curve.steps, curve.low, curve.high, color=hue, alpha=0.18, lw=0)
    size = 4 if marks and len(curve.steps) <= 40 else 0
    return axes.plot(curve.steps, curve.mean, color=hue, marker=shape, ms=size, clip_on=False)[0]


def _range(curves: list[Curve]) -> tuple[float, float]:
    low = min(float(np.nanmin(curve.low)) for curve in curves)
    return low, max(float(np.nanmax(curve.high)) for curve in curves)


def _contributions(run: Run, setting: str) -> dict[str, Curve]:
    """Weight times value of each term, a running mean, over the seeds."""
    found = {}
    for term in run.terms(setting):
        series = []
        for seed in run.seeds(setting):
            steps, values = run.series(f"terms.{term}", setting, seed)
            series.append((steps, values * run.series(f"weights.{term}", setting, seed)[1]))
        curve = over_seeds(series, window_for(run))
        if curve is not None:
            found[term] = thin(curve)
    return found


def _amounts(axes: Axes, curves: dict[str, Curve], colours: dict[str, str]) -> dict[str, object]:
    handles = {}
    for term, curve in curves.items():
        mean, low, high = (np.where(part > 0, part, np.nan) for part in (curve.mean, curve.low, curve.high))
        if curve.seeds > 1:
            axes.fill_between(curve.steps, low, high, color=colours[term], alpha=0.2, lw=0)
        handles[term] = axes.plot(curve.steps, mean, color=colours[term])[0]
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    style.plain_log_ticks(axes.yaxis, high / low)
    axes.set_ylabel("weight \u00d7 value (log scale)")
    style.step_axis(axes, max(curve.steps[-1] for curve in curves.values()))
    return handles


def _shares(axes: Axes, curves: dict[str, Curve], colours: dict[str, str]) -> None:
    """Stacked shares of the terms, 0 to 100 %, of the means over the seeds."""
    steps = next(iter(curves.values())).steps
    stack = np.abs([np.interp(steps, curve.steps, curve.mean) for curve in curves.values()])
    total = stack.sum(axis=0)
    shares = stack / np.where(total > 0, total, np.nan)
    axes.stackplot(steps, shares, colors=[colours[term] for term in curves], lw=0)
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


def _layers(run: Run, setting: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Gradient norm `[n, L]` (mean over seeds and neighbouring steps) and the edges `[n + 1]` in steps."""
    series = [run.series("grad_norm_layers", setting, seed) for seed in run.seeds(setting)]
    length = min(len(values) for _, values in series)
    if any(values.ndim != 2 for _, values in series) or length == 0:
        return None
    mean = np.mean([values[:length] for _, values in series], axis=0)
    return binned(mean, series[0][0][:length], COLUMNS) if (np.isfinite(mean) & (mean > 0)).any() else None
