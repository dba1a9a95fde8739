"""How long threads spin before they sleep: tokens/s of a small training, alone and beside busy processes; one thread last.

python -m benchmarks.waiting [rounds] [seconds of each try]

Each cell is the median over the rounds and, in brackets, the largest try less the smallest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from statistics import median
from time import perf_counter

from benchmarks.race import Over, beside
from limbeck.system.environment import WAITING

SPINS = (300, 1000, 10_000)
PASSIVE, ONE = {"OMP_WAIT_POLICY": "passive"}, {"OMP_NUM_THREADS": "1"}
WAYS = ({}, PASSIVE, *({"GOMP_SPINCOUNT": str(n)} for n in SPINS), ONE)
LOADS = (0, 1, 2)  # busy processes beside
WARM = 3  # steps


def train(seconds: float) -> float:
    """Tokens a second in this process, whose environment is read when torch is imported."""
    from benchmarks import sides
    from benchmarks.saving import SHAPES

    shape, begin, steps = SHAPES["6x256_to_3x128"], 0.0, 0

    def turns() -> Iterator[None]:
        nonlocal begin, steps
        for _ in range(WARM):
            yield
        begin = perf_counter()
        while perf_counter() - begin < seconds:
            steps += 1
            yield
        raise Over

    try:
        sides.limbeck(turns(), shape)
    except Over:
        return steps * shape.tokens / (perf_counter() - begin)
    raise AssertionError("the loop ended before its turns")


def main() -> None:
    """Every way alone, beside one busy process and beside two, each in a process of its own, in turns; medians over the rounds."""
    if sys.argv[1:2] == ["train"]:
        print(train(float(sys.argv[2])))
        return
    rounds, seconds = (*sys.argv[1:3], *("3", "5")[len(sys.argv[1:3]) :])
    tries = list(product(range(len(WAYS)), LOADS))
    found: dict[tuple[int, int], list[float]] = {key: [] for key in tries}
    for turn in range(int(rounds)):
        for key in tries:
            found[key].append(_in_a_process(WAYS[key[0]], key[1], seconds))
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    print(f"{'':28}{'alone':>18}{'beside 1':>18}{'beside 2':>18}")
    for index, way in enumerate(WAYS):
        name = " ".join(f"{key}={value}" for key, value in way.items()) or "as torch is"
        print(f"{name:28}" + "".join(_cell(found[index, busy]) for busy in LOADS))


def _in_a_process(way: dict[str, str], busy: int, seconds: str) -> float:
    env = {name: value for name, value in os.environ.items() if name not in WAITING} | way
    command = [sys.executable, "-m", "benchmarks.waiting", "train", seconds]
    with beside(busy):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def _cell(tokens: list[float]) -> str:
    """The median, and how far the tries lie apart."""
    return f"{f'{median(tokens):,.0f} ({max(tokens) - min(tokens):,.0f})':>18}"


if __name__ == "__main__":
    main()
