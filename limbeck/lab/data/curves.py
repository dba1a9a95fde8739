"""Curves over training: mean and range over the seeds, running means. Arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from limbeck.lab.data.run import RunData

POINTS = 500  # of a smooth line; more cannot be seen and makes heavy files


@dataclass(frozen=True)
class Curve:
    """One line of a figure: steps `[N]`; mean, lowest and highest value over the seeds `[N]`."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


def across_seeds(run: RunData, name: str, setting: str, split: str | None = None, window: int = 1) -> Curve | None:
    """The curve of one column over the steps that all seeds have; None if at no step all are finite.

    Values over layers are averaged. window: steps of the running mean, taken per seed.
    """
    series = [run.series(name, setting, seed, split) for seed in run.seeds(setting)]
    return over_seeds([(steps, flat(values)) for steps, values in series], window)


def over_seeds(series: list[tuple[np.ndarray, np.ndarray]], window: int = 1) -> Curve | None:
    """The curve of several seeds, each given by its steps `[N]` and values `[N]`."""
    steps = reduce(np.intersect1d, [steps for steps, _ in series])
    stack = np.array([running_mean(v[np.isin(s, steps)], window) for s, v in series])
    if not np.isfinite(stack).all(axis=0).any():
        return None
    some = np.isfinite(stack).any(axis=0) if window == 1 else np.ones(len(steps), dtype=bool)
    stack, steps = stack[:, some], steps[some]
    return Curve(steps, stack.mean(axis=0), stack.min(axis=0), stack.max(axis=0), len(series))


def thin(curve: Curve, points: int = POINTS) -> Curve:
    """Every k-th point of a long smooth curve, first and last included."""
    keep = spread(len(curve.steps), points)
    return Curve(curve.steps[keep], curve.mean[keep], curve.low[keep], curve.high[keep], curve.seeds)


def spread(length: int, most: int) -> np.ndarray:
    """Places in a row of some length, evenly spread, at most so many, first and last included.

    >>> spread(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.unique(np.linspace(0, length - 1, min(most, length)).round().astype(int))


def flat(values: np.ndarray) -> np.ndarray:
    """Average over the layers where there are layers: `[N, L]` or `[N]` -> `[N]`."""
    return values.mean(axis=1) if values.ndim == 2 else values


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a centred window `[N] -> [N]`, shorter at both ends; values not finite are left out."""
    if window <= 1 or len(values) == 0:
        return values
    finite = np.isfinite(values)
    half = window // 2
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    number = count[last] - count[first]
    mean = (total[last] - total[first]) / np.maximum(number, 1)
    return np.where(number > 0, mean, np.nan)


def window_for(run: RunData) -> int:
    """Steps of the running mean: an odd number near a fiftieth of the run, at least 1."""
    steps = max(len(rows) for rows in run.metrics.values())
    return 2 * (steps // 100) + 1


def binned(values: np.ndarray, steps: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Averages of neighbouring rows `[N, L] -> [n, L]`, n <= bins, and the edges `[n + 1]` in steps."""
    parts = np.array_split(np.arange(len(steps)), min(bins, len(steps)))
    edges = np.array([steps[part[0]] for part in parts] + [steps[-1] + 1]) - 0.5
    return np.array([values[part].mean(axis=0) for part in parts]), edges
