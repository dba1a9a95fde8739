"""Which operators a step of limbeck spends its time in: BERT-base -> TinyBERT4, bf16, the four losses.

python -m benchmarks.operators [cpu | cuda] [quick]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from torch.profiler import ProfilerActivity, profile

from benchmarks import sides
from benchmarks.race import Over
from benchmarks.shapes import QUICK, Shape

WARM, STEPS, LINES = 1, 2, 20


def profiled(shape: Shape) -> profile:
    """Some steps under torch's profiler, after some without it."""
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (shape.device == "cuda")
    profiler = profile(activities=kinds, record_shapes=True)

    def turns() -> Iterator[None]:
        for _ in range(WARM):
            yield
        with profiler:
            for _ in range(STEPS):
                yield
        raise Over

    try:
        sides.limbeck(turns(), shape)
    except Over:
        return profiler
    raise AssertionError("the loop ended before its turns")


def main() -> None:
    """Prints the operators by the time that is their own, first summed, then shape by shape."""
    asked = sys.argv[1:]
    shape = replace(QUICK if "quick" in asked else Shape(), device="cuda" if "cuda" in asked else "cpu")
    by = f"self_{shape.device}_time_total"
    found = profiled(shape)
    for grouped in (False, True):
        lines = found.key_averages(group_by_input_shape=grouped)
        print(lines.table(sort_by=by, row_limit=LINES, max_name_column_width=40, max_shapes_column_width=60))


if __name__ == "__main__":
    main()
