"""Durations: by a clock that nobody sets, and never below zero if it is set all the same."""

from __future__ import annotations

from time import perf_counter

LEAST = 1e-9  # seconds: what is divided by a duration stays finite


def since(begin: float) -> float:
    """Seconds since `begin` (of `perf_counter`), at least `LEAST`.

    >>> since(perf_counter() + 3600)
    1e-09
    """
    return max(perf_counter() - begin, LEAST)
