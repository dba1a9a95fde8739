"""Numbers as people read them, and the spread of one quantity over the seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Values of one quantity by seed; nan where a value was not finite."""

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(np.mean(list(self.by_seed.values())))

    @property
    def low(self) -> float:
        """The lowest seed."""
        return float(np.min(list(self.by_seed.values())))

    @property
    def high(self) -> float:
        """The highest seed."""
        return float(np.max(list(self.by_seed.values())))

    def show(self, write: Callable[[float], str]) -> str:
        """The mean, and in brackets the range over the seeds where they differ as written."""
        mean, low, high = write(self.mean), write(self.low), write(self.high)
        return mean if low == high else f"{mean} ({low}..{high})"


def number(value: float) -> str:
    """Four significant digits: 2.310, 12.30, 0.0001234 -> 1.234e-04."""
    if not math.isfinite(value):
        return "not finite"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}"
    return f"{value:#.4g}".rstrip(".")


def percent(value: float) -> str:
    """Three significant digits of a share: 0.4123 -> 41.2 %."""
    return f"{100 * value:#.3g}".rstrip(".") + " %" if math.isfinite(value) else "not finite"


def points(value: float) -> str:
    """Three significant digits of a difference between shares: 0.0412 -> 4.12 points."""
    return f"{100 * value:#.3g}".rstrip(".") + " points"


def whole(value: float) -> str:
    """A count, or the mean of several: 1,200; 2.3."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def coefficient(value: float) -> str:
    """Three places of what lies between -1 and 1: 0.371, -0.033."""
    return f"{value:.3f}".replace("-0.000", "0.000") if math.isfinite(value) else "undefined"


def share(value: float) -> str:
    """`percent` of a metric, which can be undefined."""
    return percent(value) if math.isfinite(value) else "undefined"


def duration(seconds: float) -> str:
    """Three significant digits in a fitting unit: 1404 -> 23.4 min."""
    if not math.isfinite(seconds):
        return "not finite"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:#.3g}".rstrip(".") + " " + unit
    return f"{seconds:#.3g}".rstrip(".") + " s"


def flops(value: float) -> str:
    """Three significant digits: 1.23e15."""
    return f"{value:.2e}".replace("e+", "e") if math.isfinite(value) else "not finite"


def count(number: int, word: str) -> str:
    """1 seed, 2,000 steps."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def _scaled(value: float, units: Mapping[str, float]) -> str:
    """Three significant digits in the largest unit of which there is at least one."""
    unit = next((name for name, each in units.items() if value >= each), list(units)[-1])
    return f"{value / units[unit]:#.3g}".rstrip(".") + f" {unit}".rstrip()


def amount(value: float) -> str:
    """Three significant digits of a count: 2.95 G, 7.08 M."""
    return _scaled(value, {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0})


def size(value: float) -> str:
    """Three significant digits of bytes: 12.8 MiB."""
    return _scaled(value, {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1.0})


def latency(seconds: float) -> str:
    """Three significant digits of a short time: 84.1 ms."""
    return _scaled(seconds, {"s": 1.0, "ms": 1e-3})
