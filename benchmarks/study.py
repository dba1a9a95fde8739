"""Settings in lockstep against as many single runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks import sides
from benchmarks.flops import flops
from benchmarks.race import race, ratio
from benchmarks.rows import Row, row
from benchmarks.shapes import Shape

SETTINGS = (1, 2, 4, 8)


def rows(names: Sequence[str], shape: Shape, rounds: int) -> list[Row]:
    """`lockstep_8`: how much of what sharing the teacher could save is saved.

    With t and s the FLOPs of the teacher's forward pass and of a student's forward and backward pass, K single runs cost
    K (t + s) and a lockstep t + K s; their ratio is the bound.
    """
    work = flops(shape)
    laps = race({str(k): partial(sides.limbeck, shape=shape, students=k) for k in SETTINGS}, shape.device, rounds, 1)
    detail = {}
    for k in SETTINGS:
        gain = k / ratio(laps[str(k)], laps["1"])
        bound = k * work.step / (work.teacher + k * work.student)
        detail[str(k)] = {"gain": gain, "bound": bound, "of_bound": gain / bound, **laps[str(k)].detail()}
    last = detail[str(SETTINGS[-1])]
    return [row("lockstep_8", shape.device, last["of_bound"], last["bound"], detail)]
