"""The teacher cache: an epoch read from it against the live teacher, and its bytes a token."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.rows import Row, missing
from benchmarks.shapes import Shape

MISSING = "limbeck has no teacher cache yet"


def epoch(shape: Shape, rounds: int) -> Row:
    """`cache_epoch`: epochs/s from the cache over epochs/s with the live teacher, same losses (logits only).

    TO FILL IN: race two sides, a still whose teacher is `actors.Cached` and one whose teacher is `actors.Frozen`, both with the
    term on logits alone; `row("cache_epoch", shape.device, ratio(live, cached), live.median, detail)`.
    """
    return missing("cache_epoch", shape.device, MISSING)


def size(shape: Shape) -> Row:
    """`cache_bytes`: bytes a token on the disk, top-50 with tail mass, vocabulary 30,522.

    TO FILL IN: write a cache of some batches and count the bytes of its files over its tokens; `detail` holds the KL to the
    unpacked top-50, in nats, which must be under 1e-3.
    """
    return missing("cache_bytes", shape.device, MISSING)


def rows(names: Sequence[str], shape: Shape, rounds: int) -> list[Row]:
    """The rows of these names."""
    made = {"cache_epoch": lambda: epoch(shape, rounds), "cache_bytes": lambda: size(shape)}
    return [made[name]() for name in names]
