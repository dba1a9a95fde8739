"""Schedules: functions from the step (counted from 0) to a number."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """Always `value`."""
    return lambda step: value


def ramp(start: float, end: float, steps: int) -> Schedule:
    """From `start` at step 0 in a straight line to `end` at step `steps`, and `end` from then on."""
    return lambda step: end if step >= steps else start + (end - start) * step / steps


def scaled(schedule: Schedule, share: float) -> Schedule:
    """A share of another schedule."""
    return lambda step: share * schedule(step)


def learning_rate(peak: float, steps: int, warmup: int, shape: str) -> Schedule:
    """Linear warm-up over `warmup` updates, then `constant`, or `linear` or `cosine` decay that reaches 0 at `steps`.

    Update k (from 0) uses schedule(k): the first update of a warm-up of n has rate peak / n, never 0.
    """

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if shape == "constant":
            return peak
        left = max(0.0, (steps - step) / max(1, steps - warmup))
        return peak * (left if shape == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left))))

    return rate
